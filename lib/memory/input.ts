/**
 * Input with the semantics of a copy.
 *
 * @module
 */
import type { PoolCore, Resolved } from "./core.ts";

/**
 * Brings received bytes to where the program wants them.
 *
 * @param to the place, as long as `from`
 * @param from pages of a message in this side's pool, which nobody else reads any more
 */
export function copyIn(core: PoolCore, to: Resolved, from: Uint8Array): void {
  to.bytes.set(from);
  core.counters.bytesCopiedIn += from.byteLength;
}
