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

/** A send in flight. */
export class PendingSend implements Pending {
  readonly kind = "send";
  readonly bytes: number;
  readonly guard: SendResult["guard"];
  settled = false;
  held = false;
  cancelled: undefined;
  /** Says whether somebody wrote to what was sent. */
  seal: { check(): void } | undefined;
  previous: Pending | undefined;
  next: Pending | undefined;
  readonly #result: SendResult;
  readonly #resolve: (result: SendResult) => void;

  constructor(
    readonly op: number,
    readonly state: Operation["state"],
    readonly stack: Operation["stack"],
    result: SendResult,
    readonly keep: unknown,
    resolve: (result: SendResult) => void,
    readonly reject: (reason: unknown) => void,
  ) {
    this.bytes = result.bytes;
    this.guard = result.guard;
    this.#result = result;
    this.#resolve = resolve;
  }

  resolve(): void {
    this.seal?.check();
    this.#resolve(this.#result);
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
