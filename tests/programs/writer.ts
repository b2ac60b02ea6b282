/**
 * A Worker that writes its share of the bytes of a buffer: every byte whose number modulo `of` is `id`
 * becomes `id + 1`.
 *
 * @module
 */
import { parentPort } from "node:worker_threads";
import { type SharedHandle, viewShared } from "../../mod.ts";

interface Order {
  share: SharedHandle;
  start: SharedArrayBuffer;
  id: number;
  of: number;
}

parentPort!.on("message", ({ share, start, id, of }: Order) => {
  const view = viewShared(share);
  parentPort!.postMessage("ready");
  Atomics.wait(new Int32Array(start), 0, 0);
  for (let i = id; i < view.length; i += of) view[i] = id + 1;
  parentPort!.postMessage("done");
});
