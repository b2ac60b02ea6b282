import assert from "node:assert/strict";
import { once } from "node:events";
import process from "node:process";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { type Guard, listen, Pool } from "../mod.ts";
import { Child, freshAddress, other } from "./support/child.ts";

// `deno task soak` runs the long form.
const SECONDS = process.env.MOAT_SOAK ? 60 : 5;

const wasm = new Uint8Array([
  ...[0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0, 5, 3, 1, 0, 1],
  ...[7, 8, 1, 4, 108, 111, 97, 100, 0, 0, 10, 9, 1, 7, 0, 32, 0, 40, 2, 0, 11],
]);

function collect(): void {
  (globalThis as { gc?: () => void }).gc?.();
  (globalThis as { Bun?: { gc(now: boolean): void } }).Bun?.gc(true);
}

test(`${SECONDS} s of sends, faults, a Worker, collections and WebAssembly traps: no wrong byte`, async (t) => {
  const pool = Pool.create({ bytes: 32 << 20 }), address = freshAddress();
  const listener = await listen(address, { pool });
  const child = new Child(t, "checker", [address], other());
  const channel = await listener.accept();
  await listener.close();

  const buffers = Array.from({ length: 6 }, (_, i) => pool.alloc((16 << 10) << i));
  const words = buffers.map(({ bytes }) => new Float64Array(bytes.buffer, 0, bytes.byteLength / 8));
  const stop = new SharedArrayBuffer(4);
  const worker = new Worker(new URL("./programs/scribbler.ts", import.meta.url), {
    workerData: { handles: buffers.map((buf) => buf.share()), stop },
  });
  const scribbled = once(worker, "message") as Promise<[{ writes: number; lost: number }]>;

  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(wasm));
  const load = exports.load as (at: number) => number;
  const guards: Guard[] = ["cow", "wait", "cow", "copy", "auto", "cow"];
  const echo = pool.alloc(4096), flying: Promise<unknown>[] = [];
  let traps = 0, echoes = 0, sent = 0;
  for (const end = performance.now() + SECONDS * 1000; performance.now() < end;) {
    const i = sent % buffers.length, view = words[i]!;
    // Waits for, or moves away from, whatever still holds these pages.
    for (let at = 0; at < view.length; at++) if (at % 512 !== 511) view[at] = sent;
    flying.push(channel.send(buffers[i]!, { guard: guards[(sent * 7) % guards.length]! }));
    sent++;
    if (sent % 8 === 0) {
      try {
        load(0x7fff_0000);
      } catch {
        traps++;
      }
    }
    if (sent % 16 === 0) {
      // A pending receive, read before it was awaited.
      const back = channel.recv(echo);
      void channel.send(new Uint8Array(100).fill(sent & 127 | 128));
      assert.equal(echo.bytes[99], sent & 127 | 128);
      echoes++;
      await back;
      echo.bytes.fill(0);
    }
    if (sent % 500 === 0) collect();
    if (flying.length > 12) await flying.shift();
  }
  await Promise.all(flying);
  Atomics.store(new Int32Array(stop), 0, 1);
  const [{ writes, lost }] = await scribbled;
  await channel.close();
  const told = await child.next<{ messages: number; words: number; wrong: number }>();
  const { faults, privatePages, restores, timeouts } = pool.stats();
  t.diagnostic(
    `${sent} messages, ${told.words} words, ${faults.writes} write and ${faults.reads} read faults, ` +
      `${privatePages} private pages, ${restores} restores, ${writes} writes of the Worker, ${traps} traps`,
  );
  assert.equal(told.wrong, 0);
  assert.equal(told.messages, sent);
  assert.equal(lost, 0);
  assert.ok(writes > 0 && traps > 0 && echoes > 0);
  assert.ok(privatePages > 0 && restores > 0 && faults.writes > 100);
  assert.deepEqual(timeouts, { waited: 0, deadlock: 0 });
  assert.equal(pool.stats().freeFrames, pool.stats().reserveFrames);
  await worker.terminate();
  await pool.close();
});
