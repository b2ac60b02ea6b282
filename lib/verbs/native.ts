/**
 * Native memory of a script's own: what work requests live in, and buffers for experiments without a pool.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { C, libc, map, pageSize } from "../../ffi/libc.ts";
import { runtime } from "../../ffi/runtime.ts";

/**
 * Anonymous memory at a fixed address, whole pages of it, zeroed.
 *
 * Unlike a pool's buffers nothing guards it: while a work request uses it, what is written is what may reach
 * the wire.
 */
export class NativeMemory implements Disposable {
  /** The address of the first byte. */
  readonly address: number;
  /** The number of bytes, as asked for. */
  readonly byteLength: number;
  /** The bytes. Detached after {@linkcode close}. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #mapped: number;
  #closed = false;

  /** Maps memory of at least `bytes` bytes. */
  constructor(bytes: number) {
    if (!Number.isSafeInteger(bytes) || bytes <= 0) {
      throw new MoatError("INVALID_ARGUMENT", `NativeMemory of ${bytes} bytes`, {
        hint: "pass a whole number of bytes, at least 1",
      });
    }
    this.#mapped = Math.ceil(bytes / pageSize()) * pageSize();
    const prot = C.PROT_READ | C.PROT_WRITE;
    this.address = map(this.#mapped, prot, C.MAP_PRIVATE | C.MAP_ANONYMOUS, -1);
    this.byteLength = bytes;
    this.bytes = new Uint8Array(runtime().viewOf(this.address, bytes));
  }

  /** Unmaps the memory. No memory region may be registered on it, and no work request use it. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.bytes.buffer.transfer(0);
    libc().munmap(this.address, this.#mapped);
  }

  /** The same as {@linkcode close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** A 64-bit address or counter in native memory, as two halves of a `Uint32Array`. */
export function put64(words: Uint32Array, index: number, value: number): void {
  words[index] = value;
  words[index + 1] = Math.floor(value / 2 ** 32);
}

/** Reads what {@linkcode put64} wrote. Exact below 2^53. */
export function get64(words: Uint32Array, index: number): number {
  return words[index]! + words[index + 1]! * 2 ** 32;
}

/** A view of a C struct elsewhere in memory. */
export function structAt(address: number, bytes: number): DataView {
  return new DataView(runtime().viewOf(address, bytes));
}

/** Reads a 64-bit number, exact below 2^53. */
export function read64(view: DataView, offset: number): number {
  return view.getUint32(offset, true) + view.getUint32(offset + 4, true) * 2 ** 32;
}

/** Writes a 64-bit number below 2^53. */
export function write64(view: DataView, offset: number, value: number): void {
  view.setUint32(offset, value, true);
  view.setUint32(offset + 4, Math.floor(value / 2 ** 32), true);
}
