import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import process from "node:process";
import { test } from "node:test";
import { connect, listen, Pool } from "../mod.ts";
import { helper, QUERY } from "../ffi/helper.ts";
import { Child, freshAddress, other } from "./support/child.ts";

interface Resources {
  descriptors: number;
  mappings: number;
  heap: number;
  shared: number;
  resident: number;
  operations: number;
}

function resources(): Resources {
  (globalThis as { gc?: () => void }).gc?.();
  (globalThis as { Bun?: { gc(now: boolean): void } }).Bun?.gc(true);
  return {
    descriptors: readdirSync("/proc/self/fd").length,
    // The runtime's heap comes and goes by hundreds of mappings; ours have a name.
    mappings: readFileSync("/proc/self/maps", "utf8").split("memfd:moat").length,
    heap: process.memoryUsage().heapUsed,
    shared: Number(/RssShmem:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))![1]) * 1024,
    resident: process.memoryUsage().rss,
    operations: helper().moat_query(QUERY.opsLive, 0),
  };
}

test("1,000,000 sends leave descriptors, mappings, frames, operations and memory where they were", async (t) => {
  const pool = Pool.create({ bytes: 16 << 20 }), address = freshAddress();
  const listener = await listen(address, { pool });
  const child = new Child(t, "peer", [address, "release"], other());
  const channel = await listener.accept();
  await listener.close();
  const buffers = Array.from({ length: 8 }, () => pool.alloc(64 << 10));
  const small = new Uint8Array(200);
  const flying: Promise<unknown>[] = [];
  async function send(count: number): Promise<void> {
    for (let i = 0; i < count; i++) {
      const buf = buffers[i & 7]!;
      flying.push(
        i % 4 === 0
          ? channel.send(buf, { guard: "cow" })
          : i % 4 === 1
          ? channel.send(buf.bytes.subarray(1, 20_000), { guard: "copy" })
          : channel.send(small),
      );
      if (i % 16 === 0) buf.bytes[i & 0xffff] = i;
      if (flying.length >= 64) await Promise.all(flying.splice(0));
    }
    await Promise.all(flying.splice(0));
  }
  await send(250_000); // caches, compiled code and the heap find their sizes
  const before = [resources()];
  await send(125_000);
  before.push(resources());
  await send(1_000_000);
  const after = [resources()];
  await send(125_000);
  after.push(resources());
  for (
    const key of ["descriptors", "operations", "mappings", "heap", "shared", "resident"] as const
  ) {
    // The least of later samples is held against the most of earlier ones: what grows with every send shows
    // all the same. 128 pages of window can be in no more mappings than that. V8 keeps up to 200 MiB of empty
    // pages for its young generation, or not, so resident memory can only be held to 256 bytes a send.
    const most = Math.max(...before.map((each) => each[key]));
    const least = Math.min(...after.map((each) => each[key]));
    const slack: Resources = {
      descriptors: 0,
      operations: 0,
      mappings: 256,
      heap: 4 << 20,
      shared: 4 << 20,
      resident: 256 << 20,
    };
    assert.ok(least <= most + slack[key], `${key}: ${most} → ${least}`);
  }
  assert.equal(pool.stats().freeFrames, pool.stats().reserveFrames);
  await channel.close();
  assert.equal((await child.exit).code, 0);
  await pool.close();
});

test("200 connections on one pool, closed in any order, leave nothing behind", async () => {
  const pool = Pool.create({ bytes: 4 << 20 });
  const buf = pool.alloc(50_000);
  async function round(count: number): Promise<void> {
    const address = freshAddress(), listener = await listen(address, { pool });
    const pairs = [];
    for (let i = 0; i < count; i++) {
      pairs.push(await Promise.all([connect(address, { pool }), listener.accept()]));
    }
    await listener.close();
    const sends = pairs.map(([a]) => a.send(buf, { guard: "cow" }));
    for (const [, b] of pairs) (await b.recv())!.release();
    await Promise.all(sends);
    const all = pairs.flat().sort((x, y) => x.peer.length - y.peer.length || Math.random() - 0.5);
    for (const channel of all) await channel.close();
  }
  await round(200);
  const before = resources();
  await round(200);
  const after = resources();
  assert.ok(
    after.descriptors <= before.descriptors,
    `${before.descriptors} → ${after.descriptors}`,
  );
  assert.equal(after.operations, before.operations);
  assert.ok(after.mappings <= before.mappings + 30, `${before.mappings} → ${after.mappings}`);
  assert.equal(pool.stats().freeFrames, pool.stats().reserveFrames);
  await pool.close();
});

test("pools made and closed leave nothing behind", async () => {
  async function round(): Promise<void> {
    const pool = Pool.create({ bytes: 1 << 20 });
    const bufs = [pool.alloc(5000), pool.alloc(5000)];
    bufs[0]!.bytes.fill(1);
    bufs[1]!.free();
    await pool.close();
    assert.equal(bufs[0]!.bytes.length, 0);
  }
  for (let i = 0; i < 50; i++) await round();
  const before = resources();
  for (let i = 0; i < 500; i++) await round();
  const after = resources();
  assert.ok(
    after.descriptors <= before.descriptors,
    `${before.descriptors} → ${after.descriptors}`,
  );
  assert.ok(after.mappings <= before.mappings, `${before.mappings} → ${after.mappings}`);
});
