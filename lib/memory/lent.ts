/**
 * Memory that is not the pool's but may be read by a device all the same: messages that are read in place.
 *
 * @module
 */

/** What is known of such memory. */
export interface Lent {
  /** Where its first byte is for a device: no guard and no write of the program ever reaches it there. */
  readonly address: number;
  /** Keeps it as it is, though the program lets go of it, until {@linkcode drop}. */
  hold(): void;
  /** Ends one {@linkcode hold}. */
  drop(): void;
}

// On the memory itself: a WeakMap with an entry for every message costs the garbage collector more than the message.
// In a private field, because a property would be the program's to see: in comparisons, and when it prints.
class Marked extends class {
  constructor(memory: ArrayBuffer) {
    return memory;
  }
} {
  #lent: Lent;

  constructor(memory: ArrayBuffer, lent: Lent) {
    super(memory);
    this.#lent = lent;
  }

  static of(memory: object): Lent | undefined {
    return #lent in memory ? memory.#lent : undefined;
  }
}

/** Says, once, that a view's memory may be read by devices. */
export function lend(memory: ArrayBuffer, lent: Lent): void {
  new Marked(memory, lent);
}

/** What is known of the memory of a view, if it is lent. */
export function lentOf(view: Uint8Array): Lent | undefined {
  return Marked.of(view.buffer);
}
