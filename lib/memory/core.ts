/**
 * The inside of a pool: its two mappings, its buffers, and operations on their pages.
 *
 * @module
 */
import { GuardTimeoutError, MoatError, systemError } from "../../ffi/errors.ts";
import { type Helper, helper } from "../../ffi/helper.ts";
import { ensureHandler } from "../../ffi/sigsegv.ts";
import { C, libc, map, pageSize } from "../../ffi/libc.ts";
import { runtime } from "../../ffi/runtime.ts";
import type { BufferState, Place, PoolBuffer } from "./buffer.ts";
import { calibrate, type Calibration } from "./calibrate.ts";
import { FaultLog } from "./fault_log.ts";
import type { OperationKind } from "./faults.ts";
import { type Guard, GUARD_NUMBER, type ReceiveGuard } from "./guard.ts";
import type { Pool } from "./pool.ts";
import { type Snapshot, Snapshots } from "./snapshot.ts";
import { Posted } from "./posted.ts";
import { Ranges } from "./ranges.ts";
import { rememberMemory, rememberObject, resolveData } from "./resolve.ts";
import type { MappedFile } from "../file/mapped.ts";
import type { Mapping } from "./mapping.ts";
import { newMemory, type PoolMemory } from "./memory.ts";
import { addNative, Counters, readNative } from "./stats.ts";
import type { Verify } from "./verify.ts";

/** A part of a buffer. */
export interface Region {
  readonly state: BufferState;
  readonly offset: number;
  readonly length: number;
}

/** What an operation on pool pages needs until it ends, and whom to tell. */
export interface Operation {
  readonly kind: OperationKind;
  readonly state: BufferState | undefined;
  /** The guard it has. */
  readonly guard?: Exclude<Guard, "auto"> | undefined;
  /** The call that started it, if the pool traces. */
  readonly stack: Posted | undefined;
}

/** What the inside of a mapped file stands on. */
interface Mapped {
  readonly parent: PoolCore;
  readonly mapping: Mapping;
  readonly memory: PoolMemory;
}

/** The settings of a pool after defaults. */
export interface CoreOptions {
  bytes: number;
  reserve: number;
  guardTimeout: number;
  copyThreshold: number | undefined;
  trace: boolean;
  verify?: Verify | undefined;
  hugePages: boolean;
}

const EAGAIN = 11, EBUSY = 16, EINVAL = 22, ENOMEM = 12, ENFILE = 23, ENOBUFS = 105;

// Pages of 4 KiB in a huge page.
const HUGE = 512;
// Pages from which a buffer is worth huge pages: below, it is copied anyway.
const LARGE = 64;

// Operations in flight of this isolate, by the helper's number.
const operations: (Operation | undefined)[] = [];

/** The inside of a {@linkcode Pool}. */
export class PoolCore {
  readonly pool: Pool;
  readonly helper: Helper;
  readonly index: number;
  readonly pageSize: number;
  readonly pages: number;
  readonly frames: number;
  readonly memfd: number;
  /** The linear view of all frames, always read-write: what devices use. */
  readonly device: number;
  /** What buffers are made of. */
  readonly window: number;
  readonly counters: Counters;
  /** Set if this is the inside of a mapped file. */
  readonly mapping: Mapping | undefined;
  /** The insides of the files that are mapped with this pool. */
  readonly mapped: Set<PoolCore> = new Set<PoolCore>();
  readonly #parent: PoolCore | undefined;
  readonly #guardTimeout: number;
  /** Whether huge pages may be made; false once the kernel has refused. */
  hugePages: boolean;
  readonly trace: boolean;
  readonly verify: Verify | undefined;
  readonly copyThreshold: number;
  readonly #fixedThreshold: boolean;
  readonly #calibration: Calibration;
  readonly #ranges: Ranges;
  readonly #live = new Set<BufferState>();
  /** Its snapshots. */
  readonly versions: Snapshots = new Snapshots(this);
  readonly #collapsed = new Set<number>();
  readonly #collected: FinalizationRegistry<BufferState>;
  /** What is told of its faults. */
  readonly faults: FaultLog;
  #left: number[] = [];
  #busy = 0;
  #idle: (() => void)[] = [];
  #closed = false;
  readonly #closers = new Set<() => void>();
  /** Somebody outside may still look at the window: keep its addresses reserved after close. */
  keepAddresses = false;

  /** @param mapped what it stands on if it is that of a mapped file */
  constructor(pool: Pool, options: CoreOptions, mapped?: Mapped) {
    this.pool = pool;
    this.helper = helper();
    this.pageSize = pageSize();
    this.pages = Math.ceil(options.bytes / this.pageSize);
    this.frames = this.pages + Math.ceil(options.reserve / this.pageSize);
    this.trace = options.trace;
    this.verify = options.verify;
    this.counters = mapped?.parent.counters ?? new Counters();
    this.#guardTimeout = options.guardTimeout;
    this.hugePages = options.hugePages && this.pageSize === 4096;
    this.#calibration = calibrate();
    this.#fixedThreshold = options.copyThreshold !== undefined;
    this.copyThreshold = options.copyThreshold ?? this.#calibration.threshold;
    const memory = mapped?.memory ??
      newMemory(this.pages * this.pageSize, this.frames * this.pageSize);
    this.memfd = memory.memfd;
    this.device = memory.device;
    this.window = memory.window;
    this.mapping = mapped?.mapping;
    this.#parent = mapped?.parent;
    try {
      this.index = this.helper.moat_pool_add(
        this.window,
        this.device,
        this.pages,
        this.frames,
        options.guardTimeout * 1e6,
      );
      if (this.index < 0) {
        const hint = "a process can have 256 pools and mapped files";
        throw systemError("adding a pool", -this.index, hint);
      }
    } catch (error) {
      this.#unmap();
      throw error;
    }
    this.#ranges = new Ranges(this.pages);
    this.faults = new FaultLog({
      helper: this.helper,
      index: this.index,
      pageSize: this.pageSize,
      file: this.mapping?.path,
      running: (op, page) => this.#running(op, page),
    });
    // A buffer nobody can reach any more comes back by itself.
    this.#collected = new FinalizationRegistry((state) => {
      if (!state.freed) this.retire(state);
    });
  }

  /** The inside of a mapped file: a pool of its own in the helper, whose first frames are the file's pages. */
  static ofFile(
    parent: PoolCore,
    mapping: Mapping,
    memory: PoolMemory,
    size: { bytes: number; reserve: number },
  ): PoolCore {
    const core = new PoolCore(parent.pool, {
      ...size,
      guardTimeout: parent.#guardTimeout,
      copyThreshold: parent.#fixedThreshold ? parent.copyThreshold : undefined,
      trace: parent.trace,
      verify: parent.verify,
      hugePages: false,
    }, { parent, mapping, memory });
    mapping.index = core.index;
    core.helper.moat_map_begin(core.index, mapping.writable ? 0 : 1);
    parent.mapped.add(core);
    return core;
  }

  // ---- buffers

  /** Takes pages for a buffer. */
  takePages(byteLength: number): Place {
    this.assertOpen();
    const pages = Math.ceil(byteLength / this.pageSize);
    // Aligned where that wastes no more than an eighth; what is left between is used for smaller buffers.
    const align = this.hugePages && (pages % HUGE === 0 || pages >= 8 * HUGE);
    let page = align ? this.#ranges.take(pages, HUGE) : -1;
    if (page < 0) page = this.#ranges.take(pages);
    if (page < 0) {
      const free = this.#ranges.available * this.pageSize;
      throw new MoatError(
        "POOL_EXHAUSTED",
        `alloc of ${byteLength} bytes: ${free} of the pool's ${
          this.pages * this.pageSize
        } bytes are free` +
          (free >= byteLength ? ", but not in one piece" : ""),
        { hint: "free buffers, or make the pool larger" },
      );
    }
    const guarded = this.helper.moat_buf_open(this.index, page, pages) === 1;
    if (pages >= LARGE) this.#collapse(page, pages);
    if (guarded) ensureHandler(this.helper);
    return { page, pages, guarded };
  }

  /** Remembers a new buffer. */
  adopt(buffer: PoolBuffer | MappedFile, memory: ArrayBuffer, state: BufferState): void {
    rememberObject(buffer, state);
    rememberMemory(memory, state);
    this.#live.add(state);
    // The buffer and every view of it hold the ArrayBuffer; nothing here does.
    this.#collected.register(memory, state, state);
  }

  /** Remembers a new snapshot, and its view when one is made. */
  adoptSnapshot(snapshot: Snapshot, state: BufferState): void {
    rememberObject(snapshot, state);
  }
  adoptView(memory: ArrayBuffer, state: BufferState): void {
    state.memory = new WeakRef(memory);
    rememberMemory(memory, state);
  }

  /** Takes a snapshot of a buffer. */
  takeSnapshot(buffer: PoolBuffer): Snapshot {
    const { region, bytes } = resolveData(this, buffer, "snapshot");
    return this.versions.take(region!, bytes);
  }

  /** Detaches a buffer's view; its pages are free when no operation holds them. */
  retire(state: BufferState): void {
    if (state.core !== this) return state.core.retire(state);
    state.freed = true;
    this.#collected.unregister(state);
    const memory = state.memory?.deref();
    if (memory?.detached) this.keepAddresses = true; // transferred: an alias is somewhere
    else memory?.transfer(0);
    if (state.busy === 0) this.#recycle(state);
  }

  #recycle(state: BufferState): void {
    if (state.version !== undefined) return;
    this.#live.delete(state);
    if (this.#closed) return;
    if (this.mapping) return this.destroy();
    this.helper.moat_buf_close(this.index, state.page, state.pages);
    this.#ranges.give(state.page, state.pages);
  }

  /** Gives back write permission that finished sends left to be restored. */
  unguardIdle(state: BufferState): void {
    if (state.freed || this.#closed) return;
    const left = this.helper.moat_restore(this.index, state.page, state.pages);
    state.guarded = left !== 0;
  }

  assertOpen(): void {
    if (this.#closed) {
      throw new MoatError("POOL_CLOSED", "the pool has been closed", {
        hint: "make another with Pool.create()",
      });
    }
  }

  assertLive(state: BufferState): void {
    if (!this.mapping) this.assertOpen(); // that of a mapped file goes when it is freed
    if (state.freed) {
      const [what, hint] = state.version === undefined
        ? ["the buffer has been freed or given away", "allocate another with pool.alloc()"]
        : ["the snapshot has been released", "take another with buffer.snapshot()"];
      throw new MoatError("BUFFER_FREED", what, { hint });
    }
  }

  // ---- operations

  /** Starts a send of a region with its pages under a guard. Returns its number, or -errno. */
  out(region: Region, bytes: Uint8Array, guard: Exclude<Guard, "auto" | "copy">): number {
    const { state, offset, length } = region, { helper, index } = this;
    if (state.version !== undefined) return helper.moat_out_of(state.version, offset, length);
    return this.#hold(
      region,
      bytes,
      guard === "cow" || guard === "wait",
      (page, pages, within) =>
        helper.moat_out(index, page, pages, within, length, GUARD_NUMBER[guard]),
    );
  }

  /** Starts to hold a version of a region. Returns its number, or -errno. */
  snapshot(region: Region, bytes: Uint8Array): number {
    return this.#hold(
      region,
      bytes,
      true,
      (page, pages, within) =>
        this.helper.moat_snapshot(this.index, page, pages, within, region.length),
    );
  }

  // Starts an operation that reads pages; what is still being received is waited for.
  #hold(
    { state, offset, length }: Region,
    bytes: Uint8Array,
    guarded: boolean,
    start: (page: number, pages: number, within: number) => number,
  ): number {
    if (guarded) {
      ensureHandler(this.helper);
      state.guarded = true;
    }
    const first = Math.floor(offset / this.pageSize);
    const pages = Math.ceil((offset + length) / this.pageSize) - first;
    const page = state.page + first, within = offset - first * this.pageSize;
    for (let tries = 0;; tries++) {
      const op = start(page, pages, within);
      if (op !== -EBUSY) {
        if (op >= 0) this.faults.holds(op, page, pages);
        return op;
      }
      // A receive is pending on a page: what is to be sent is what it will hold. Reading it waits.
      if (tries === 3) {
        throw new GuardTimeoutError("send of a buffer that is still being received", {
          hint: "await the receive first",
        });
      }
      let sink = 0;
      for (let at = 0; at < length; at += this.pageSize) sink ^= bytes[at]!;
      sink ^= bytes[length - 1]!;
      touched = sink;
    }
  }

  // Guarding 2 MiB on a huge page costs one entry of the page table instead of 512 (5 us a pair instead of 90,
  // measured on an EPYC in a virtual machine), and making one before its pages exist costs less than their
  // first faults would.
  #collapse(page: number, pages: number): void {
    const end = Math.min(Math.ceil((page + pages) / HUGE), Math.floor(this.pages / HUGE));
    for (let chunk = Math.floor(page / HUGE); chunk < end && this.hugePages; chunk++) {
      if (this.#collapsed.has(chunk)) continue;
      this.#collapsed.add(chunk);
      const r = this.helper.moat_collapse(this.index, chunk * HUGE);
      if (r < 0 && r !== -EINVAL && r !== -EAGAIN && r !== -EBUSY) this.hugePages = false;
    }
  }

  /** Puts the whole pool on huge pages, before a device pins it: after that they cannot be made. */
  collapseAll(): void {
    if (!this.hugePages) return;
    this.helper.moat_collapse_frames(this.index);
    this.#collapse(0, this.pages);
  }

  /** Starts a send of a copy. Returns its number, or -errno. */
  outCopy(bytes: Uint8Array, region?: Region): number {
    if (!region || this.#fixedThreshold) {
      return this.helper.moat_out_copy(this.index, bytes, bytes.byteLength);
    }
    const start = performance.now();
    const op = this.helper.moat_out_copy(this.index, bytes, bytes.byteLength);
    region.state.auto.copied(region.length, (performance.now() - start) * 1e6);
    return op;
  }

  /** The nanoseconds a copy is expected to take for each of a number of bytes. */
  copyCostPerByte(bytes: number): number {
    return this.#calibration.copyCost(bytes) / bytes;
  }

  /** Starts a send of bytes that go into frames when some are free; the caller keeps `bytes`. */
  outStaged(bytes: Uint8Array): number {
    const most = (this.frames - this.pages) * this.pageSize;
    if (bytes.byteLength > most) {
      throw new MoatError(
        "MESSAGE_TOO_LARGE",
        `a copy of ${bytes.byteLength} bytes does not fit the pool's reserve of ${most} bytes`,
        { hint: "send a PoolBuffer, or give Pool.create() a larger reserve" },
      );
    }
    this.counters.staged++;
    return this.helper.moat_out_staged(this.index, runtime().addressOf(bytes), bytes.byteLength);
  }

  /** Makes sure that the memory of a buffer may change. */
  assertWritable(state: BufferState, what: string): void {
    if (state.version !== undefined) {
      throw new MoatError("INVALID_ARGUMENT", `${what} into a snapshot, which never changes`, {
        hint: "pass a buffer of pool.alloc()",
      });
    }
    this.mapping?.assertWritable(what);
  }

  /** Starts a receive into a region. Returns its number. */
  in(region: Region, guard: ReceiveGuard, what = "recv"): number {
    const { state, offset, length } = region;
    this.assertWritable(state, what);
    if (guard === "wait") ensureHandler(this.helper);
    const first = Math.floor(offset / this.pageSize);
    const pages = Math.max(1, Math.ceil((offset + length) / this.pageSize) - first);
    const page = state.page + first;
    const op = this.helper.moat_in(
      this.index,
      page,
      pages,
      offset - first * this.pageSize,
      length,
      GUARD_NUMBER[guard],
    );
    if (op < 0) throw this.refusal(what, op);
    this.faults.holds(op, page, pages);
    return op;
  }

  /** Exchanges the frames behind two ranges of window pages. 0, or -errno with nothing exchanged. */
  exchange(a: number, b: number, pages: number): number {
    const r = this.helper.moat_swap(this.index, a, b, pages);
    if (r === 0) this.counters.swappedPages += pages;
    return r;
  }

  /** The error for an operation the helper refused. */
  refusal(what: string, errno: number): MoatError {
    if (errno === -ENFILE) {
      return new MoatError(
        "TOO_MANY_OPERATIONS",
        `${what}: 262144 operations are in flight in this process`,
        { hint: "await some of them first" },
      );
    }
    if (errno === -ENOMEM || errno === -ENOBUFS) {
      return new MoatError(
        "POOL_EXHAUSTED",
        `${what}: no ${errno === -ENOMEM ? "mapping" : "frame"} is left for the guard`,
        {
          errno: -errno,
          hint: errno === -ENOMEM
            ? "raise vm.max_map_count (sysctl), or send larger pieces"
            : "give Pool.create() a larger reserve",
        },
      );
    }
    return systemError(what, -errno);
  }

  /** The guard `"auto"` is for a region. */
  chooseAuto({ state, length }: Region): "copy" | "cow" {
    if (state.version !== undefined) return "cow"; // nothing has to be guarded
    if (this.#fixedThreshold) return length < this.copyThreshold ? "copy" : "cow";
    return state.auto.choose(length, () => this.helper.moat_buf_cost(this.index, state.page));
  }

  /** Notes that an operation has begun. */
  began(op: number, operation: Operation): void {
    operations[op] = operation;
    this.#busy++;
    const { state } = operation;
    if (!state) return;
    state.core.faults.began(op, operation);
    state.busy++;
    if (state.core !== this) state.core.#busy++;
  }

  /** The operation of a number, if it is in flight. */
  operation(op: number): Operation | undefined {
    return operations[op];
  }

  /** Notes that an operation has ended; its number may be used again after this. */
  ended(op: number): void {
    const operation = operations[op];
    if (!operation) return;
    operation.state?.core.faults.ended(op, operation.state.page);
    if (this.faults.on) this.tellFaults();
    operations[op] = undefined;
    this.helper.moat_op_free(op);
    const { state } = operation;
    if (state && --state.busy === 0 && state.freed) state.core.#recycle(state);
    this.#endOne();
    if (state && state.core !== this) state.core.#endOne();
  }

  #endOne(): void {
    if (--this.#busy === 0) { for (const resolve of this.#idle.splice(0)) resolve(); }
  }

  /** The call that starts an operation just now, if the pool traces. */
  stack(): Posted | undefined {
    return this.trace ? new Posted() : undefined;
  }

  // ---- faults

  /** Tells what has happened since the last time. */
  tellFaults(): void {
    if (this.#closed) return;
    this.faults.tell();
    for (const core of this.mapped) core.tellFaults();
  }

  #running(op: number, page: number): Operation | undefined {
    const { state } = operations[op] ?? {};
    if (state?.core !== this) return undefined;
    return state.page <= page && page < state.page + state.pages ? operations[op] : undefined;
  }

  // ---- the end

  get closed(): boolean {
    return this.#closed;
  }

  /** Bytes of the window that no buffer has. */
  get bytesAvailable(): number {
    return this.#ranges.available * this.pageSize;
  }

  /** Resolves when no operation is in flight. */
  idle(): Promise<void> {
    return this.#busy === 0
      ? Promise.resolve()
      : new Promise((resolve) => this.#idle.push(resolve));
  }

  /** Has a function called when the pool is closed, before its memory is unmapped. */
  onClose(fn: () => void): void {
    this.#closers.add(fn);
  }

  /** Takes that back. */
  offClose(fn: () => void): void {
    this.#closers.delete(fn);
  }

  /** Detaches every view and unmaps the memory. No operation may be in flight. */
  destroy(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const state of this.#live) if (!state.freed) this.retire(state);
    for (const fn of this.#closers) fn();
    this.#closers.clear();
    this.versions.close();
    this.faults.close();
    for (const core of this.mapped) core.destroy();
    this.#parent?.leave(this);
    if (this.keepAddresses) this.#blank(); // from here on nobody answers the faults of other threads
    this.helper.moat_pool_remove(this.index);
    this.#unmap();
  }

  /** A mapped file is closed: its counters stay. */
  leave(core: PoolCore): void {
    this.mapped.delete(core);
    this.#left = addNative(this.#left, readNative(core.helper, core.index));
  }

  /** The helper's counters, with those of the files mapped with this pool. */
  native(): number[] {
    let sum = addNative(this.#left, readNative(this.helper, this.index));
    for (const core of this.mapped) sum = addNative(sum, core.native());
    return sum;
  }

  // Somebody may still hold a view: it shall read zeros, not somebody else's memory.
  #blank(): void {
    const flags = C.MAP_PRIVATE | C.MAP_ANONYMOUS | C.MAP_NORESERVE | C.MAP_FIXED;
    const bytes = this.pages * this.pageSize;
    map(bytes, C.PROT_READ | C.PROT_WRITE, flags, -1, 0, this.window);
  }

  #unmap(): void {
    if (this.keepAddresses) this.#blank();
    else libc().munmap(this.window, this.pages * this.pageSize);
    libc().munmap(this.device, this.frames * this.pageSize);
    libc().close(this.memfd);
  }
}

/** Keeps reads that are made only to wait from being optimised away. */
export let touched = 0;
