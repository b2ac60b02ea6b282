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

/**
 * Chooses between `"copy"` and `"cow"` for one buffer, by what each has really cost it.
 *
 * The price of a guard is not a matter of size alone: a buffer that nobody rewrites stays protected and
 * costs nothing to send again, one that is rewritten at once costs faults and private pages. The helper adds
 * up the nanoseconds spent on a buffer's guards, and copies are timed. The cheaper way is taken; a buffer
 * that is copied tries the guard again after so many copies that trying costs a twentieth of them, and three
 * times in a row, because the first guard after a copy closes more pages than the next.
 */
export class AutoGuard {
  #guardCost = 0;
  #copyCost: number; // per byte: parts of a buffer may be sent
  #copies: number;
  #trial = 0;
  #guarded = false;

  /**
   * @param copyCost the nanoseconds a copy is expected to take for each byte
   * @param copies how many sends to copy before the first guarded one
   */
  constructor(copyCost: number, copies: number) {
    this.#copyCost = copyCost;
    this.#copies = copies;
  }

  /**
   * The guard for the next send.
   *
   * @param spent returns the nanoseconds spent on guards of the buffer since it was last asked
   */
  choose(bytes: number, spent: () => number): "copy" | "cow" {
    if (this.#guarded) {
      this.#guarded = false;
      const cost = spent();
      // The first guard of a trial is not typical, so it does not count.
      if (this.#trial !== 1) this.#guardCost += (cost - this.#guardCost) / 4;
      if (this.#trial === 2) this.#guardCost = cost;
      if (this.#trial < TRIAL) this.#trial++;
      else if (this.#guardCost > this.#copyCost * bytes) {
        this.#trial = 0;
        const more = this.#guardCost / (this.#copyCost * bytes) - 1;
        this.#copies = Math.max(8, Math.min(1000, Math.ceil(more * TRIAL * 20)));
      }
    }
    if (this.#copies > 0) {
      this.#copies--;
      return "copy";
    }
    if (this.#trial === 0) {
      spent(); // what came before the trial
      this.#trial = 1;
    }
    this.#guarded = true;
    return "cow";
  }

  /** Notes what a copy took. */
  copied(bytes: number, nanoseconds: number): void {
    this.#copyCost += (nanoseconds / bytes - this.#copyCost) / 8;
  }
}

const TRIAL = 3;
