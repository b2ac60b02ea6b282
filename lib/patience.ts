/**
 * How long to look by ourselves for what comes next before the doorbell is armed and has to wake us.
 *
 * @module
 */

// A wake-up through the thread costs 20 to 60 us, a turn of the loop 2 us (measured in a virtual machine).
const LINGER_MS = 0.1;
/** From one event to the next, which we were woken for: by looking it would have been found, or nearly. */
const SOON_MS = LINGER_MS + 0.06;
/**
 * Where so many times in a row nothing came while we looked, looking only takes a processor from somebody: from the
 * peer that is waited for, or from the thread that copies for it.
 */
const IN_VAIN = 3;

/** Decides when to go to sleep. All times are of `performance.now()`. */
export class Patience {
  #last = 0;
  #inVain = 0;
  /** Looked since the last event, and found nothing. */
  #looked = false;

  /** The program has begun something, whose end may be near. */
  began(now: number): void {
    this.#looked = false;
    this.#last = now;
  }

  /** Looking has found something. */
  found(now: number): void {
    if (this.#looked) this.#inVain = 0; // it came while we looked
    this.#looked = false;
    this.#last = now;
  }

  /** The doorbell has rung. */
  rang(now: number): void {
    if (now - this.#last < SOON_MS) this.#inVain = 0;
    this.#looked = false;
    this.#last = now;
  }

  /** Looking has found nothing. True if it is time to sleep. */
  ends(now: number): boolean {
    this.#looked = true;
    if (this.#inVain < IN_VAIN && now - this.#last <= LINGER_MS) return false;
    this.#inVain++;
    return true;
  }
}
