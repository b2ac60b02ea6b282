/**
 * A Worker that reads a shared buffer when it is told to, and answers with the SHA-256 of what it read.
 *
 * @module
 */
import { parentPort, workerData } from "node:worker_threads";
import { type SharedHandle, viewShared } from "../../mod.ts";
import { sha256 } from "../support/bytes.ts";

/** What the Worker is made with. */
export interface Task {
  share: SharedHandle;
  /** Two Int32: the first becomes 1 when the Worker is to read, the second when it has. */
  flags: SharedArrayBuffer;
}

const { share, flags } = workerData as Task;
const view = viewShared(share), state = new Int32Array(flags);
parentPort!.postMessage("ready");
Atomics.wait(state, 0, 0);
const hash = sha256(view);
Atomics.store(state, 1, 1);
Atomics.notify(state, 1);
parentPort!.postMessage(hash);
