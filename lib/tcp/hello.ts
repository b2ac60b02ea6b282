/**
 * The greeting of a `tcp://` connection: the first 32 bytes of either direction. All numbers are little-endian.
 *
 * | offset | field |
 * |---|---|
 * | 0 | magic, `MoaT` |
 * | 4 | protocol version (ffi/helper/tcp.h), 16 bits |
 * | 6 | bytes of the greeting, 16 bits |
 * | 8 | the thread that drives this end |
 * | 12 | 0 |
 * | 16 | 16 random bytes that stand for the process |
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { type Identity, processId } from "../identity.ts";

const MAGIC = 0x54616f4d, VERSION = 1;

/** Bytes of a greeting. */
export const HELLO_SIZE = 32;

/** The greeting of this process. */
export function encodeHello(thread: number): Uint8Array {
  const bytes = new Uint8Array(HELLO_SIZE), view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint16(4, VERSION, true);
  view.setUint16(6, HELLO_SIZE, true);
  view.setInt32(8, thread, true);
  bytes.set(processId(), 16);
  return bytes;
}

/**
 * Reads a greeting.
 *
 * @throws {MoatError} `PEER_PROTOCOL` for what is not one, or is of another version
 */
export function decodeHello(bytes: Uint8Array, peer: string): Identity {
  const view = new DataView(bytes.buffer, bytes.byteOffset, HELLO_SIZE);
  if (view.getUint32(0, true) !== MAGIC) {
    throw new MoatError("PEER_PROTOCOL", `${peer} does not speak this protocol`, {
      hint: "both sides must be this library; a program that is not needs a plain socket",
    });
  }
  const version = view.getUint16(4, true), size = view.getUint16(6, true);
  if (version !== VERSION || size !== HELLO_SIZE || view.getUint32(12, true) !== 0) {
    throw new MoatError(
      "PEER_PROTOCOL",
      `${peer} speaks version ${version} of the protocol, this is version ${VERSION}`,
      { hint: "use the same version of the library on both sides" },
    );
  }
  return { thread: view.getInt32(8, true), process: bytes.slice(16, 32) };
}
