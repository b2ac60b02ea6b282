/**
 * What is told of a pool's faults: which operation each was about, and to whom it is told.
 *
 * @module
 */
import { type Helper, QUERY } from "../../ffi/helper.ts";
import { FAULT } from "../../ffi/layout.ts";
import { runtime } from "../../ffi/runtime.ts";
import type { Operation } from "./core.ts";
import { type Fault, type FaultRecord, NO_PAGE, readFault } from "./faults.ts";

/** Who is told of faults. */
export interface FaultListener {
  /** One has happened. */
  fault(fault: Fault, operation: Operation | undefined): void;
  /** So many happened, and their records were overwritten before anybody read them. */
  lost?(count: number): void;
}

/** Where faults happen. */
export interface FaultPlace {
  readonly helper: Helper;
  /** The pool's number in the helper. */
  readonly index: number;
  readonly pageSize: number;
  /** The path of the file, if it is a mapped one. */
  readonly file: string | undefined;
  /** The operation in flight of this number, if its buffer has this page. */
  running(op: number, page: number): Operation | undefined;
}

/** An operation and the pages of the window that it holds, or held. */
interface Held {
  readonly op: number;
  readonly page: number;
  readonly pages: number;
  operation: Operation | undefined;
}

// Operations of a buffer that are remembered after their end: a write to what they left closed to writes is told
// with the call that closed it.
const REMEMBERED = 8;

/** The faults of one pool or mapped file. */
export class FaultLog {
  readonly #place: FaultPlace;
  readonly #ring: DataView;
  readonly #live = new Map<number, Held>();
  /** Those that have ended, by the first page of their buffer, the latest last. */
  readonly #ended = new Map<number, Held[]>();
  #queue: [Fault, Operation | undefined][] = [];
  #lost = 0;
  #seen = 0;
  #listeners: readonly FaultListener[] = [];

  constructor(place: FaultPlace) {
    this.#place = place;
    const address = place.helper.moat_query(QUERY.faults, place.index);
    this.#ring = new DataView(runtime().viewOf(address, FAULT.size * FAULT.entries));
  }

  /** True if somebody is told. */
  get on(): boolean {
    return this.#listeners.length > 0;
  }

  /** Sets who is told, of what happens from now on. `bell` rings for every fault, if it is not -1. */
  listen(listeners: readonly FaultListener[], bell: number): void {
    const { helper, index } = this.#place, was = this.on;
    if (was) this.collect();
    else this.#seen = helper.moat_query(QUERY.faultCount, index);
    this.#listeners = listeners;
    if (!this.on) {
      this.#live.clear();
      this.#ended.clear();
    }
    helper.moat_pool_notify(index, bell >= 0 ? 1 : 0, bell);
  }

  // ---- operations

  /** An operation was given pages of the window. */
  holds(op: number, page: number, pages: number): void {
    if (!this.on) return;
    this.collect(); // the number may have been another's, which the faults until now were about
    this.#live.set(op, { op, page, pages, operation: undefined });
  }

  /** An operation that holds pages has begun. */
  began(op: number, operation: Operation): void {
    const held = this.#live.get(op);
    if (held) held.operation = operation;
  }

  /** It has ended, and its number may be used again. `start` is the first page of its buffer. */
  ended(op: number, start: number): void {
    if (!this.on) return;
    this.collect();
    const held = this.#live.get(op);
    if (!held) return;
    this.#live.delete(op);
    if (held.operation) { // without what it kept alive
      const { kind, guard, stack } = held.operation;
      held.operation = { kind, guard, stack, state: undefined };
    }
    const before = this.#ended.get(start);
    const kept = before?.filter((each) => each.page !== held.page || each.pages !== held.pages);
    if (kept && kept.length >= REMEMBERED) kept.shift();
    this.#ended.set(start, kept ? (kept.push(held), kept) : [held]);
  }

  #operationOf({ op, page, start }: FaultRecord): Operation | undefined {
    const on = (held: Held): boolean => held.page <= page && page < held.page + held.pages;
    const live = this.#live.get(op);
    if (live && on(live)) return live.operation;
    const ended = this.#ended.get(start);
    // What the helper knows is the latest on the page, which need not be the one that closed it.
    const held = ended?.findLast((each) => each.op === op && on(each)) ??
      [...this.#live.values()].findLast(on) ?? ended?.findLast(on);
    return held ? held.operation : this.#place.running(op, page); // begun before anybody listened
  }

  // ---- faults

  /** Reads what has happened since the last time, while it is known which operations it was about. */
  collect(): void {
    const { helper, index } = this.#place;
    const count = helper.moat_query(QUERY.faultCount, index), from = this.#seen;
    if (count === from) return;
    this.#seen = count;
    const records: FaultRecord[] = [];
    for (let i = Math.max(from, count - FAULT.entries); i < count; i++) {
      records.push(readFault(this.#ring, i));
    }
    // Another thread may have gone on, and round the ring.
    const written = helper.moat_query(QUERY.faultCount, index);
    const whole = Math.min(records.length, Math.max(0, FAULT.entries - (written - count)));
    this.#lost += count - from - whole;
    for (const record of records.slice(records.length - whole)) {
      const operation = this.#operationOf(record);
      this.#queue.push([this.#faultOf(record, operation), operation]);
    }
  }

  #faultOf(record: FaultRecord, operation: Operation | undefined): Fault {
    const { pageSize, file } = this.#place, gone = record.start === NO_PAGE;
    const fault: Fault = {
      offset: (gone ? record.page : record.page - record.start) * pageSize + record.offset,
      bufferPage: gone || file !== undefined ? undefined : record.start,
      file,
      access: record.write ? "write" : "read",
      operation: operation?.kind,
      stack: undefined,
      outcome: record.outcome,
      pages: record.pages,
      nanoseconds: record.nanoseconds,
      thread: record.thread,
    };
    const posted = operation?.stack;
    // The text is made when it is looked at: it costs more than all the rest.
    if (posted) {
      Object.defineProperty(fault, "stack", {
        enumerable: true,
        configurable: true,
        get: () => posted.stack,
      });
    }
    return fault;
  }

  /** Tells all that has happened. */
  tell(): void {
    if (!this.on) return;
    this.collect();
    const lost = this.#lost;
    this.#lost = 0;
    if (lost > 0) { for (const listener of this.#listeners) attempt(() => listener.lost?.(lost)); }
    for (let next; (next = this.#queue.shift());) {
      const [fault, operation] = next;
      for (const listener of this.#listeners) attempt(() => listener.fault(fault, operation));
    }
  }

  /** The pool is closed: its ring is unmapped after this. */
  close(): void {
    this.tell();
    this.#listeners = [];
    (this.#ring.buffer as ArrayBuffer).transfer(0);
  }
}

// What a listener throws ends the program or reaches its handler of uncaught errors, as with any event; the
// operations that have just ended, and the other listeners, must not go without.
function attempt(tell: () => void): void {
  try {
    tell();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
