/**
 * Input with the semantics of a copy: of what lies in pages of this side's pool, whole pages are exchanged for the
 * program's own (Brustoloni's emulated copy).
 *
 * @module
 */
import type { PoolCore } from "./core.ts";
import { regionOf, type Resolved } from "./resolve.ts";
import { moveBytes } from "./swap.ts";

/**
 * Brings received bytes to where the program wants them. Nobody may need the bytes before `from` in its buffer any
 * more, nor `from` itself afterwards.
 *
 * @param to the place, as long as `from`
 * @param from part of a message
 * @param last whether it is the end of the message: what is behind it in its buffer means nothing then
 */
export function copyIn(core: PoolCore, to: Resolved, from: Uint8Array, last: boolean): void {
  const region = regionOf(core, from), { counters } = core;
  if (!to.region || !region) {
    to.bytes.set(from);
    counters.bytesCopiedIn += from.byteLength;
    return;
  }
  const { offset, length, state } = region;
  const spare = { before: offset, behind: last ? state.byteLength - offset - length : 0 };
  counters.bytesCopiedIn += moveBytes(core, to.region, to.bytes, region, from, spare).copied;
}
