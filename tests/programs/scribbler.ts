/**
 * A Worker that writes to the last 8 bytes of every page of a shared buffer, and checks that no write of
 * its own is lost, while the main thread sends the same pages.
 *
 * @module
 */
import { parentPort, workerData } from "node:worker_threads";
import { type SharedHandle, viewShared } from "../../mod.ts";

const { handles, stop } = workerData as { handles: SharedHandle[]; stop: SharedArrayBuffer };
const flag = new Int32Array(stop);
const views = handles.map((handle) => {
  const bytes = viewShared(handle);
  return new Float64Array(bytes.buffer, 0, bytes.byteLength / 8);
});
let writes = 0, lost = 0;
for (let round = 1; Atomics.load(flag, 0) === 0; round++) {
  for (const view of views) {
    for (let at = 511; at < view.length; at += 512) view[at] = round;
    for (let at = 511; at < view.length; at += 512) {
      writes++;
      if (view[at] !== round) lost++;
    }
  }
}
parentPort!.postMessage({ writes, lost });
