/**
 * Operations of a channel in flight. Any number may be, so each is one object, and they are linked through themselves.
 *
 * @module
 */
import type { SendResult } from "./channel_options.ts";
import type { Operation } from "./memory/core.ts";
import type { Ended } from "./transport.ts";

/** An operation and who waits for it. */
export interface Pending extends Operation {
  /** Its number in the helper. */
  readonly op: number;
  /** The bytes of a send, or those a receive has room for; 0 if that has room for any message. */
  readonly bytes: number;
  /** Keeps staged bytes, and the buffer of a receive into foreign memory. */
  readonly keep: unknown;
  /** Tells who waits. */
  resolve(ended: Ended): void;
  reject(reason: unknown): void;
  /** Who waits has been told. */
  settled: boolean;
  /** It keeps the process alive. */
  held: boolean;
  /** Why the receive was taken back. */
  cancelled: { reason: unknown } | undefined;
  previous: Pending | undefined;
  next: Pending | undefined;
}

/** A send in flight. It is small: there may be a hundred thousand, and the garbage collector looks at each. */
export class PendingSend implements Pending {
  settled = false;
  held = false;
  previous: Pending | undefined;
  next: Pending | undefined;
  cancelled: undefined;
  readonly #resolve: (result: SendResult | Promise<never>) => void;

  /** @param seal finds out whether somebody wrote to what was sent, and throws */
  constructor(
    readonly op: number,
    readonly bytes: number,
    readonly guard: SendResult["guard"],
    readonly state: Operation["state"],
    readonly stack: Operation["stack"],
    readonly keep: unknown,
    readonly seal: { check(): void } | undefined,
    resolve: (result: SendResult | Promise<never>) => void,
  ) {
    this.#resolve = resolve;
  }

  get kind(): "send" {
    return "send";
  }

  resolve(): void {
    this.seal?.check();
    const { bytes, guard } = this;
    this.#resolve({ bytes, guard, zeroCopy: guard !== "copy" });
  }

  reject(reason: unknown): void {
    this.#resolve(Promise.reject(reason)); // a function less to keep
  }
}

/** Those of one channel, in the order they were begun. */
export class PendingList {
  #first: Pending | undefined;
  #last: Pending | undefined;

  add(pending: Pending): void {
    pending.previous = this.#last;
    if (this.#last) this.#last.next = pending;
    else this.#first = pending;
    this.#last = pending;
  }

  remove(pending: Pending): void {
    const { previous, next } = pending;
    if (previous) previous.next = next;
    else this.#first = next;
    if (next) next.previous = previous;
    else this.#last = previous;
    pending.previous = pending.next = undefined;
  }

  /** One may be removed while it is being looked at. */
  *[Symbol.iterator](): IterableIterator<Pending> {
    for (let at = this.#first, next; at; at = next) {
      next = at.next;
      yield at;
    }
  }
}
