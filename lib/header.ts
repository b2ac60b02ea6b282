/**
 * Headers of messages: a few bytes that travel with the data and leave it aligned to its pages.
 *
 * @module
 */
import { describe, MoatError } from "../ffi/errors.ts";
import { runtime } from "../ffi/runtime.ts";
import type { PoolCore } from "./memory/core.ts";

/** Bytes of the largest header (`HEADER_MAX` of ffi/helper/memory.h). */
export const HEADER_MAX = 1024;

/** The header of a message that has none. */
export const NO_HEADER: Uint8Array<ArrayBuffer> = new Uint8Array(0);

const ENOBUFS = 105;

/**
 * The bytes of what was passed as a header; `undefined` if there are none.
 *
 * @throws {MoatError} `INVALID_ARGUMENT`
 */
export function headerBytes(header: unknown): Uint8Array | undefined {
  if (header === undefined) return undefined;
  if (!ArrayBuffer.isView(header)) {
    throw new MoatError("INVALID_ARGUMENT", `send with the header ${describe(header)}`, {
      hint: "pass a typed array, for example new TextEncoder().encode(text)",
    });
  }
  const { buffer, byteOffset, byteLength } = header;
  if (byteLength > HEADER_MAX) {
    throw new MoatError("INVALID_ARGUMENT", `send with a header of ${byteLength} bytes`, {
      hint: `a header has at most ${HEADER_MAX} bytes; put the rest before the data`,
    });
  }
  return byteLength === 0 ? undefined : new Uint8Array(buffer, byteOffset, byteLength);
}

/**
 * Gives a send that has not begun its header. Returns what has to be kept until the send has ended: the header
 * stays in ordinary memory if the pool has no frame for it.
 */
export function giveHeader({ helper }: PoolCore, op: number, header: Uint8Array): unknown {
  if (helper.moat_op_header(op, header, header.byteLength) !== -ENOBUFS) return undefined;
  const kept = header.slice();
  helper.moat_op_header_staged(op, runtime().addressOf(kept), kept.byteLength);
  return kept;
}
