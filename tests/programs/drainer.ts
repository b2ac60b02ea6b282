/**
 * A Worker that is the device of a send: told to start, it waits a moment, reads the message from its pipe
 * and ends the operation, whatever the thread that posted it is doing.
 *
 * @module
 */
import { parentPort } from "node:worker_threads";
import { drain, type Transfer } from "../support/vmsplice.ts";

/** What the Worker is told. */
export interface Order {
  transfer: Transfer;
  /** One Int32: becomes 1 when the Worker may start. */
  start: SharedArrayBuffer;
}

// Long enough for the other thread to make its next step, the access that is to wait.
const PAUSE_MS = 60;

parentPort!.on("message", ({ transfer, start }: Order) => {
  parentPort!.postMessage("ready");
  const flag = new Int32Array(start);
  Atomics.wait(flag, 0, 0);
  Atomics.wait(flag, 0, 1, PAUSE_MS);
  const bytes = drain(transfer);
  parentPort!.postMessage(bytes, [bytes.buffer]);
});
