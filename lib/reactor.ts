/**
 * The event loop's side of the doorbell: who is to be looked at after it rang, how long to keep looking
 * before going to sleep again, and whether the process stays alive.
 *
 * @module
 */
import { clearInterval, setImmediate, setInterval } from "node:timers";
import { systemError } from "../ffi/errors.ts";
import { type Helper, helper } from "../ffi/helper.ts";
import { C, checked, libc } from "../ffi/libc.ts";
import { runtime } from "../ffi/runtime.ts";
import type { PoolCore } from "./memory/core.ts";
import { Patience } from "./patience.ts";

/** Something that makes progress when its descriptor is ready. */
export interface Source {
  /** Does what can be done now; true if anything was. */
  poll(): boolean;
  /** True if there is no use in looking again before the doorbell rings. */
  rests?(): boolean;
  /** Goes to sleep: from now on the doorbell rings. True if there is work already. */
  arm(): boolean;
}

const POLLS_PER_TURN = 8;

class Reactor {
  readonly helper: Helper;
  readonly bell: number;
  readonly #awake = new Set<Source>();
  readonly #all = new Set<Source>();
  readonly #pools = new Set<PoolCore>();
  readonly #patience = new Patience();
  #running = false;
  #pending = 0;
  #timer: ReturnType<typeof setInterval> | undefined;

  constructor() {
    this.helper = helper();
    const epoll = checked("epoll_create1", libc().epoll_create1(C.EPOLL_CLOEXEC));
    const event = checked("eventfd", libc().eventfd(0, C.EFD_CLOEXEC | C.EFD_NONBLOCK));
    const pair = new Int32Array(2), type = C.SOCK_STREAM | C.SOCK_CLOEXEC | C.SOCK_NONBLOCK;
    const bytes = new Uint8Array(pair.buffer);
    checked("socketpair", libc().socketpair(C.AF_UNIX, type, 0, bytes));
    this.bell = this.helper.moat_bell_new(epoll, event, pair[0]!);
    if (this.bell < 0) throw systemError("making the doorbell", -this.bell);
    const thread = new Uint8Array(8);
    const r = libc().pthread_create(thread, 0, this.helper.moat_bell_main_address(), this.bell);
    if (r !== 0) throw systemError("pthread_create", r);
    runtime().onBytes(pair[1]!, () => this.#rang());
    libc().pthread_detach(Number(new DataView(thread.buffer).getBigInt64(0, true)));
  }

  add(source: Source, fd: number, conn: number): void {
    this.#all.add(source);
    const r = this.helper.moat_bell_watch(this.bell, fd, conn);
    if (r < 0) throw systemError("epoll_ctl", -r);
    this.wake(source);
  }

  remove(source: Source, fd: number): void {
    this.#all.delete(source);
    this.#awake.delete(source);
    this.helper.moat_bell_unwatch(this.bell, fd);
  }

  /** Looks at a source in the coming turns. */
  wake(source: Source): void {
    this.#awake.add(source);
    this.#patience.began(performance.now());
    if (this.#running) return;
    this.#running = true;
    setImmediate(this.#turn);
  }

  watchFaults(pool: PoolCore): void {
    this.#pools.add(pool);
  }

  #rang(): void {
    this.helper.moat_bell_answer(this.bell);
    for (const pool of this.#pools) {
      if (pool.closed || !pool.faults.on) this.#pools.delete(pool);
      else pool.tellFaults();
    }
    for (const source of this.#all) this.#awake.add(source);
    this.#patience.rang(performance.now());
    if (!this.#running) {
      this.#running = true;
      this.#turn();
    }
  }

  readonly #turn = (): void => {
    let busy = false;
    for (let i = 0; i < POLLS_PER_TURN && !busy; i++) {
      for (const source of this.#awake) busy = look(source) || busy;
      if (busy) break;
      for (const source of this.#awake) {
        if (source.rests?.() && !source.arm()) this.#awake.delete(source);
      }
      if (this.#awake.size === 0) break;
    }
    const now = performance.now();
    if (this.#awake.size === 0) {
      this.#running = false;
      return;
    }
    if (busy) this.#patience.found(now);
    else if (this.#patience.ends(now)) {
      for (const source of this.#awake) if (!source.arm()) this.#awake.delete(source);
      if (this.#awake.size === 0) {
        this.#running = false;
        return;
      }
      this.#patience.began(now);
    }
    setImmediate(this.#turn);
  };

  /** Counts promises that somebody may be waiting for: while there are any, the process stays alive. */
  hold(change: 1 | -1): void {
    this.#pending += change;
    if (this.#pending > 0) this.#timer ??= setInterval(() => {}, 1 << 30);
    else if (this.#timer !== undefined) {
      clearInterval(this.#timer);
      this.#timer = undefined;
    }
  }
}

// What a source throws is a bug of ours; it ends the program, or reaches its handler of uncaught errors, but
// must not stop the loop that all others depend on.
function look(source: Source): boolean {
  try {
    return source.poll();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
    return false;
  }
}

let instance: Reactor | undefined;

/** The reactor of this isolate, made with its thread at the first use. */
export function reactor(): Reactor {
  return instance ??= new Reactor();
}

/** The doorbell that tells of a pool's faults. */
export function faultBell(pool: PoolCore): number {
  reactor().watchFaults(pool);
  return reactor().bell;
}
