/**
 * The shared-memory transport: one connection.
 *
 * Each side maps the other's pool read-only and reads messages where they lie; releasing a message is the
 * sender's completion. What moves messages along is in the helper (ffi/helper/shm.c), because a fault
 * handler that waits must be able to do it.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { C, checked, cString, libc, map, mapAligned } from "../../ffi/libc.ts";
import { DESC, OP, RING } from "../../ffi/layout.ts";
import { runtime } from "../../ffi/runtime.ts";
import type { PoolCore } from "../memory/core.ts";
import { Ranges } from "../memory/ranges.ts";
import { NativeTransport, nothing, type Opened } from "../native_transport.ts";
import type { Greeting } from "./hello.ts";
import { peerCredentials } from "./socket.ts";

/** Our half of the memory of a connection. */
export interface OwnRing {
  fd: number;
  address: number;
}

/** Makes the ring that this side writes and the other reads. */
export function makeRing(core: PoolCore): OwnRing {
  const flags = C.MFD_CLOEXEC | C.MFD_ALLOW_SEALING;
  const fd = checked("memfd_create", libc().memfd_create(cString("moat-ring"), flags));
  try {
    checked("ftruncate of a ring", libc().ftruncate(fd, RING.size));
    const address = map(RING.size, C.PROT_READ | C.PROT_WRITE, C.MAP_SHARED, fd);
    const seals = C.F_SEAL_SHRINK | C.F_SEAL_GROW | C.F_SEAL_FUTURE_WRITE | C.F_SEAL_SEAL;
    checked("sealing a ring", libc().fcntl(fd, C.F_ADD_SEALS, seals));
    const view = runtime().viewOf(address, RING.tid + 4);
    new DataView(view).setUint32(RING.state, RING.open, true);
    new DataView(view).setUint32(RING.pid, libc().getpid(), true);
    new DataView(view).setUint32(RING.tid, core.helper.moat_thread_id(), true);
    view.transfer(0);
    return { fd, address };
  } catch (error) {
    libc().close(fd);
    throw error;
  }
}

/** Gives back a ring that did not come to be used. */
export function dropRing(ring: OwnRing): void {
  libc().munmap(ring.address, RING.size);
  libc().close(ring.fd);
}

/** One `shm://` connection. */
export class ShmTransport extends NativeTransport {
  readonly name = "shm";
  readonly reaches = { out: false, in: true }; // a receive is a copy by the helper, to wherever
  readonly peer: string;
  readonly eagerMax = RING.eagerMax;
  readonly fd: number;
  readonly #ring: OwnRing;
  readonly #greeting: Greeting;
  readonly #theirs: number;
  readonly #device: number;
  readonly #view: number;
  readonly #arena: Ranges;
  #escaped = false;

  /** Maps what the peer offers. The descriptors are this object's from here on, also if it throws. */
  constructor(core: PoolCore, fd: number, ring: OwnRing, greeting: Greeting, address: string) {
    super(core);
    this.fd = fd;
    this.#ring = ring;
    this.#greeting = greeting;
    const { pid } = peerCredentials(fd);
    this.peer = `${address} (process ${pid})`;
    const bytes = greeting.frames * core.pageSize, view = C.MAP_SHARED;
    const undo: (() => void)[] = [];
    const mapped = (length: number, prot: number, flags: number, from: number): number => {
      const where = mapAligned(length, prot, flags, from);
      undo.push(() => libc().munmap(where, length));
      return where;
    };
    try {
      this.#theirs = mapped(RING.size, C.PROT_READ, view, greeting.ringFd);
      this.#device = mapped(bytes, C.PROT_READ, view, greeting.poolFd);
      // Once more for JavaScript to read, and behind it as much again for aliases of scattered messages.
      const reserve = C.MAP_PRIVATE | C.MAP_ANONYMOUS | C.MAP_NORESERVE;
      this.#view = mapped(bytes * 2, C.PROT_NONE, reserve, -1);
      map(bytes, C.PROT_READ, view | C.MAP_FIXED, greeting.poolFd, 0, this.#view);
      this.#arena = new Ranges(greeting.frames);
      const conn = core.helper.moat_shm_add(
        core.index,
        fd,
        greeting.poolFd,
        ring.address,
        this.#theirs,
        this.#device,
        this.#view,
        greeting.frames,
        greeting.frames,
        pid === libc().getpid() ? this.#threadOf(this.#theirs) : 0,
      );
      this.attach(conn, RING.eagerMax);
    } catch (error) {
      for (const step of undo.reverse()) step();
      dropRing(ring);
      for (const each of [fd, greeting.poolFd, greeting.ringFd]) libc().close(each);
      throw error;
    }
    keepBallast();
  }

  #threadOf(ring: number): number {
    const view = runtime().viewOf(ring, RING.tid + 4);
    const tid = new DataView(view).getInt32(RING.tid, true);
    view.transfer(0);
    return tid;
  }

  destroy(): void {
    this.detach();
    const bytes = this.#greeting.frames * this.core.pageSize;
    if (this.#escaped) {
      const flags = C.MAP_PRIVATE | C.MAP_ANONYMOUS | C.MAP_NORESERVE | C.MAP_FIXED;
      map(bytes * 2, C.PROT_READ | C.PROT_WRITE, flags, -1, 0, this.#view);
    } else {
      libc().munmap(this.#view, bytes * 2);
    }
    libc().munmap(this.#device, bytes);
    libc().munmap(this.#theirs, RING.size);
    dropRing(this.#ring);
    for (const fd of [this.fd, this.#greeting.poolFd, this.#greeting.ringFd]) libc().close(fd);
  }

  protected override copyPages(op: number, at: number, to: Uint8Array): boolean {
    const { helper } = this.core;
    const id = this.report.getUint32(at + OP.desc + DESC.id, true);
    const r = helper.moat_msg_copy(this.conn, op, to);
    helper.moat_msg_release(this.conn, id, -1, 0, 0);
    if (r < 0) throw this.#changed(r);
    return true;
  }

  protected open(op: number, at: number): Opened {
    const copy = this.copyOf(op, at);
    if (copy) return copy;
    const { report } = this, { helper, counters } = this.core;
    const length = Number(report.getBigUint64(at + OP.got, true));
    counters.bytesReceived += length;
    const id = report.getUint32(at + OP.desc + DESC.id, true);
    const runs = report.getUint32(at + OP.desc + DESC.nruns, true);
    const offset = report.getUint32(at + OP.desc + DESC.off, true);
    const pages = Math.ceil((offset + length) / this.core.pageSize);
    let page = -1, address = helper.moat_msg_in_place(this.conn, op);
    if (address > 0) {
      page = report.getUint32(at + OP.desc + DESC.runs, true);
    } else if (runs * RUN_COST < pages) {
      const arena = this.#arena.take(pages);
      if (arena >= 0) {
        address = helper.moat_msg_alias(this.conn, op, arena);
        if (address > 0) page = this.#greeting.frames + arena;
        else this.#arena.give(arena, pages);
      }
    }
    if (address > 0) {
      const release = (escaped: boolean): void => {
        this.#escaped ||= escaped;
        helper.moat_msg_release(this.conn, id, page, pages, runs);
        if (page >= this.#greeting.frames) this.#arena.give(page - this.#greeting.frames, pages);
      };
      try {
        const bytes = new Uint8Array(runtime().viewOf(address, length));
        const inPlace = page < this.#greeting.frames;
        const device = inPlace ? this.#device + (address - this.#view) : undefined;
        return { bytes, copied: false, device, release };
      } catch (cause) { // Bun can show 4 GiB at most
        release(false);
        throw this.#tooLarge(length, cause);
      }
    }
    counters.bytesCopiedIn += length;
    counters.receiveCopies++;
    let r;
    try {
      const bytes = new Uint8Array(length);
      r = helper.moat_msg_copy(this.conn, op, bytes);
      if (r === 0) return { bytes, copied: true, release: nothing };
    } catch (cause) {
      throw this.#tooLarge(length, cause);
    } finally {
      helper.moat_msg_release(this.conn, id, -1, 0, 0);
    }
    throw this.#changed(r);
  }

  #changed(r: number): MoatError {
    return new MoatError("PEER_PROTOCOL", `${this.peer}: a message's list of pages changed`, {
      errno: -r,
    });
  }

  #tooLarge(length: number, cause: unknown): MoatError {
    return new MoatError(
      "MESSAGE_TOO_LARGE",
      `${this.peer}: this runtime has no room for a message of ${length} bytes`,
      { cause, hint: "send it in pieces" },
    );
  }
}

// Mapping a run costs as much as copying this many pages (3 us against 0.15 us, measured on a Xeon), so a
// message of many short runs is copied.
const RUN_COST = 16;

// Bun collects garbage after so many declared bytes, which a view of a message counts for without using any:
// every 15 messages of 1 MiB. The limit grows with what is alive, so one view of 64 MiB that stays, of addresses
// that nobody reads, makes the collections four times rarer.
const BALLAST = 64 << 20;
let ballast: ArrayBuffer | undefined;

function keepBallast(): void {
  if (ballast || runtime().name !== "bun") return;
  const flags = C.MAP_PRIVATE | C.MAP_ANONYMOUS | C.MAP_NORESERVE;
  ballast = runtime().viewOf(map(BALLAST, C.PROT_NONE, flags, -1), BALLAST);
}
