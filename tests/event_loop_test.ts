import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { listen, MoatError, Pool } from "../mod.ts";
import { Child, freshAddress } from "./support/child.ts";
import { pair } from "./support/pair.ts";

test("an idle connection with a pending receive uses no CPU", async (t) => {
  const child = new Child(t, "loop", ["idle"]);
  const { microseconds } = await child.next<{ microseconds: number }>();
  // A loop that polled would use a million in that second.
  assert.ok(microseconds < 50_000, `${microseconds} us of CPU in a second`);
});

test("a pending receive keeps the process alive until its message has come", async (t) => {
  const child = new Child(t, "loop", ["held"]);
  assert.deepEqual(await child.next(), { got: 5 });
  assert.equal((await child.exit).code, 0);
});

test("an open channel with nothing pending lets the process end", async (t) => {
  const { code, stdout } = await new Child(t, "loop", ["open"]).exit;
  assert.equal(stdout.trim(), '"open"');
  assert.equal(code, 0);
});

test("after unref() a pending receive and a pending accept let the process end", async (t) => {
  const { code, stdout } = await new Child(t, "loop", ["unref"]).exit;
  assert.equal(stdout.trim(), '"unreferenced"');
  assert.equal(code, 0);
});

test("after ref() a pending receive keeps the process alive again", async (t) => {
  const child = new Child(t, "loop", ["reref"]);
  assert.deepEqual(await child.next(), { got: 6 });
  assert.equal((await child.exit).code, 0);
});

test("timers and file I/O stay live while messages go through without a pause", async (t) => {
  const child = new Child(t, "loop", ["load"]);
  const { ticks, files, messages } = await child.next<Record<string, number>>();
  // On a machine of its own it is 190, 300 and 100,000; a loop that starved them would give none.
  assert.ok(ticks! > 1, `${ticks} ticks of a 5 ms timer in a second`);
  assert.ok(files! > 1, `${files} files read`);
  assert.ok(messages! > 100, `${messages} messages`);
  assert.equal((await child.exit).code, 0);
});

test("receives are told in their order, also where the event loop gets a turn between them", async () => {
  const pool = Pool.create({ bytes: 1 << 20 }), count = 300;
  {
    using ends = await pair(pool);
    const { here, there } = ends, told: number[] = [];
    for (let i = 0; i < count; i++) here.send(Uint16Array.of(i));
    const receives = Array.from({ length: count }, () =>
      there.recv().then((message) => {
        told.push(new DataView(message!.bytes.buffer).getUint16(0, true));
      }));
    await Promise.all(receives);
    assert.deepEqual(told, [...Array(count).keys()]);
  }
  await pool.close();
});

test("timers stay live while each message is there when it is asked for", async () => {
  const pool = Pool.create({ bytes: 1 << 20 });
  {
    using ends = await pair(pool);
    const { here, there } = ends, data = new Uint8Array(64);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    for (let i = 0; i < 20_000; i++) {
      await here.send(data);
      (await there.recv())!.release();
    }
    clearInterval(timer);
    assert.ok(ticks > 1, `${ticks} ticks of a 1 ms timer in 20,000 messages`);
  }
  await pool.close();
});

test("a process that ends with channels open ends cleanly, ten times", async (t) => {
  for (let i = 0; i < 10; i++) {
    const { code, signal, stderr } = await new Child(t, "loop", ["open"]).exit;
    assert.deepEqual({ code, signal }, { code: 0, signal: null }, stderr);
  }
});

test("a Worker terminated with a channel open: its peer is told, and nothing crashes", async () => {
  const pool = Pool.create({ bytes: 1 << 20 }), address = freshAddress();
  const listener = await listen(address, { pool });
  for (let i = 0; i < 3; i++) {
    const worker = new Worker(new URL("./programs/terminated.ts", import.meta.url), {
      workerData: address,
    });
    const ready = once(worker, "message");
    const channel = await listener.accept();
    using first = await channel.recv();
    assert.deepEqual([...first!.bytes], [1, 2, 3]);
    await ready;
    const told = assert.rejects(
      channel.recv(),
      (e) => e instanceof MoatError && e.code === "PEER_LOST",
    );
    await worker.terminate();
    // Wakes whoever is left to be woken.
    await channel.send(new Uint8Array(10)).catch(() => {});
    await told;
    await channel.close();
  }
  await listener.close();
  await pool.close();
});
