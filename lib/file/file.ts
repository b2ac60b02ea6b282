/**
 * Files: reading and writing them straight from and to the pages of a pool.
 *
 * @module
 */
import { describe, GuardTimeoutError, MoatError } from "../../ffi/errors.ts";
import { errno, libc } from "../../ffi/libc.ts";
import type { Data } from "../channel_options.ts";
import { FileOperations, type Finished } from "./operations.ts";
import type { PoolCore, Region } from "../memory/core.ts";
import { resolveData } from "../memory/resolve.ts";
import type { Guard, ReceiveGuard } from "../memory/guard.ts";
import { assertGuard, assertWhole, startOut } from "../memory/outgoing.ts";
import { assertVerify, sealed, type Verify } from "../memory/verify.ts";
import { fileError, type OpenFile, openFile, type OpenOptions, sizeOf, statOf } from "./open.ts";

/** Settings of {@linkcode File.write}. */
export interface WriteOptions {
  /** What a write to the data does while it is in flight. `"auto"` by default. */
  guard?: Guard;
  /**
   * `"checksum"`: rejects with `BUFFER_MODIFIED` if the data changed while it was being written with the guard
   * `"none"`, as `verify` does for a send. The pool's setting by default.
   */
  verify?: Verify;
  /** Stops the waiting, not the writing: the guard stays until the disk is done. */
  signal?: AbortSignal;
}

/** Settings of {@linkcode File.read}. */
export interface ReadOptions {
  /** What an access to the buffer does before the data is there. `"wait"` by default. */
  guard?: ReceiveGuard;
  /** Stops the waiting, not the reading: the guard stays until the disk is done. */
  signal?: AbortSignal;
}

/** What became of a {@linkcode File.write}. */
export interface WriteResult {
  /** Bytes written. */
  bytes: number;
  /** The guard it had. */
  guard: Exclude<Guard, "auto">;
  /** True if the kernel read the program's own pages, false if the bytes were copied to others before. */
  zeroCopy: boolean;
  /** Of the bytes, those that the device read from there, past the page cache (`O_DIRECT`). */
  direct: number;
}

/** What became of a {@linkcode File.read}. */
export interface ReadResult {
  /** Bytes read: fewer than the buffer has at the end of the file, 0 behind it. */
  bytes: number;
  /** The guard it had. */
  guard: ReceiveGuard;
  /** True if the kernel wrote to the program's own pages, false if the bytes were copied from others after. */
  zeroCopy: boolean;
  /** Of the bytes, those that the device wrote there, past the page cache (`O_DIRECT`). */
  direct: number;
}

let make: (core: PoolCore, file: OpenFile) => File;

/**
 * An open file whose data moves straight between the disk and the pages of a pool: {@linkcode Pool.open}.
 *
 * Operations are guarded like those of a channel, run at the same time, and in no order: await one
 * before another that depends on it. They go through io_uring with the pool's memory registered; where io_uring
 * is forbidden, through plain system calls of another thread ({@linkcode File.engine}).
 *
 * The data goes past the page cache (`O_DIRECT`) where offset and memory are aligned, which is so for the
 * beginning of a buffer and offsets that are multiples of 4096; a rest that is not a whole block, and whatever
 * the file system does not take, goes through it. The result says how many bytes went which way.
 */
export class File implements AsyncDisposable {
  /** The path it was opened by. */
  readonly path: string;
  readonly #core: PoolCore;
  readonly #file: OpenFile;
  readonly #operations: FileOperations;
  #closing = false;

  static {
    make = (core, file) => new File(core, file);
  }

  private constructor(core: PoolCore, file: OpenFile) {
    this.path = file.path;
    this.#core = core;
    this.#file = file;
    this.#operations = new FileOperations(core, file);
  }

  /**
   * How its operations get to the kernel: `"io_uring"`, or `"thread"` where that is forbidden.
   */
  get engine(): "io_uring" | "thread" {
    return this.#operations.ring.fd < 0 ? "thread" : "io_uring";
  }

  /** Why {@linkcode engine} is not `"io_uring"`. */
  get refused(): MoatError | undefined {
    return this.#operations.ring.refused;
  }

  /** True if its data can go past the page cache. */
  get direct(): boolean {
    return this.#file.directFd >= 0;
  }

  /** True once {@linkcode close} has been called. */
  get closed(): boolean {
    return this.#closing || this.#operations.closed;
  }

  /**
   * Writes all of a buffer. What is written is what `data` holds at the call; `data` may be touched at once.
   *
   * @param data pool memory (a buffer, or any view of one) is written from where it is, and so are messages that are
   * read in place; other memory is copied
   * @param at the offset in the file, in bytes
   * @throws {MoatError} As a rejection: `INVALID_ARGUMENT`, `BUFFER_FREED`, `DETACHED_VIEW`, `FOREIGN_BUFFER`
   * for what cannot be written; `RESOURCE_CLOSED`; `PERMISSION_DENIED` or `SYSTEM` with the errno of the
   * kernel (`ENOSPC`, `EIO`, …), after which any part of the data may be in the file; `TOO_MANY_OPERATIONS`;
   * `GUARD_TIMEOUT` in the one case where a write to the buffer could neither wait nor get a private page; or
   * `signal.reason`.
   */
  write(data: Data, at = 0, options: WriteOptions = {}): Promise<WriteResult> {
    try {
      return this.#write(data, at, options);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  #write(
    data: Data,
    at: number,
    { guard: asked = "auto", signal, verify }: WriteOptions,
  ): Promise<WriteResult> {
    assertGuard("write", asked);
    assertVerify("write", verify);
    this.#assert("write", at, signal);
    const core = this.#core, resolved = resolveData(core, data, "write", true);
    const { region, bytes } = resolved, length = bytes.byteLength;
    if (asked === "move") assertWhole("write", region);
    if (length === 0) {
      return Promise.resolve({ bytes: 0, guard: "copy", zeroCopy: false, direct: 0 });
    }
    const started = startOut(core, resolved, { what: "write", asked, small: false, lent: true });
    const { op, guard, keep, done } = started;
    const { counters } = core, zeroCopy = guard !== "copy";
    counters.sends[guard]++;
    if (!zeroCopy) counters.bytesCopiedOut += length;
    const seal = sealed(core, started, region, verify, "write");
    const written = this.#operations.start<WriteResult>(op, at, {
      kind: "write",
      guard,
      state: zeroCopy ? region?.state : undefined,
      stack: core.stack(),
      keep: keep ?? data,
      finish: (how): WriteResult => {
        done?.();
        this.#check("write to", how, length, zeroCopy ? region : undefined);
        counters.bytesWritten += how.bytes;
        seal?.check();
        return { bytes: how.bytes, guard, zeroCopy, direct: how.direct };
      },
    }, signal);
    if (asked === "move") core.retire(region!.state);
    return written;
  }

  /**
   * Reads into a buffer, as much as it holds or as the file has. An access to the buffer waits until the data is
   * there.
   *
   * @param into pool memory (a buffer, or any view of one) is read into where it is; into other memory the data
   * is copied
   * @param at the offset in the file, in bytes
   * @throws {MoatError} As a rejection: what {@linkcode write} throws, and `GUARD_TIMEOUT` if an access waited
   * in vain; `POOL_EXHAUSTED` if the pool has no room to read for other memory.
   */
  read(into: Data, at = 0, options: ReadOptions = {}): Promise<ReadResult> {
    try {
      return this.#read(into, at, options);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  #read(into: Data, at: number, { guard = "wait", signal }: ReadOptions): Promise<ReadResult> {
    if (guard !== "wait" && guard !== "none") {
      throw new MoatError("INVALID_ARGUMENT", `read with the guard ${describe(guard)}`, {
        hint: 'use "wait" or "none"',
      });
    }
    this.#assert("read", at, signal);
    const core = this.#core, { region, bytes } = resolveData(core, into, "read", true);
    const length = bytes.byteLength;
    if (length === 0) return Promise.resolve({ bytes: 0, guard, zeroCopy: !!region, direct: 0 });
    const through = region ? undefined : core.pool.alloc(length);
    const target: Region = region ?? resolveData(core, through, "read").region!;
    const op = target.state.core.in(target, through ? "none" : guard, "read");
    return this.#operations.start<ReadResult>(op, at, {
      kind: "read",
      guard: through ? "none" : guard,
      state: target.state,
      stack: core.stack(),
      keep: into,
      finish: (how): ReadResult => {
        try {
          this.#check("read of", how, length, target);
          core.counters.bytesRead += how.bytes;
          if (through) {
            bytes.set(through.bytes.subarray(0, how.bytes));
            core.counters.bytesCopiedIn += how.bytes;
          }
        } finally {
          through?.free();
        }
        return { bytes: how.bytes, guard, zeroCopy: !through, direct: how.direct };
      },
    }, signal);
  }

  /** The bytes the file has now. */
  size(): number {
    this.#assertOpen("size");
    return sizeOf(statOf(this.#core.helper, this.#file.fd, this.path));
  }

  /**
   * Cuts the file off, or makes it longer by zeros.
   *
   * @param bytes its new size
   */
  truncate(bytes: number): void {
    this.#assert("truncate", bytes);
    if (libc().ftruncate(this.#file.fd, bytes) === 0) return;
    throw fileError(`truncate to ${bytes} bytes of`, this.path, errno());
  }

  /**
   * Resolves when everything that had been written before the call is on the disk (`fsync`).
   *
   * @throws {MoatError} As a rejection: `SYSTEM` with the errno, `RESOURCE_CLOSED`, or `signal.reason`
   */
  async sync(options: { signal?: AbortSignal } = {}): Promise<void> {
    this.#assert("sync", 0, options.signal);
    this.#check("fsync of", await this.#operations.sync(options.signal), 0);
  }

  /** Waits for the operations in flight, then closes the file. */
  async close(): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    await this.#operations.idle();
    this.#operations.destroy();
  }

  /** The same as {@linkcode close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #assert(what: string, at: unknown, signal?: AbortSignal): void {
    signal?.throwIfAborted();
    if (!Number.isSafeInteger(at) || (at as number) < 0) {
      throw new MoatError("INVALID_ARGUMENT", `${what} at byte ${describe(at)} of a file`, {
        hint: "pass a whole number of bytes, 0 or more",
      });
    }
    this.#assertOpen(what);
  }

  #assertOpen(what: string): void {
    this.#core.assertOpen();
    if (!this.closed) return;
    throw new MoatError(
      "RESOURCE_CLOSED",
      `${what} of ${JSON.stringify(this.path)}: it is closed`,
      {
        hint: "open it again with pool.open()",
      },
    );
  }

  #check(what: string, { status, bytes }: Finished, length: number, region?: Region): void {
    const mapping = region?.state.core.mapping;
    if (mapping && (status === -EFAULT || status === -ESTALE)) {
      throw mapping.broke(`${what} ${JSON.stringify(this.path)}`);
    }
    if (status !== 0) throw operationError(this.path, what, -status, bytes, length);
  }
}

const EBADF = 9, EFAULT = 14, EBUSY = 16, ETIMEDOUT = 110, ESTALE = 116, ECANCELED = 125;

/** The error of an operation that ended badly. */
export function operationError(
  path: string,
  what: string,
  errno: number,
  bytes: number,
  length: number,
): MoatError {
  const name = JSON.stringify(path);
  if (errno === ETIMEDOUT || errno === EBUSY) {
    return new GuardTimeoutError(
      `${what} ${name}: an access to the buffer waited longer than guardTimeout`,
      { hint: "await the operation before using the buffer, or raise guardTimeout" },
    );
  }
  if (errno === EBADF) {
    return new MoatError("PERMISSION_DENIED", `${what} ${name}: it was not opened for that`, {
      errno,
      hint: "pass write: true (or read: true) to pool.open()",
    });
  }
  if (errno === ECANCELED) {
    return new MoatError("ABORTED", `${what} ${name}: the thread that began it has ended`);
  }
  return fileError(length > 0 ? `${what} (${bytes} of ${length} bytes done)` : what, path, errno);
}

/** Opens a file for a pool. For {@linkcode Pool.open}. */
export function openForPool(core: PoolCore, path: string, options: OpenOptions): File {
  core.assertOpen();
  return make(core, openFile(core.helper, path, options));
}
