/**
 * A Worker that writes its share of the bytes of a buffer: every byte whose number modulo `of` is `id`
 * becomes `id + 1`.
 *
 * @module
 */
import { parentPort, workerData } from "node:worker_threads";
import { type SharedHandle, viewShared } from "../../mod.ts";

/** What the Worker is made with. */
export interface Task {
  share: SharedHandle;
  /** One Int32: becomes 1 when it is to start. */
  start: SharedArrayBuffer;
  id: number;
  of: number;
}

const { share, start, id, of } = workerData as Task;
const view = viewShared(share);
parentPort!.postMessage("ready");
Atomics.wait(new Int32Array(start), 0, 0);
for (let i = id; i < view.length; i += of) view[i] = id + 1;
parentPort!.postMessage("done");
