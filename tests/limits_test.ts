import assert from "node:assert/strict";
import { test } from "node:test";
import { type Channel, listen, MoatError, Pool, type PoolOptions } from "../mod.ts";
import { helper, QUERY } from "../ffi/helper.ts";
import { Child, freshAddress, other } from "./support/child.ts";

type Test = { after(fn: () => void): void };

async function toPeer(t: Test, mode: string, options: PoolOptions): Promise<[Pool, Channel]> {
  const pool = Pool.create(options), address = freshAddress();
  const listener = await listen(address, { pool });
  new Child(t, "peer", [address, mode], other());
  const channel = await listener.accept();
  await listener.close();
  return [pool, channel];
}

async function end(pool: Pool, channel: Channel): Promise<void> {
  await channel.close();
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames);
  await pool.close();
}

test("100,000 buffers in flight at once, each rewritten at once, without an error", async (t) => {
  const count = 100_000;
  const [pool, channel] = await toPeer(t, "release", { bytes: count * 4096 });
  const sends: Promise<unknown>[] = [];
  for (let i = 0; i < count; i++) {
    const buf = pool.alloc(4096);
    sends.push(channel.send(buf, { guard: "cow" }));
    buf.bytes[0] = 1;
  }
  assert.equal(helper().moat_query(QUERY.opsLive, 0) > 16_384, true);
  await Promise.all(sends);
  assert.ok(pool.stats().privatePages + pool.stats().restores > 0);
  await end(pool, channel);
});

test("without a mapping left a guard becomes a copy, and nothing fails", async (t) => {
  const [pool, channel] = await toPeer(t, "release", { bytes: 64 << 20 });
  const native = helper(), budget = native.moat_query(QUERY.mapsBudget, 0);
  native.moat_set_maps_budget(native.moat_query(QUERY.mapsUsed, 0) + 10);
  try {
    const buffers = Array.from({ length: 100 }, () => pool.alloc(16384));
    const results = await Promise.all(
      buffers.filter((_, i) => i % 2 === 0).map((buf) => channel.send(buf, { guard: "cow" })),
    );
    const guards = new Set(results.map(({ guard }) => guard));
    assert.deepEqual([...guards].sort(), ["copy", "cow"]);
    assert.ok(pool.stats().degraded.toCopy > 0);
  } finally {
    native.moat_set_maps_budget(budget);
  }
  await end(pool, channel);
});

test("without a mapping left a write under cow waits, and what is sent stays whole", async (t) => {
  const [pool, channel] = await toPeer(t, "release", { bytes: 16 << 20 });
  const native = helper(), budget = native.moat_query(QUERY.mapsBudget, 0);
  const buf = pool.alloc(1 << 20);
  buf.bytes.fill(1);
  // Enough are under way that the last is not released when it is written to.
  const sends = Array.from({ length: 200 }, () => channel.send(buf, { guard: "cow" }));
  native.moat_set_maps_budget(native.moat_query(QUERY.mapsUsed, 0));
  try {
    for (let at = 0; at < buf.byteLength; at += 8192) buf.bytes[at] = 2;
    await Promise.all(sends);
  } finally {
    native.moat_set_maps_budget(budget);
  }
  for (let at = 0; at < buf.byteLength; at += 8192) assert.equal(buf.bytes[at], 2);
  await end(pool, channel);
});

test("without a frame left a write under cow waits until one is there", async (t) => {
  const [pool, channel] = await toPeer(t, "release", { bytes: 4 << 20, reserve: 0 });
  const buf = pool.alloc(1 << 20);
  buf.bytes.fill(1);
  const sends = Array.from({ length: 50 }, () => channel.send(buf, { guard: "cow" }));
  buf.bytes.fill(2);
  await Promise.all(sends);
  assert.equal(pool.stats().privatePages, 0);
  assert.ok(buf.bytes.every((byte) => byte === 2));
  await end(pool, channel);
});

test("copies that find no frame are staged, in order, and all arrive", async (t) => {
  const [pool, channel] = await toPeer(t, "release", { bytes: 8 << 20, reserve: 1 << 20 });
  const data = new Uint8Array(512 << 10);
  const sends = Array.from({ length: 40 }, (_, i) => channel.send(data.fill(i)));
  const results = await Promise.all(sends);
  assert.equal(results.length, 40);
  assert.ok(pool.stats().degraded.staged > 0);
  await end(pool, channel);
});

test("a copy larger than the reserve is refused with the sizes", async (t) => {
  const [pool, channel] = await toPeer(t, "release", { bytes: 1 << 20, reserve: 1 << 20 });
  await assert.rejects(
    channel.send(new Uint8Array(2 << 20)),
    (e) =>
      e instanceof MoatError && e.code === "MESSAGE_TOO_LARGE" &&
      /2097152.*1048576/.test(e.message),
  );
  await end(pool, channel);
});

test("sends to a receiver that does not receive queue, and go on when it does", async () => {
  const pool = Pool.create({ bytes: 16 << 20 }), address = freshAddress();
  const listener = await listen(address, { pool });
  const peerPool = Pool.create({ bytes: 1 << 20 });
  const { connect } = await import("../mod.ts");
  const [b, a] = await Promise.all([connect(address, { pool: peerPool }), listener.accept()]);
  await listener.close();
  const buf = pool.alloc(40_000), count = 3000; // more than the ring has places
  let done = 0;
  const sends = Array.from({ length: count }, (_, i) => {
    buf.bytes.fill(i & 255);
    return a.send(i % 3 ? buf : buf.bytes.subarray(0, 100), { guard: i % 3 ? "copy" : "auto" })
      .then(() => done++);
  });
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.ok(done < count);
  for (let i = 0; i < count; i++) {
    using message = await b.recv();
    assert.equal(message!.byteLength, i % 3 ? 40_000 : 100);
    assert.equal(message!.bytes[99], i & 255, `message ${i}`);
  }
  await Promise.all(sends);
  await a.close();
  await b.close();
  await peerPool.close();
  await pool.close();
});
