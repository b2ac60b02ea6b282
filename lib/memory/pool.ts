/**
 * Pools of page-guarded memory.
 *
 * @module
 */
import { describe, MoatError } from "../../ffi/errors.ts";
import { QUERY } from "../../ffi/helper.ts";
import { timesReplaced } from "../../ffi/sigsegv.ts";
import { faultBell } from "../reactor.ts";
import { type File, openForPool } from "../file/file.ts";
import { mapForPool, type MapOptions, type MappedFile } from "../file/mapped.ts";
import type { OpenOptions } from "../file/open.ts";
import { makeBuffer, type PoolBuffer } from "./buffer.ts";
import { PoolCore } from "./core.ts";
import type { FaultListener } from "./fault_log.ts";
import type { Fault } from "./faults.ts";
import { swap } from "./swap.ts";
import { combine, type PoolStats } from "./stats.ts";
import { type Tracer, tracer } from "./trace.ts";
import { assertVerify, type Verify } from "./verify.ts";

/** Settings of a {@linkcode Pool}. */
export interface PoolOptions {
  /** Bytes that buffers can be made of, rounded up to whole pages. 64 MiB by default. */
  bytes?: number;
  /**
   * Bytes of further frames for private pages and eager copies; half of `bytes` by default. Memory is
   * used only when a page is first written.
   */
  reserve?: number;
  /** Milliseconds an access may wait for an operation in flight. 10,000 by default. */
  guardTimeout?: number;
  /**
   * Bytes below which `"auto"` copies and from which it is `"cow"`. By default the cheaper of the two is
   * found by measuring, for each buffer.
   */
  copyThreshold?: number;
  /**
   * Puts buffers of 256 KiB and more on huge pages (2 MiB) when they are first allocated, which makes their
   * guards many times cheaper. True by default; takes effect where the kernel has `MADV_COLLAPSE` (6.1).
   */
  hugePages?: boolean;
  /**
   * Records the stack of every call that starts an operation, for {@linkcode Pool.onFault}. That costs 1 to 4 us a
   * call. On Bun, a function that ends by returning what the call returned is not on it.
   */
  trace?: boolean;
  /**
   * Finds writes to what is sent, or written to a file, with the guard `"none"` after they happened: see
   * {@linkcode SendOptions.verify}.
   */
  verify?: Verify;
}

let access: (pool: Pool) => PoolCore;

/**
 * Memory for zero-copy I/O whose buffers may be touched while they are being sent or received.
 *
 * A pool is one block of shared memory, mapped twice: devices use one view, the program the other, and
 * only the program's view is ever protected. See {@linkcode Guard}.
 *
 * @example A pool and a buffer
 * ```ts
 * import { Pool } from "@moat/rdma";
 *
 * await using pool = Pool.create({ bytes: 16 << 20 });
 * using buf = pool.alloc(1 << 20);
 * buf.bytes.fill(7);
 * ```
 */
export class Pool implements AsyncDisposable {
  readonly #core: PoolCore;
  readonly #tracer: Tracer | undefined;
  #onFault: ((fault: Fault) => void) | undefined;

  static {
    access = (pool) => pool.#core;
  }

  private constructor(options: PoolOptions) {
    const bytes = size("bytes", options.bytes ?? 64 << 20, 1);
    assertVerify("Pool.create", options.verify);
    this.#tracer = tracer();
    this.#core = new PoolCore(this, {
      bytes,
      reserve: size("reserve", options.reserve ?? Math.max(Math.ceil(bytes / 2), 1 << 20), 0),
      guardTimeout: milliseconds(options.guardTimeout ?? 10_000),
      copyThreshold: options.copyThreshold === undefined
        ? undefined
        : size("copyThreshold", options.copyThreshold, 0),
      trace: (options.trace ?? false) || this.#tracer !== undefined,
      verify: options.verify,
      hugePages: options.hugePages ?? true,
    });
    if (this.#tracer) {
      this.#tracer.add(this.#core);
      this.#watch(this.#core);
    }
  }

  /**
   * Makes a pool.
   *
   * @throws {MoatError} `INVALID_ARGUMENT` for a size or time that cannot be; `SYSTEM` when the memory
   * cannot be had; `UNSUPPORTED_PLATFORM`, `LIBRARY_NOT_FOUND` or `HELPER_BROKEN` where the library
   * cannot work at all.
   */
  static create(options: PoolOptions = {}): Pool {
    return new Pool(options);
  }

  /** Bytes that buffers can be made of. */
  get byteLength(): number {
    return this.#core.pages * this.#core.pageSize;
  }

  /**
   * Makes a buffer of `bytes` bytes, on pages of its own.
   *
   * @throws {MoatError} `INVALID_ARGUMENT` for a size that cannot be, `POOL_EXHAUSTED` when there is no
   * room, `POOL_CLOSED`.
   */
  alloc(bytes: number): PoolBuffer {
    size("alloc", bytes, 1);
    if (bytes > this.byteLength) {
      throw new MoatError(
        "INVALID_ARGUMENT",
        `alloc of ${bytes} bytes: the pool has ${this.byteLength}`,
        { hint: "make the pool larger, or the buffer smaller" },
      );
    }
    return makeBuffer(this.#core, this.#core.takePages(bytes), bytes);
  }

  /**
   * Exchanges the contents of two buffers, or of two parts of buffers, by exchanging the pages behind them:
   * nothing is copied, and it costs the same whatever they hold. Both stay valid, and so do their views.
   *
   * Sends in flight and snapshots keep what they had. An exchange is refused while a receive is pending on
   * either side, or a send whose guard is tied to its place: `"wait"` or `"none"`.
   *
   * @param a a buffer, or a view that begins and ends where pages do (or where its buffer does)
   * @param b the same number of bytes of this pool, which do not overlap
   * @throws {MoatError} `INVALID_ARGUMENT`, `BUFFER_FREED`, `DETACHED_VIEW`, `FOREIGN_BUFFER`; `BUFFER_BUSY` while
   * an operation is in the way; `POOL_EXHAUSTED` if the process has no mappings left. Nothing is exchanged then.
   */
  swap(a: PoolBuffer | Uint8Array, b: PoolBuffer | Uint8Array): void {
    swap(this.#core, a, b);
  }

  /**
   * Opens a file whose data moves straight between the disk and this pool's pages.
   *
   * @param path the file; for the kernel, relative to the working directory of the process
   * @throws {MoatError} `INVALID_ARGUMENT`; `PERMISSION_DENIED`; `SYSTEM` with the errno of open(2);
   * `POOL_CLOSED`
   */
  open(path: string, options: OpenOptions = {}): File {
    return openForPool(this.#core, path, options);
  }

  /**
   * Maps a file as a buffer over the page cache.
   *
   * @param path the file; for the kernel, relative to the working directory of the process
   * @throws {MoatError} `INVALID_ARGUMENT` for a range the file does not have; `PERMISSION_DENIED`; `SYSTEM` with
   * the errno of open(2) or mmap(2); `POOL_CLOSED`
   */
  map(path: string, options: MapOptions = {}): MappedFile {
    const file = mapForPool(this.#core, path, options);
    for (const core of this.#listeners().length > 0 ? this.#core.mapped : []) this.#watch(core);
    return file;
  }

  /**
   * Called for every fault on a guarded page, soon after it: how to find the line that waits. Runs on
   * the pool's thread from its event loop, never inside the access itself. At most the last 1024 faults
   * since the previous call are told; {@linkcode stats} counts all.
   *
   * There is one listener: setting another replaces it, and `undefined` removes it. An error that it throws is an
   * uncaught one, and disturbs no operation. `deno task trace` of a checkout does the adding up.
   */
  get onFault(): ((fault: Fault) => void) | undefined {
    return this.#onFault;
  }
  set onFault(listener: ((fault: Fault) => void) | undefined) {
    if (this.#core.closed) return;
    if (listener !== undefined && typeof listener !== "function") {
      throw new MoatError("INVALID_ARGUMENT", `onFault = ${describe(listener)}`, {
        hint: "set it to a function, or to undefined",
      });
    }
    this.#onFault = listener;
    for (const core of [this.#core, ...this.#core.mapped]) this.#watch(core);
  }

  #listeners(): FaultListener[] {
    const fault = this.#onFault;
    return [this.#tracer, fault && { fault }].filter((each) => each !== undefined);
  }

  #watch(core: PoolCore): void {
    // A trace has time until an operation begins or ends: ringing for every fault would slow down what it looks at.
    core.faults.listen(this.#listeners(), this.#onFault ? faultBell(this.#core) : -1);
  }

  /**
   * Counters: what the guards did, what was copied, what had to make do with less.
   *
   * @throws {MoatError} `POOL_CLOSED`
   */
  stats(): PoolStats {
    const core = this.#core;
    core.assertOpen();
    core.tellFaults();
    return combine(core.native(), core.counters, {
      bytes: this.byteLength,
      bytesAvailable: core.bytesAvailable,
      reserveFrames: core.frames - core.pages,
      freeFrames: core.helper.moat_query(QUERY.freeFrames, core.index),
      mappings: {
        used: core.helper.moat_query(QUERY.mapsUsed, core.index),
        budget: core.helper.moat_query(QUERY.mapsBudget, core.index),
      },
      handlerReplaced: timesReplaced(),
    });
  }

  /**
   * Waits until no operation is in flight, detaches every view and gives the memory back. Close the
   * channels that use the pool first.
   */
  async close(): Promise<void> {
    await this.#core.idle();
    this.#core.destroy(); // which tells the last faults
    this.#onFault = undefined;
  }

  /** The same as {@linkcode close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** The inside of a pool, for the rest of the library. */
export function coreOf(pool: Pool): PoolCore {
  return access(pool);
}

function size(what: string, value: unknown, least: number): number {
  if (typeof value !== "number" || !Number.isFinite(value) || value < least || value % 1 !== 0) {
    throw new MoatError(
      "INVALID_ARGUMENT",
      `${what} of ${describe(value)} bytes`,
      { hint: `pass a whole number of bytes, at least ${least}` },
    );
  }
  return value;
}

function milliseconds(value: unknown): number {
  if (typeof value !== "number" || !(value >= 0) || value > 86_400_000) {
    throw new MoatError("INVALID_ARGUMENT", `guardTimeout of ${describe(value)}`, {
      hint: "pass milliseconds, from 0 to 86400000 (a day)",
    });
  }
  return value;
}
