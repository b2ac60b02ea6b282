/**
 * Mapped files: the page cache as a buffer.
 *
 * @module
 */
import { describe, MoatError } from "../../ffi/errors.ts";
import { runtime } from "../../ffi/runtime.ts";
import { closeFile, FileOperations } from "./operations.ts";
import { operationError } from "./file.ts";
import type { BufferState } from "../memory/buffer.ts";
import { PoolCore } from "../memory/core.ts";
import { AutoGuard } from "../memory/guard.ts";
import { Mapping } from "../memory/mapping.ts";
import { fileMemory } from "../memory/memory.ts";
import type { Pool } from "../memory/pool.ts";
import { type OpenFile, openFile, sizeOf, statOf } from "./open.ts";

/** What of a file is to be mapped, and how. */
export interface MapOptions {
  /** May be written to, and received into. False by default. */
  write?: boolean;
  /** The first byte mapped, a multiple of the page size (4096 on most machines). 0 by default. */
  offset?: number;
  /** The bytes mapped; by default, to the end of the file. */
  length?: number;
}

/** A part of a file. */
interface Range {
  readonly offset: number;
  readonly length: number;
}

let make: (parent: PoolCore, file: OpenFile, range: Range, write: boolean) => MappedFile;

/**
 * A file's pages as a buffer: {@linkcode Pool.map}. It can be sent, written to a {@linkcode File} and received into
 * like a {@linkcode PoolBuffer}, with every guard.
 *
 * What the program writes to {@linkcode bytes} is in the file at once, for every reader; while an operation holds
 * the page under the guard `"cow"`, the write goes to a private page, which is copied into the file when the
 * operation ends (Brustoloni 1999).
 *
 * Over a transport that takes any address the data is sent straight from the page cache. The peer of an `shm://` or
 * `rdma://` channel can see only the channel's pool, so there it goes through pool pages by one copy, and the result
 * says `zeroCopy: false`.
 *
 * If somebody else cuts the file off, what was behind its end reads as zeros, and every operation on the mapping
 * ends with `FILE_TRUNCATED`. A write to a file that is mapped read-only changes a private page that nobody else
 * sees, and every operation after it ends with `READ_ONLY`.
 */
export class MappedFile implements Disposable, AsyncDisposable {
  /** The path it was mapped by. */
  readonly path: string;
  /** The number of bytes mapped. */
  readonly byteLength: number;
  readonly #core: PoolCore;
  readonly #mapping: Mapping;
  readonly #state: BufferState;
  readonly #operations: FileOperations;
  readonly #bytes: Uint8Array<ArrayBuffer>;

  static {
    make = (parent, file, range, write) => new MappedFile(parent, file, range, write);
  }

  private constructor(parent: PoolCore, file: OpenFile, range: Range, writable: boolean) {
    const { offset, length } = range, { helper, pageSize } = parent, { path, fd } = file;
    this.path = path;
    this.byteLength = length;
    // The descriptor is its from here on.
    this.#operations = new FileOperations(parent, file);
    try {
      const size = (): number => sizeOf(statOf(helper, fd, path));
      this.#mapping = new Mapping(helper, path, { writable, end: offset + length, size });
      const bytes = Math.ceil(length / pageSize) * pageSize;
      const reserve = (writable ? bytes : 0) + RESERVE;
      const memory = fileMemory({ fd, offset, bytes, writable }, reserve);
      this.#core = PoolCore.ofFile(parent, this.#mapping, memory, { bytes, reserve });
    } catch (error) {
      this.#operations.destroy();
      throw error;
    }
    const core = this.#core;
    const memory = runtime().viewOf(core.window, length);
    this.#bytes = new Uint8Array(memory);
    this.#state = {
      core,
      page: 0,
      pages: core.pages,
      byteLength: length,
      memory: new WeakRef(memory),
      busy: 0,
      freed: false,
      guarded: false,
      shared: false,
      auto: new AutoGuard(core.copyCostPerByte(length), length < core.copyThreshold ? 8 : 0),
    };
    helper.moat_buf_open(core.index, 0, core.pages);
    core.adopt(this, memory, this.#state);
    const operations = this.#operations;
    core.onClose(() => void operations.idle().then(() => operations.destroy()));
  }

  /** The pool it is used with. */
  get pool(): Pool {
    return this.#core.pool;
  }

  /** True if it may be written to. */
  get writable(): boolean {
    return this.#mapping.writable;
  }

  /** The bytes of the file: the same view each time. Its length is 0 after {@linkcode free}. */
  get bytes(): Uint8Array<ArrayBuffer> {
    if (this.#state.guarded && this.#state.busy === 0) this.#core.unguardIdle(this.#state);
    return this.#bytes;
  }

  /** True after {@linkcode free}, {@linkcode close} and after a send with the guard `"move"`. */
  get freed(): boolean {
    return this.#state.freed;
  }

  /**
   * Resolves when what was written before the call is on the disk. Waits for operations that hold pages of which
   * the program has written a private copy.
   *
   * @throws {MoatError} As a rejection: `SYSTEM` with the errno of fsync(2), `FILE_TRUNCATED`, `READ_ONLY`,
   * `BUFFER_FREED`, or `POOL_EXHAUSTED` if no mapping is left to bring a private page home
   */
  async sync(): Promise<void> {
    this.#core.assertLive(this.#state);
    this.#mapping.assertUsable("sync");
    while (this.#mapping.away() > 0) {
      if (this.#state.busy === 0) throw this.#core.refusal("sync", -ENOMEM);
      await this.#core.idle();
      this.#core.assertLive(this.#state);
    }
    const { status } = await this.#operations.sync();
    if (status !== 0) throw operationError(this.path, "fsync of", -status, 0, 0);
    this.#mapping.assertUsable("sync");
  }

  /**
   * Unmaps the file. The view is detached at once; the mapping goes when no operation needs it any more. What was
   * written is in the file, and reaches the disk when the kernel sees fit: {@linkcode sync} first if that matters.
   *
   * @throws {MoatError} `BUFFER_FREED` if it has been freed before.
   */
  free(): void {
    if (this.#state.freed) {
      throw new MoatError("BUFFER_FREED", "free() of a mapped file that is freed already", {
        hint: 'free it once; a send with guard "move" frees it too',
      });
    }
    this.#core.retire(this.#state);
  }

  /** Unmaps the file, and waits until no operation needs it any more. */
  async close(): Promise<void> {
    if (!this.#state.freed) this.#core.retire(this.#state);
    await this.#core.idle();
    await this.#operations.idle();
  }

  /** The same as {@linkcode free}, unless that has been called. */
  [Symbol.dispose](): void {
    if (!this.#state.freed) this.#core.retire(this.#state);
  }

  /** The same as {@linkcode close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

const ENOMEM = 12;

// Bytes of frames besides one for each page that can be written: for a page that is sent again while its private
// copy is in flight, and for headers. They take memory only when they are used.
const RESERVE = 1 << 20;

/** Maps a file for a pool. For {@linkcode Pool.map}. */
export function mapForPool(parent: PoolCore, path: string, options: MapOptions): MappedFile {
  parent.assertOpen();
  const { write = false } = options;
  const file = openFile(parent.helper, path, { write, direct: false });
  let range: Range;
  try {
    range = rangeOf(parent, file, options);
  } catch (error) {
    closeFile(file);
    throw error;
  }
  return make(parent, file, range, write);
}

function rangeOf(parent: PoolCore, file: OpenFile, options: MapOptions): Range {
  const { offset = 0 } = options, name = JSON.stringify(file.path);
  const size = sizeOf(statOf(parent.helper, file.fd, file.path));
  if (!Number.isSafeInteger(offset) || offset < 0 || offset % parent.pageSize !== 0) {
    throw new MoatError("INVALID_ARGUMENT", `map of ${name} from byte ${describe(offset)}`, {
      hint: `pass a multiple of the page size, ${parent.pageSize}`,
    });
  }
  const { length = size - offset } = options;
  if (!Number.isSafeInteger(length) || (options.length !== undefined && length < 1)) {
    throw new MoatError("INVALID_ARGUMENT", `map of ${describe(length)} bytes of ${name}`, {
      hint: "pass a whole number of bytes, at least 1",
    });
  }
  if (length >= 1 && offset + length <= size) return { offset, length };
  throw new MoatError(
    "INVALID_ARGUMENT",
    `map of ${name} from byte ${offset} to ${offset + Math.max(length, 1)}: it has ${size} bytes`,
    { hint: "make it longer first, with truncate() of pool.open()" },
  );
}
