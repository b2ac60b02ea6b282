/**
 * Guards: what a program may do to a buffer in flight, and which guard `"auto"` is.
 *
 * @module
 */

/**
 * How a buffer is kept from changing under the device while it is being sent.
 *
 * | guard | a write while the send is in flight |
 * |---|---|
 * | `"auto"` | never waits: small data is copied, larger is `"cow"`, whichever costs less |
 * | `"cow"` | goes to a private copy of the page, made when it is first written (Brustoloni's TCOW) |
 * | `"wait"` | waits until the device is done (Power 2013) |
 * | `"move"` | impossible: the buffer is given away and its view is detached |
 * | `"copy"` | free: the bytes were copied before `send` returned |
 * | `"none"` | reaches the wire, as in plain RDMA |
 */
export type Guard = "auto" | "cow" | "wait" | "move" | "copy" | "none";

/** How a buffer is kept from being read before it has been received. */
export type ReceiveGuard = "wait" | "none";

/** The numbers of the guards in the helper (`enum guard`). */
export const GUARD_NUMBER = { none: 0, wait: 1, cow: 2, move: 3, copy: 4 } as const;

/** True for one of the guards of {@linkcode Guard}. */
export function isGuard(value: unknown): value is Guard {
  return value === "auto" || (typeof value === "string" && Object.hasOwn(GUARD_NUMBER, value));
}

/** Time in nanoseconds that the CPU takes to copy a number of bytes. */
export type CopyCost = (bytes: number) => number;

/**
 * Chooses between `"copy"` and `"cow"` for one buffer, by what the guard has really cost it.
 *
 * The price of a guard is not a matter of size alone: a buffer that nobody rewrites stays protected and
 * costs nothing to send again, one that is rewritten at once costs a fault and a private copy of every
 * page. The helper adds up the nanoseconds spent on a buffer's guards, so after each guarded send it is
 * known whether the copy would have been cheaper. A buffer for which it would, is copied for a while
 * before the guard is tried again: 1, 2, 4 … 128 sends, so that trying costs little.
 */
export class AutoGuard {
  #copies: number;
  #backoff = 1;
  #tried = false;

  /** `copies`: how many sends to copy before the first guarded one. */
  constructor(copies: number) {
    this.#copies = copies;
  }

  /**
   * The guard for the next send.
   *
   * @param spent returns the nanoseconds spent on guards of the buffer since it was last asked
   */
  choose(bytes: number, spent: () => number, copyCost: CopyCost): "copy" | "cow" {
    if (this.#copies > 0) {
      this.#copies--;
      return "copy";
    }
    const guardCost = spent();
    if (this.#tried && guardCost > copyCost(bytes)) {
      this.#tried = false;
      this.#copies = this.#backoff - 1;
      this.#backoff = Math.min(this.#backoff * 2, 128);
      return "copy";
    }
    if (this.#tried) this.#backoff = 1;
    this.#tried = true;
    return "cow";
  }
}
