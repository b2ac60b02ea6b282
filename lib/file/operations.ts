/**
 * Operations of a file in flight: a connection of the helper (ffi/helper/file.c) and who waits for what.
 *
 * @module
 */
import { systemError } from "../../ffi/errors.ts";
import { checked, libc } from "../../ffi/libc.ts";
import { OP } from "../../ffi/layout.ts";
import { runtime } from "../../ffi/runtime.ts";
import type { Operation, PoolCore } from "../memory/core.ts";
import type { OpenFile } from "./open.ts";
import { reactor, type Source } from "../reactor.ts";
import { type Ring, ringOf } from "../ring.ts";

/** How an operation ended. */
export interface Finished {
  /** 0, or -errno. */
  readonly status: number;
  /** Bytes read or written. */
  readonly bytes: number;
  /** Of those, the bytes that went past the page cache. */
  readonly direct: number;
}

/** An operation in flight and what to do when it ends. */
export interface InFlight extends Operation {
  /** Kept until then. */
  readonly keep: unknown;
  /** Called once; what it throws is what the promise is rejected with. */
  readonly finish: (how: Finished) => unknown;
}

interface Waiting extends InFlight {
  resolve(value: unknown): void;
  reject(reason: unknown): void;
  settled: boolean;
}

// Where moat_conn_next() reports: behind the operation taken.
const DONE = OP.size;

/** The operations of one open file. */
export class FileOperations {
  readonly ring: Ring;
  readonly #core: PoolCore;
  readonly #file: OpenFile;
  readonly #conn: number;
  readonly #report: DataView;
  readonly #waiting = new Map<number, Waiting>();
  readonly #source: Source = { poll: () => this.#poll(), arm: () => this.#arm() };
  readonly #destroy = (): void => this.destroy();
  #idle: (() => void)[] = [];
  #closed = false;

  /** The descriptors are this object's from here on, also if it throws. */
  constructor(core: PoolCore, file: OpenFile) {
    this.#core = core;
    this.#file = file;
    this.ring = ringOf(core);
    if (this.ring.fd < 0) startWorker(core);
    const { fd, directFd, memoryAlign, offsetAlign } = file, { helper } = core;
    this.#conn = helper.moat_file_add(core.index, fd, directFd, memoryAlign, offsetAlign);
    if (this.#conn < 0) {
      closeFile(file);
      throw systemError("adding a file", -this.#conn, "a process can have 4096 files and channels");
    }
    this.#report = new DataView(
      runtime().viewOf(helper.moat_conn_report(this.#conn), OP.size * 2),
    );
    reactor().add(this.#source, -1, this.#conn);
    core.onClose(this.#destroy);
  }

  /** True while operations are in flight. */
  get busy(): boolean {
    return this.#waiting.size > 0;
  }

  /** True after {@linkcode destroy}. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Hands an operation over. `signal` stops the waiting, never the operation. */
  start<T>(op: number, at: number, what: InFlight, signal?: AbortSignal): Promise<T> {
    this.#core.began(op, what);
    const promise = new Promise<T>((resolve, reject) => {
      const waiting: Waiting = {
        ...what,
        resolve: resolve as (value: unknown) => void,
        reject,
        settled: false,
      };
      this.#waiting.set(op, waiting);
      reactor().hold(1);
      if (signal) this.#heed(signal, waiting);
    });
    this.#core.helper.moat_file_start(this.#conn, op, at);
    reactor().wake(this.#source);
    return promise;
  }

  /** Has everything written before the call go to the disk. */
  sync(signal?: AbortSignal): Promise<Finished> {
    const core = this.#core, op = core.helper.moat_take_new(core.index);
    if (op < 0) throw core.refusal("sync", op);
    const what = { kind: "write", state: undefined, stack: core.stack(), keep: undefined } as const;
    return this.start<Finished>(op, 0, { ...what, finish: (how) => how }, signal);
  }

  #heed(signal: AbortSignal, waiting: Waiting): void {
    const abort = (): void => this.#settle(waiting, () => waiting.reject(signal.reason));
    signal.addEventListener("abort", abort, { once: true });
    const { resolve, reject } = waiting;
    const done = (): void => signal.removeEventListener("abort", abort);
    waiting.resolve = (value) => (done(), resolve(value));
    waiting.reject = (reason) => (done(), reject(reason));
  }

  #settle(waiting: Waiting, tell: () => void): void {
    if (waiting.settled) return;
    waiting.settled = true;
    reactor().hold(-1);
    tell();
  }

  // Collects what has ended.
  #poll(): boolean {
    if (this.#closed) return false;
    let any = false;
    for (let op; (op = this.#core.helper.moat_conn_next(this.#conn)) >= 0;) {
      any = true;
      const waiting = this.#waiting.get(op), how = this.#finished();
      this.#waiting.delete(op);
      if (waiting) this.#end(waiting, how);
      this.#core.ended(op);
    }
    if (any && this.#waiting.size === 0) { for (const resolve of this.#idle.splice(0)) resolve(); }
    return any;
  }

  #end(waiting: Waiting, how: Finished): void {
    try {
      const value = waiting.finish(how);
      this.#settle(waiting, () => waiting.resolve(value));
    } catch (error) {
      this.#settle(waiting, () => waiting.reject(error));
    }
  }

  #finished(): Finished {
    return {
      status: this.#report.getInt32(DONE + OP.status, true),
      bytes: Number(this.#report.getBigUint64(DONE + OP.got, true)),
      direct: Number(this.#report.getBigUint64(DONE + OP.direct, true)),
    };
  }

  #arm(): boolean {
    return !this.#closed && this.#core.helper.moat_conn_arm(this.#conn) === 1;
  }

  /** Resolves when nothing is in flight. */
  async idle(): Promise<void> {
    this.#poll();
    if (this.#waiting.size === 0) return;
    reactor().hold(1);
    await new Promise<void>((resolve) => this.#idle.push(resolve));
    reactor().hold(-1);
  }

  /** Closes the file. Nothing may be in flight. */
  destroy(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#core.offClose(this.#destroy);
    reactor().remove(this.#source, -1);
    const r = this.#core.helper.moat_conn_remove(this.#conn);
    if (r < 0) throw systemError("removing a file", -r);
    (this.#report.buffer as ArrayBuffer).transfer(0);
    closeFile(this.#file);
  }
}

/** Closes the descriptors of a file. */
export function closeFile({ fd, directFd }: OpenFile): void {
  libc().close(fd);
  if (directFd >= 0) libc().close(directFd);
}

// Where io_uring is forbidden, one thread of the process does the system calls.
function startWorker({ helper }: PoolCore): void {
  if (helper.moat_file_worker() !== 1) return;
  const thread = new Uint8Array(8);
  const r = libc().pthread_create(thread, 0, helper.moat_file_main_address(), 0);
  if (r !== 0) throw systemError("pthread_create", r);
  const id = Number(new DataView(thread.buffer).getBigInt64(0, true));
  checked("pthread_detach", libc().pthread_detach(id));
}
