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

const all = new WeakMap<ArrayBufferLike, Lent>();

/** Says that a view's memory may be read by devices. */
export function lend(memory: ArrayBuffer, lent: Lent): void {
  all.set(memory, lent);
}

/** What is known of the memory of a view, if it is lent. */
export function lentOf(view: Uint8Array): Lent | undefined {
  return all.get(view.buffer);
}
