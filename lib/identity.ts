/**
 * Which process and thread drives an end of a connection: two ends in one thread cannot wait for each other.
 *
 * @module
 */

/** Who drives an end. */
export interface Identity {
  readonly thread: number;
  readonly process: Uint8Array;
}

let own: Uint8Array | undefined;

/** 16 bytes that tell this process from any other, on any host. */
export function processId(): Uint8Array {
  return own ??= crypto.getRandomValues(new Uint8Array(16));
}

/** The thread at the other end if it is of this process, else 0. */
export function threadHere(peer: Identity): number {
  return peer.process.every((byte, i) => byte === processId()[i]) ? peer.thread : 0;
}
