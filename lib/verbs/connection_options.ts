/**
 * Parameters of a connection.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { runtime } from "../../ffi/runtime.ts";
import { RDMA_CONN_PARAM } from "../../ffi/verbs_layout.ts";
import { write64 } from "./native.ts";

/** `struct rdma_conn_param`: see rdma_connect(3). */
export interface ConnectionOptions {
  /** Bytes for the other side: at most 56 with a request, 196 with its acceptance. */
  privateData?: Uint8Array;
  /** RDMA reads and atomics of the other side to be served at once; 1 by default. */
  responderResources?: number;
  /** RDMA reads and atomics to have under way at once; 1 by default. */
  initiatorDepth?: number;
  /** Whether the hardware controls the flow; false by default. */
  flowControl?: boolean;
  /** How often to try again without an acknowledgement, 0 to 7; 7 by default. Only when connecting. */
  retryCount?: number;
  /** How often to try again when the other side has no receive posted; 7, the default, is for ever. */
  rnrRetryCount?: number;
}

/**
 * Writes a `struct rdma_conn_param`, and behind it the private data that it points to: elsewhere that could be
 * collected before it is used.
 *
 * @throws {MoatError} `INVALID_ARGUMENT`
 */
export function writeConnection(options: ConnectionOptions): Uint8Array {
  const { privateData = new Uint8Array(0), flowControl = false } = options;
  const at = RDMA_CONN_PARAM, bytes = new Uint8Array(at.size + privateData.length);
  const view = new DataView(bytes.buffer);
  const byte = (offset: number, name: string, value: number, most: number): void => {
    if (!Number.isInteger(value) || value < 0 || value > most) {
      throw new MoatError("INVALID_ARGUMENT", `${name} ${value}`, {
        hint: `pass a whole number from 0 to ${most}`,
      });
    }
    view.setUint8(offset, value);
  };
  bytes.set(privateData, at.size);
  if (privateData.length > 0) write64(view, at.privateData, runtime().addressOf(bytes) + at.size);
  byte(at.privateDataLen, "bytes of private data:", privateData.length, 255);
  byte(at.responderResources, "responderResources", options.responderResources ?? 1, 255);
  byte(at.initiatorDepth, "initiatorDepth", options.initiatorDepth ?? 1, 255);
  byte(at.flowControl, "flowControl", flowControl ? 1 : 0, 1);
  byte(at.retryCount, "retryCount", options.retryCount ?? 7, 7);
  byte(at.rnrRetryCount, "rnrRetryCount", options.rnrRetryCount ?? 7, 7);
  return bytes;
}
