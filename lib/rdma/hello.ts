/**
 * What the two sides of an `rdma://` connection tell each other while they connect, in the private data of
 * the connection manager (at most 56 bytes go with a request).
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import type { Identity } from "../identity.ts";

/** The version of the protocol in ffi/helper/rdma.h. */
export const VERSION = 1;

const MAGIC = 0x74616f4d; // "Moat"
/** Bytes of a greeting. */
export const HELLO_SIZE = 52;

/** A side's pool, and who it is. */
export interface Hello extends Identity {
  /** The address of the device view, and the key to read it. */
  readonly base: number;
  readonly rkey: number;
  /** Pages of the device view. */
  readonly frames: number;
  readonly pageSize: number;
}

/** The greeting on the wire. All numbers are little-endian. */
export function encodeHello(hello: Hello): Uint8Array {
  const bytes = new Uint8Array(HELLO_SIZE), view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint16(4, VERSION, true);
  view.setBigUint64(8, BigInt(hello.base), true);
  view.setUint32(16, hello.rkey, true);
  view.setUint32(20, hello.frames, true);
  view.setUint32(24, hello.pageSize, true);
  view.setInt32(28, hello.thread, true);
  bytes.set(hello.process, 32);
  return bytes;
}

/**
 * Reads a greeting. The connection manager fills up private data with zeros.
 *
 * @throws {MoatError} `PEER_PROTOCOL` for what is not one, is of another version, or of another page size
 */
export function decodeHello(bytes: Uint8Array, peer: string, pageSize: number): Hello {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 6 || view.getUint32(0, true) !== MAGIC) {
    throw new MoatError("PEER_PROTOCOL", `${peer} does not speak this protocol`, {
      hint: 'for a program that is not Moat, use the option protocol: "raw"',
    });
  }
  const version = view.getUint16(4, true);
  if (version !== VERSION || bytes.length < HELLO_SIZE) {
    throw new MoatError(
      "PEER_PROTOCOL",
      `${peer} speaks version ${version} of the protocol, this is version ${VERSION}`,
      { hint: "use the same version of the library on both sides" },
    );
  }
  const hello: Hello = {
    base: Number(view.getBigUint64(8, true)),
    rkey: view.getUint32(16, true),
    frames: view.getUint32(20, true),
    pageSize: view.getUint32(24, true),
    thread: view.getInt32(28, true),
    process: bytes.slice(32, 48),
  };
  if (hello.pageSize !== pageSize) {
    throw new MoatError(
      "PEER_PROTOCOL",
      `${peer} has pages of ${hello.pageSize} bytes, this host of ${pageSize}`,
      { hint: "both hosts must have the same page size" },
    );
  }
  if (!Number.isSafeInteger(hello.base) || hello.frames > 2 ** 28) {
    throw new MoatError("PEER_PROTOCOL", `${peer} offers a pool that cannot be`, {});
  }
  return hello;
}
