/**
 * Buffers of a pool.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { runtime } from "../../ffi/runtime.ts";
import type { Pool } from "./pool.ts";
import type { PoolCore } from "./core.ts";
import { AutoGuard } from "./guard.ts";
import type { Snapshot } from "./snapshot.ts";

/**
 * What a {@linkcode PoolBuffer} needs to be seen from another Worker: plain numbers, which
 * `postMessage` takes. {@linkcode viewShared} makes a view of it.
 */
export interface SharedHandle {
  /** The address of the first byte in this process. */
  readonly address: number;
  /** The number of bytes. */
  readonly byteLength: number;
}

let make: (core: PoolCore, place: Place, byteLength: number) => PoolBuffer;

/**
 * A buffer of whole pages from a {@linkcode Pool}, to be sent and received without copying.
 *
 * The program may use {@linkcode bytes} at any time. While an operation holds a page, the guard
 * decides what an access does: see {@linkcode Guard}.
 *
 * A system call that reads into or writes from the buffer is not the program: the kernel fails with
 * `EFAULT` where the program would have waited. So await the operation first, and then take
 * {@linkcode bytes} from the buffer again: that gives back write permission which a finished send
 * may have left for the first write to restore.
 */
export class PoolBuffer implements Disposable {
  /** The number of bytes asked for. */
  readonly byteLength: number;
  /** The first page in the pool's window, as {@linkcode Fault.bufferPage} names it. */
  readonly page: number;
  readonly #core: PoolCore;
  readonly #state: BufferState;
  readonly #bytes: Uint8Array<ArrayBuffer>;

  static {
    make = (core, place, byteLength) => new PoolBuffer(core, place, byteLength);
  }

  private constructor(core: PoolCore, { page, pages, guarded }: Place, byteLength: number) {
    this.#core = core;
    this.page = page;
    this.byteLength = byteLength;
    const memory = runtime().viewOf(core.window + page * core.pageSize, byteLength);
    this.#bytes = new Uint8Array(memory);
    this.#state = {
      core,
      page,
      pages,
      byteLength,
      memory: new WeakRef(memory),
      busy: 0,
      freed: false,
      guarded,
      shared: false,
      auto: new AutoGuard(
        core.copyCostPerByte(byteLength),
        byteLength < core.copyThreshold ? 8 : 0,
      ),
    };
    core.adopt(this, memory, this.#state);
  }

  /** The pool it belongs to. */
  get pool(): Pool {
    return this.#core.pool;
  }

  /**
   * The bytes: the same view each time. After {@linkcode free} and after a send with the guard
   * `"move"` it is detached: its length is 0.
   *
   * The contents of a new buffer are whatever its pages held; call `fill(0)` if that matters.
   */
  get bytes(): Uint8Array<ArrayBuffer> {
    if (this.#state.guarded && this.#state.busy === 0) this.#core.unguardIdle(this.#state);
    return this.#bytes;
  }

  /** True after {@linkcode free} and after a send with the guard `"move"`. */
  get freed(): boolean {
    return this.#state.freed;
  }

  /**
   * A handle by which a Worker of this process can see the same bytes, guards included.
   *
   * The view in the Worker cannot be detached from here: after {@linkcode free} it shows whatever the
   * pages are used for next. It never becomes invalid memory, not even when the pool is closed.
   *
   * @throws {MoatError} `BUFFER_FREED`
   */
  share(): SharedHandle {
    this.#core.assertLive(this.#state);
    this.#state.shared = true;
    this.#core.keepAddresses = true;
    return {
      address: this.#core.window + this.page * this.#core.pageSize,
      byteLength: this.byteLength,
    };
  }

  /**
   * Takes an immutable version of the buffer, without copying: see {@linkcode Snapshot}. If a receive is
   * pending, it waits for that, as any access would.
   *
   * @throws {MoatError} `BUFFER_FREED`, `DETACHED_VIEW`; `POOL_EXHAUSTED` if the process has no mappings left;
   * `TOO_MANY_OPERATIONS`
   */
  snapshot(): Snapshot {
    return this.#core.takeSnapshot(this);
  }

  /**
   * Gives the buffer back to the pool. Its view is detached at once; its pages are used again when no
   * operation needs them any more.
   *
   * @throws {MoatError} `BUFFER_FREED` if it has been freed before.
   */
  free(): void {
    if (this.#state.freed) {
      throw new MoatError("BUFFER_FREED", "free() of a buffer that is freed already", {
        hint: 'free a buffer once; a send with guard "move" frees it too',
      });
    }
    this.#core.retire(this.#state);
  }

  /** Frees the buffer unless it has been. */
  [Symbol.dispose](): void {
    if (!this.#state.freed) this.#core.retire(this.#state);
  }
}

/** Makes a buffer of pages that were taken for it. For {@linkcode Pool.alloc}. */
export function makeBuffer(core: PoolCore, place: Place, byteLength: number): PoolBuffer {
  return make(core, place, byteLength);
}

/** Where a buffer is. */
export interface Place {
  readonly page: number;
  readonly pages: number;
  /** A snapshot of what was there before holds pages of it, so they are closed to writes. */
  readonly guarded: boolean;
}

/** What the library knows of a buffer. */
export interface BufferState {
  readonly core: PoolCore;
  readonly page: number;
  readonly pages: number;
  readonly byteLength: number;
  /** What the views are made on. Weak: a buffer whose last view is gone comes back by itself. */
  memory: WeakRef<ArrayBuffer> | undefined;
  /** Of a snapshot: the operation that holds its frames. It has no pages of the window. */
  readonly version?: number;
  /** Operations that hold pages of it. */
  busy: number;
  freed: boolean;
  /** A guard may have left pages closed to writes. */
  guarded: boolean;
  /** A handle was made for other threads. */
  shared: boolean;
  readonly auto: AutoGuard;
}

/**
 * A view of a buffer that another Worker of this process shares.
 *
 * @param handle from {@linkcode PoolBuffer.share}
 */
export function viewShared(handle: SharedHandle): Uint8Array<ArrayBuffer> {
  const { address, byteLength } = handle ?? {};
  const fine = (n: number): boolean => Number.isSafeInteger(n) && n > 0;
  if (!fine(address) || !fine(byteLength)) {
    throw new MoatError("INVALID_ARGUMENT", `not a handle: ${JSON.stringify(handle)}`, {
      hint: "pass what PoolBuffer.share() returned, in this process",
    });
  }
  return new Uint8Array(runtime().viewOf(address, byteLength));
}
