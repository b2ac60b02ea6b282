/**
 * Workers that make a pool each, all at the same moment; says how many copies of the helper there are then.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import process from "node:process";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { Pool } from "../../mod.ts";
import { say } from "../support/child.ts";

const COUNT = 4;

if (isMainThread) {
  const memory = new SharedArrayBuffer(8), [ready, go] = [0, 1], flags = new Int32Array(memory);
  const workers = Array.from(
    { length: COUNT },
    () => new Worker(new URL(import.meta.url), { workerData: memory }),
  );
  const done = workers.map((worker) => new Promise((resolve) => worker.on("message", resolve)));
  while (Atomics.load(flags, ready) < COUNT) await new Promise((resolve) => setTimeout(resolve, 5));
  Atomics.store(flags, go, 1);
  Atomics.notify(flags, go);
  await Promise.all(done);
  const code = readFileSync("/proc/self/maps", "utf8").split("\n")
    .filter((line) => / r-xp .*\/memfd:moat-/.test(line));
  say({ copies: code.length });
  process.exit(0);
} else {
  const flags = new Int32Array(workerData as SharedArrayBuffer);
  Atomics.add(flags, 0, 1);
  Atomics.wait(flags, 1, 0);
  Pool.create({ bytes: 1 << 20 });
  parentPort!.postMessage("done");
}
