/**
 * Snapshots: immutable versions of a buffer.
 *
 * @module
 */
import { GuardTimeoutError, MoatError } from "../../ffi/errors.ts";
import { QUERY } from "../../ffi/helper.ts";
import { C, libc, map, mapAligned } from "../../ffi/libc.ts";
import { DESC, OP } from "../../ffi/layout.ts";
import { runtime } from "../../ffi/runtime.ts";
import type { BufferState, SharedHandle } from "./buffer.ts";
import type { PoolCore, Region } from "./core.ts";
import { AutoGuard } from "./guard.ts";
import { Ranges } from "./ranges.ts";

/** What the library holds of a snapshot until it is released. Nothing here keeps the snapshot alive. */
interface Version {
  /** The operation that holds its frames. */
  readonly op: number;
  /** The first page of the buffer it was taken of. */
  readonly start: number;
  view: View | undefined;
}

/** Where a snapshot is read. */
interface View {
  readonly page: number;
  readonly pages: number;
  readonly runs: number;
  readonly memory: WeakRef<ArrayBuffer>;
  /** The pool's count of stray writes when this view was last whole. */
  writes: number;
  readonly address: number;
  /** Another thread may be reading it. */
  shared: boolean;
}

/** The snapshots of a pool: which there are, and where they are read. */
export class Snapshots {
  readonly #core: PoolCore;
  readonly #live = new Set<Version>();
  readonly #collected = new FinalizationRegistry<Version>((version) => this.release(version));
  // A view keeps its snapshot from being collected.
  readonly #keepers = new WeakMap<ArrayBuffer, Snapshot>();
  #address = 0;
  #aliases: Ranges | undefined;
  #escaped = false;

  /** Made with its pool. */
  constructor(core: PoolCore) {
    this.#core = core;
  }

  /** Takes a snapshot of a region. */
  take(region: Region, bytes: Uint8Array): Snapshot {
    const core = this.#core, op = core.snapshot(region, bytes);
    if (op < 0) throw core.refusal("snapshot", op);
    const version: Version = { op, start: region.state.page, view: undefined };
    const state: BufferState = {
      core,
      version: op,
      page: 0,
      pages: 0,
      byteLength: region.length,
      memory: undefined,
      busy: 0,
      freed: false,
      guarded: false,
      shared: false,
      auto: new AutoGuard(0, 0),
    };
    core.faults.began(op, {
      kind: "snapshot",
      state: undefined,
      guard: "cow",
      stack: core.stack(),
    });
    const snapshot = make(core, state, version);
    core.adoptSnapshot(snapshot, state);
    this.#live.add(version);
    this.#collected.register(snapshot, version, version);
    return snapshot;
  }

  /** Maps a version for reading, and makes a view of it. */
  open(snapshot: Snapshot, version: Version): ArrayBuffer {
    const { helper, index, pageSize } = this.#core;
    this.#prepare();
    const desc = new DataView(
      runtime().viewOf(helper.moat_op_address(version.op) + OP.desc, DESC.size),
    );
    const runs = desc.getUint32(DESC.nruns, true), offset = desc.getUint32(DESC.off, true);
    let page = desc.getUint32(DESC.runs, true);
    (desc.buffer as ArrayBuffer).transfer(0);
    const pages = Math.ceil((offset + snapshot.byteLength) / pageSize);
    let address = helper.moat_view_open(version.op, -1);
    if (address === 0) {
      const at = this.#aliases!.take(pages);
      address = at < 0 ? -ENOMEM : helper.moat_view_open(version.op, at);
      if (address < 0 && at >= 0) this.#aliases!.give(at, pages);
      page = this.#core.frames + at;
    }
    if (address < 0) throw this.#core.refusal("reading a snapshot", address);
    const memory = runtime().viewOf(address, snapshot.byteLength);
    const writes = helper.moat_query(QUERY.viewWrites, index);
    const where = { page, pages, runs, address };
    version.view = { ...where, memory: new WeakRef(memory), writes, shared: false };
    this.#keepers.set(memory, snapshot);
    return memory;
  }

  // The address range in which versions are read: every frame at its place, read-only, and behind them places
  // for those in several pieces, or of frames that are being read already. Addresses cost nothing.
  #prepare(): void {
    if (this.#aliases) return;
    const { helper, index, frames, memfd, pageSize } = this.#core, bytes = frames * pageSize;
    const reserve = C.MAP_PRIVATE | C.MAP_ANONYMOUS | C.MAP_NORESERVE;
    this.#address = mapAligned(bytes * (1 + PLACES), C.PROT_NONE, reserve, -1);
    map(bytes, C.PROT_READ, C.MAP_SHARED | C.MAP_FIXED, memfd, 0, this.#address);
    const r = helper.moat_views_add(index, this.#address, frames * PLACES, memfd);
    if (r < 0) throw this.#core.refusal("reading a snapshot", r);
    this.#aliases = new Ranges(frames * PLACES);
  }

  /** Puts back what the program has written to a view. True if there was something. */
  restore(version: Version): boolean {
    const { helper, index } = this.#core, { view } = version;
    if (!view) return false;
    const writes = helper.moat_query(QUERY.viewWrites, index);
    if (writes === view.writes) return false;
    view.writes = writes;
    return helper.moat_view_restore(index, view.page, view.pages) > 0;
  }

  /** Lets go of a version's frames and detaches its view. */
  release(version: Version): void {
    if (!this.#live.delete(version)) return;
    this.#collected.unregister(version);
    const { helper, index, frames } = this.#core, { view, op } = version;
    const memory = view?.memory.deref(), escaped = memory?.detached || view?.shared;
    if (!memory?.detached) memory?.transfer(0);
    if (escaped) {
      this.#escaped = true; // somebody may look at it: the place is not used again
    } else if (view) {
      helper.moat_view_close(index, view.page, view.pages, view.runs);
      if (view.page >= frames) this.#aliases!.give(view.page - frames, view.pages);
    }
    this.#core.faults.ended(op, version.start);
    helper.moat_op_done(op, 0);
    helper.moat_op_free(op);
  }

  /** Releases all. */
  close(): void {
    for (const version of [...this.#live]) this.release(version);
    if (!this.#aliases) return;
    const bytes = this.#core.frames * this.#core.pageSize * (1 + PLACES);
    if (this.#escaped) {
      const flags = C.MAP_PRIVATE | C.MAP_ANONYMOUS | C.MAP_NORESERVE | C.MAP_FIXED;
      map(bytes, C.PROT_READ | C.PROT_WRITE, flags, -1, 0, this.#address);
    } else {
      libc().munmap(this.#address, bytes);
    }
  }
}

const ENOMEM = 12;

/** The bytes of all versions that are read at once, in sizes of the pool. */
const PLACES = 15;

let make: (core: PoolCore, state: BufferState, version: Version) => Snapshot;

/**
 * A version of a buffer that does not change. Made by {@linkcode PoolBuffer.snapshot}.
 *
 * It holds the pages the buffer had; the buffer's next write to each of them goes to another page. Taking one
 * copies nothing. It can be read, and sent on any channel of its pool any number of times, while the buffer
 * goes on changing.
 *
 * @example One version to many, while the producer goes on
 * ```ts ignore
 * using version = buf.snapshot();
 * const sent = channels.map((channel) => channel.send(version));
 * buf.bytes.fill(0); // the next version
 * await Promise.all(sent);
 * ```
 */
export class Snapshot implements Disposable {
  /** The number of bytes. */
  readonly byteLength: number;
  readonly #core: PoolCore;
  readonly #state: BufferState;
  readonly #version: Version;
  #bytes: Uint8Array<ArrayBuffer> | undefined;

  static {
    make = (core, state, version) => new Snapshot(core, state, version);
  }

  private constructor(core: PoolCore, state: BufferState, version: Version) {
    this.#core = core;
    this.#state = state;
    this.#version = version;
    this.byteLength = state.byteLength;
  }

  /**
   * The bytes of this version: the same view each time, for reading. A write to it never changes the version:
   * it lands on a private page, which is taken away when `bytes` is next asked for, or the snapshot is sent;
   * that throws `SNAPSHOT_WRITTEN` once.
   *
   * @throws {MoatError} `BUFFER_FREED` after {@linkcode release}; `SNAPSHOT_WRITTEN`; `GUARD_TIMEOUT` if the
   * buffer was written to when no frame was left to keep this version in; `POOL_EXHAUSTED` if the process has
   * no mappings left.
   */
  get bytes(): Uint8Array<ArrayBuffer> {
    const { versions, helper } = this.#core;
    this.#core.assertLive(this.#state);
    if (helper.moat_snapshot_broken(this.#version.op) === 1) {
      throw new GuardTimeoutError(
        "a snapshot whose buffer was written to when the pool had no frame to keep both",
        { hint: "give Pool.create() a larger reserve, or release snapshots earlier" },
      );
    }
    if (!this.#bytes) {
      const memory = versions.open(this, this.#version);
      this.#core.adoptView(memory, this.#state);
      this.#bytes = new Uint8Array(memory);
    } else if (versions.restore(this.#version)) {
      throw new MoatError(
        "SNAPSHOT_WRITTEN",
        "the program has written to the bytes of a snapshot; they have been put back",
        { hint: "write to the buffer it was taken of, or to a copy: snapshot.bytes.slice()" },
      );
    }
    return this.#bytes;
  }

  /**
   * A handle by which Workers of this process can read the version: see {@linkcode viewShared}. Any number of
   * readers share its pages. A write of theirs is kept from the version as one of this thread is.
   *
   * After {@linkcode release} their views show whatever the pages are used for next; they never become invalid
   * memory.
   *
   * @throws {MoatError} as {@linkcode bytes} does
   */
  share(): SharedHandle {
    void this.bytes; // makes the view, or says what is wrong with it
    const view = this.#version.view!;
    view.shared = true;
    return { address: view.address, byteLength: this.byteLength };
  }

  /** True after {@linkcode release}. */
  get released(): boolean {
    return this.#state.freed;
  }

  /**
   * Lets go of the version: its view is detached, and the frames that nothing else holds are free. Sends of it
   * that are under way go on. The second time it does nothing.
   */
  release(): void {
    if (this.#state.freed) return;
    this.#state.freed = true;
    this.#core.versions.release(this.#version);
  }

  /** The same as {@linkcode release}. */
  [Symbol.dispose](): void {
    this.release();
  }
}
