/**
 * A Worker that counts in the last word of some pages of a shared buffer, as fast as it can, and says how
 * often a word was not what it had written there.
 *
 * @module
 */
import { parentPort, workerData } from "node:worker_threads";
import { type SharedHandle, viewShared } from "../../mod.ts";

/** What the Worker is made with. */
export interface Task {
  share: SharedHandle;
  /** The pages, counted from the buffer's first. */
  pages: number[];
  /** One Int32: becomes 1 when it is to begin, 2 when it is to end. */
  state: SharedArrayBuffer;
}

const { share, pages, state } = workerData as Task;
const words = new Int32Array(viewShared(share).buffer), flag = new Int32Array(state);
let writes = 0, lost = 0;
parentPort!.postMessage("ready");
Atomics.wait(flag, 0, 0);
while (Atomics.load(flag, 0) === 1) {
  for (const page of pages) {
    const at = page * 1024 + 1023;
    Atomics.store(words, at, ++writes);
    for (let i = 0; i < 50; i++) if (Atomics.load(words, at) !== writes) lost++;
  }
}
parentPort!.postMessage({ writes, lost });
