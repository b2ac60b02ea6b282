import assert from "node:assert/strict";
import { closeSync, openSync, readSync } from "node:fs";
import { test } from "node:test";
import { Pool } from "../mod.ts";
import { SYSTEM_CALLS, type SystemCall } from "../tools/docs/system_calls.ts";
import type { Seen } from "./programs/system_calls.ts";
import { Child, here } from "./support/child.ts";
import { pair } from "./support/pair.ts";

test("what the documentation says of each function of the runtime is what it does to a guarded buffer", async (t) => {
  const child = new Child(t, "system_calls");
  const { stdout, stderr, ...exit } = await child.exit;
  assert.deepEqual(exit, { code: 0, signal: null }, stderr);
  const seen = stdout.trim().split("\n").map((line) => JSON.parse(line) as Seen);
  const all = Object.entries(SYSTEM_CALLS) as [string, SystemCall][];
  assert.deepEqual(
    Object.fromEntries(seen.map(({ name, outcome }) => [name, outcome])),
    Object.fromEntries(all.flatMap(([name, call]) => call[here] ? [[name, call[here]]] : [])),
  );
});

test("of a buffer that is guarded from some page on, a system call fills what lies before it", async () => {
  await using pool = Pool.create({ bytes: 1 << 20 });
  using both = await pair(pool);
  using buf = pool.alloc(8192);
  const sent = both.here.send(buf.bytes.subarray(4096), { guard: "cow" });
  const message = await both.there.recv();
  const zero = openSync("/dev/zero", "r");
  assert.equal(readSync(zero, buf.bytes, 0, 8192, null), 4096);
  closeSync(zero);
  message!.release();
  await sent;
});

test("a view from before the send stays closed to system calls until bytes is asked for", async () => {
  await using pool = Pool.create({ bytes: 1 << 20 });
  using both = await pair(pool);
  using buf = pool.alloc(8192);
  const view = buf.bytes.subarray(0, 8192);
  const sent = both.here.send(buf, { guard: "cow" });
  (await both.there.recv())!.release();
  await sent;
  const zero = openSync("/dev/zero", "r");
  assert.throws(() => readSync(zero, view, 0, 8192, null), { code: "EFAULT" });
  assert.equal(readSync(zero, buf.bytes, 0, 8192, null), 8192);
  assert.equal(readSync(zero, view, 0, 8192, null), 8192);
  closeSync(zero);
});
