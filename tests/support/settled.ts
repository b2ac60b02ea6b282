/**
 * Waiting for something to come to rest, however slow the machine is.
 *
 * @module
 */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

/** Waits until a count has been the same for 200 ms; what it is then. */
export async function settled(count: () => number): Promise<number> {
  let last = count();
  for (let same = 0, looks = 0; same < 10; looks++) {
    assert.ok(looks < 1000, "it goes on and on");
    await sleep(20);
    const now = count();
    same = now === last ? same + 1 : 0;
    last = now;
  }
  return last;
}
