import assert from "node:assert/strict";
import { test } from "node:test";
import { type Channel, listen, type MoatError, Pool } from "../mod.ts";
import { Child, freshAddress, other } from "./support/child.ts";
import { codeOf } from "./support/errors.ts";

interface Meeting {
  pool: Pool;
  channel: Channel;
  child: Child;
}

async function meet(
  t: { after(fn: () => void): void },
  mode: string,
  ms: number,
): Promise<Meeting> {
  const pool = Pool.create({ bytes: 32 << 20 }), address = freshAddress();
  const listener = await listen(address, { pool });
  const child = new Child(t, "peer", [address, mode, String(ms)], other());
  const channel = await listener.accept();
  await listener.close();
  return { pool, channel, child };
}

async function assertAllBack({ pool, channel }: Meeting): Promise<void> {
  await channel.close();
  const stats = pool.stats();
  assert.equal(stats.freeFrames, stats.reserveFrames);
  await pool.close();
}

test("a peer killed while it holds messages: every pending promise rejects with PEER_LOST", async (t) => {
  const meeting = await meet(t, "hold", 300);
  const { pool, channel } = meeting;
  const buffers = Array.from({ length: 20 }, () => pool.alloc(1 << 20));
  const pending = buffers.map((buf) => codeOf(channel.send(buf, { guard: "cow" })));
  for (const buf of buffers) buf.bytes.fill(9);
  const receives = [codeOf(channel.recv()), codeOf(channel.recv(pool.alloc(4096)))];
  const codes = await Promise.all([...pending, ...receives]);
  assert.deepEqual(codes, codes.map(() => "PEER_LOST"));
  assert.equal((await meeting.child.exit).signal, "SIGKILL");
  assert.equal(await codeOf(channel.send(buffers[0]!)), "PEER_LOST");
  await assertAllBack(meeting);
});

test("a peer killed while a write waits for it: the write goes on", async (t) => {
  const meeting = await meet(t, "hold", 400);
  const { pool, channel } = meeting;
  const buf = pool.alloc(1 << 20);
  const sent = codeOf(channel.send(buf, { guard: "wait" }));
  buf.bytes[4096] = 7; // held here until the peer is gone
  assert.equal(buf.bytes[4096], 7);
  assert.equal(pool.stats().waits.count, 1);
  assert.equal(pool.stats().timeouts.waited, 0);
  assert.equal(await sent, "PEER_LOST");
  await assertAllBack(meeting);
});

test("a peer killed while a read waits for it: the read goes on", async (t) => {
  const meeting = await meet(t, "hold", 400);
  const { pool, channel } = meeting;
  const buf = pool.alloc(100_000);
  buf.bytes.fill(3);
  channel.send(new Uint8Array(1)).catch(() => {}); // from now on it has its 400 ms
  const received = codeOf(channel.recv(buf));
  assert.equal(buf.bytes[50_000], 3); // held here until the peer is gone
  assert.equal(pool.stats().waits.count, 1);
  assert.equal(pool.stats().timeouts.waited, 0);
  assert.equal(await received, "PEER_LOST");
  await assertAllBack(meeting);
});

test("a peer killed in the middle of sending: what came whole is whole, then PEER_LOST", async (t) => {
  const meeting = await meet(t, "dribble", 500);
  const { channel } = meeting;
  let whole = 0, code = "";
  try {
    for await (using message of channel) {
      assert.equal(message.byteLength, 1 << 20);
      if (message.bytes.every((byte) => byte === 1)) whole++;
    }
  } catch (error) {
    code = (error as MoatError).code;
  }
  assert.equal(code, "PEER_LOST");
  assert.ok(whole > 0);
  await assertAllBack(meeting);
});

test("messages of a dead peer can be read until they are released", async (t) => {
  const meeting = await meet(t, "dribble", 300);
  const { channel, child } = meeting;
  const message = await channel.recv();
  await child.exit;
  assert.ok(message!.bytes.every((byte) => byte === 1));
  message!.release();
  await assertAllBack(meeting);
});
