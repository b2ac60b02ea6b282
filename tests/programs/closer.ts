/**
 * Closes pools while a Worker writes to guarded pages of them.
 *
 *     closer.ts POOLS
 */
import process from "node:process";
import { isMainThread, parentPort, Worker } from "node:worker_threads";
import { Pool, type SharedHandle, viewShared } from "../../mod.ts";
import { say } from "../support/child.ts";

const PAGE = 4096, PAGES = 4096;

async function close(pools: number): Promise<void> {
  const worker = new Worker(new URL(import.meta.url));
  const told = (): Promise<void> => new Promise((resolve) => worker.once("message", resolve));
  for (let i = 0; i < pools; i++) {
    const pool = Pool.create({ bytes: PAGES * PAGE, hugePages: false });
    const buf = pool.alloc(PAGES * PAGE);
    buf.snapshot().release(); // leaves the pages closed to writes
    const began = told();
    worker.postMessage(buf.share());
    await began;
    const ended = told();
    await pool.close();
    await ended;
  }
  say({ pools });
  process.exit(0);
}

function write(handle: SharedHandle): void {
  const view = viewShared(handle);
  parentPort!.postMessage("began");
  for (let i = 0, page = 1; i < 20_000; i++) {
    page = (page * 1_103_515_245 + 12_345) & 0x7fffffff;
    view[(page >> 8) % PAGES * PAGE] = 1;
  }
  parentPort!.postMessage("ended");
}

if (isMainThread) await close(Number(process.argv[2]));
else parentPort!.on("message", write);
