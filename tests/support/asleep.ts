/**
 * Seeing that another process waits, instead of giving it some time to get there.
 *
 * @module
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * Waits until the main thread of a process, which runs its JavaScript, is asleep whenever one looks: it neither runs
 * nor waits for a processor. (In a guard it wakes up every now and then to look itself.)
 */
export async function asleep(pid: number): Promise<void> {
  for (let looks = 0, same = 0; same < 5; looks++) {
    assert.ok(looks < 10_000, `process ${pid} does not go to sleep`);
    await sleep(2);
    const status = readFileSync(`/proc/${pid}/task/${pid}/status`, "utf8");
    same = /^State:\s+S/m.test(status) ? same + 1 : 0;
  }
}
