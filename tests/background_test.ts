// Large receives into a buffer over shm:// are brought in by the doorbell's thread, while the program computes or goes
// on sending and receiving.
import assert from "node:assert/strict";
import { test } from "node:test";
import { runtime } from "../ffi/runtime.ts";
import { coreOf } from "../lib/memory/pool.ts";
import { type Channel, type Fault, MoatError, Pool, type PoolBuffer } from "../mod.ts";
import { assertBytes, fill, pattern, same } from "./support/bytes.ts";
import { pair } from "./support/pair.ts";
import { sender } from "./support/sender.ts";

const KIB = 1 << 10, MIB = 1 << 20;

/** A buffer as a device sees it. Nothing has been swapped or written in flight: its frames are where it was made. */
function frames(pool: Pool, buf: PoolBuffer): Uint8Array {
  const { device, pageSize } = coreOf(pool);
  return new Uint8Array(runtime().viewOf(device + buf.page * pageSize, buf.byteLength));
}

/** Keeps the thread busy: no turn of the event loop, and no access to a buffer. */
function compute(ms: number): void {
  for (const until = performance.now() + ms; performance.now() < until;);
}

test("a message is there when a program that only computed touches its buffer", async (t) => {
  const { pool, channel, order, close } = await sender(t, { bytes: 16 * MIB }), bytes = 4 * MIB;
  const bufs = [pool.alloc(bytes), pool.alloc(bytes)];
  const received: Promise<unknown>[] = [];
  const faults: Fault[] = [];
  pool.onFault = (fault): void => void faults.push(fault);
  for (let round = 0; round < 3; round++) {
    for (const buf of bufs) received.push(channel.recv(buf));
    order({ after: 0, messages: [{ seed: round, bytes }, { seed: round + 1, bytes }] });
    // A look at the frames themselves, which are never guarded.
    const last = frames(pool, bufs[1]!).subarray(bytes - 8),
      sent = pattern(round + 1, bytes).subarray(bytes - 8);
    for (let tries = 0; tries < 1000 && !same(last, sent); tries++) compute(10);
    compute(10);
    for (const [i, buf] of bufs.entries()) {
      assertBytes(buf.bytes, pattern(round + i, bytes), `message ${i} of round ${round}`);
    }
  }
  await Promise.all(received);
  assert.deepEqual(faults.filter(({ access }) => access === "read"), []);
  await close();
});

test("messages of all sizes come into large buffers in their order", async (t) => {
  const { pool, channel, order, close } = await sender(t, { bytes: 64 * MIB });
  const sizes = [
    1,
    2 * MIB,
    4 * KIB,
    300 * KIB,
    5 * MIB,
    16,
    256 * KIB,
    255 * KIB,
    3 * MIB,
    20 * KIB,
  ];
  const messages = sizes.map((bytes, seed) => ({ seed, bytes, offset: seed * 7 }));
  for (let round = 0; round < 4; round++) {
    const bufs = sizes.map(() => pool.alloc(5 * MIB)), done: number[] = [];
    const received = bufs.map((buf, i) =>
      channel.recv(buf).then((result) => {
        done.push(i);
        return result?.bytes;
      })
    );
    order({ after: 0, messages });
    if (round % 2) compute(300);
    assert.deepEqual(await Promise.all(received), sizes);
    assert.deepEqual(done, [...sizes.keys()], "the order in which they resolved");
    for (const [i, buf] of bufs.entries()) {
      assertBytes(buf.bytes.subarray(0, sizes[i]), pattern(i, sizes[i]!), `message ${i}`);
      buf.free();
    }
  }
  await close();
});

test("a receive after the message was sent, both ends in one thread, does not take itself for hopeless", async () => {
  const pool = Pool.create({ bytes: 32 * MIB });
  {
    using ends = await pair(pool);
    const { here, there } = ends, bytes = 8 * MIB;
    const from = pool.alloc(bytes), into = pool.alloc(bytes);
    for (let i = 0; i < 40; i++) {
      from.bytes.fill(i);
      const sent = there.send(from, { guard: "cow" }), received = here.recv(into);
      compute(i % 5 * 0.1); // the touch comes before, while and after it is brought in
      assert.equal(into.bytes[0], i);
      assert.equal(into.bytes[bytes - 1], i);
      await Promise.all([sent, received]);
    }
    assert.deepEqual(pool.stats().timeouts, { waited: 0, deadlock: 0 });
  }
  await pool.close();
});

test("a channel is ended while a message is being brought in", async () => {
  const bytes = 8 * MIB;
  const ends: ((here: Channel, there: Channel, stop: AbortController) => unknown)[] = [
    (here) => here.abort(),
    (_, there) => there.abort(),
    (here) => here.close(),
    (_here, _there, stop) => stop.abort(),
  ];
  const pool = Pool.create({ bytes: 4 * bytes });
  const from = pool.alloc(bytes), into = pool.alloc(bytes);
  from.bytes.fill(7);
  const seen = new Set<string>();
  for (let round = 0; round < 10; round++) {
    for (const [which, end] of ends.entries()) {
      into.bytes.fill(0);
      const { here, there } = await pair(pool), stop = new AbortController();
      const sent = there.send(from, { guard: "cow" }).then(() => "sent", codeOf);
      const received = here.recv(into, { signal: stop.signal }).then(() => "received", codeOf);
      compute(round % 5 * 0.05);
      const ended = end(here, there, stop);
      // Whatever came of it, the access does not hang, and sees all of the message or none.
      const outcome = await received;
      const [first, last] = [into.bytes[0], into.bytes[bytes - 1]];
      if (outcome === "received") assert.deepEqual([first, last], [7, 7], `end ${which}`);
      seen.add(outcome);
      here.abort();
      there.abort();
      await Promise.all([sent, ended]);
    }
  }
  for (const outcome of seen) {
    assert.match(outcome, /^(received|ABORTED|PEER_ABORTED|PEER_LOST|CHANNEL_CLOSED|AbortError)$/);
  }
  freeAll(from, into);
  await pool.close();
});

test("what came before the end of a connection follows a message that is still being brought in", async () => {
  const bytes = 64 * MIB, pool = Pool.create({ bytes: 2 * bytes });
  const from = pool.alloc(bytes), into = pool.alloc(bytes);
  from.bytes.fill(7);
  for (let round = 1; round <= 6; round++) {
    using ends = await pair(pool);
    const { here, there } = ends, told: string[] = [];
    const tell = (name: string, promise: Promise<unknown>): Promise<unknown> =>
      promise.then(() => name, codeOf).then((outcome) => told.push(outcome));
    const large = tell("large", here.recv(into, { guard: "none" }));
    for (const each of [from, new Uint8Array(8)]) {
      there.send(each, { guard: "none" }).catch(() => {});
    }
    compute(round);
    there.abort();
    await new Promise((resolve) => setTimeout(resolve, 1));
    await Promise.all([large, tell("small", here.recv()), tell("end", here.recv())]);
    assert.deepEqual(told, ["large", "small", "PEER_ABORTED"]);
  }
  freeAll(from, into);
  await pool.close();
});

test("a program that sleeps has each message while the next is being brought in", async () => {
  const bytes = 32 * MIB, pool = Pool.create({ bytes: 5 * bytes });
  const from = pool.alloc(bytes), bufs = [1, 2, 3, 4].map(() => pool.alloc(bytes));
  let early = 0;
  {
    using ends = await pair(pool);
    const { here, there } = ends;
    // Where there is but one processor, the doorbell's thread may have all four before anybody else gets a turn.
    for (let round = 0; round < 5 || (early === 0 && round < 200); round++) {
      let told = 0;
      const receives = bufs.map((buf) =>
        here.recv(buf, { guard: "none" }).then(() => {
          told++;
        })
      );
      await new Promise((resolve) => setTimeout(resolve, 5)); // it has gone to sleep
      const sends = bufs.map(() => there.send(from, { guard: "none" }));
      await receives[0];
      await new Promise((resolve) => setImmediate(resolve));
      early += Number(told < bufs.length);
      await Promise.all([...receives, ...sends]);
    }
  }
  assert.ok(early > 0, "all four were always told together");
  freeAll(from, ...bufs);
  await pool.close();
});

test("an access that has waited long enough does not lose the message that is just being brought in", async () => {
  const bytes = 192 * MIB, pool = Pool.create({ bytes: 2 * bytes, guardTimeout: 1 });
  const from = pool.alloc(bytes), into = pool.alloc(bytes);
  {
    using ends = await pair(pool);
    const { here, there } = ends;
    for (let round = 1; round <= 6; round++) {
      from.bytes.fill(round, bytes - 1);
      const received = here.recv(into), sent = there.send(from, { guard: "none" });
      compute(round);
      assert.equal(into.bytes[bytes - 1], round);
      assert.equal((await received)?.bytes, bytes);
      await sent;
    }
  }
  freeAll(from, into);
  await pool.close();
});

test("a message does not wait until all of another channel have been brought in", async () => {
  const bytes = 16 * MIB, pool = Pool.create({ bytes: 3 * bytes });
  const from = pool.alloc(bytes), into = pool.alloc(bytes), beside = pool.alloc(bytes);
  let least = Infinity;
  {
    using many = await pair(pool);
    using one = await pair(pool);
    const last = frames(pool, beside).subarray(bytes - 1);
    for (let round = 1; round <= 3; round++) {
      from.bytes.fill(round);
      const under: Promise<unknown>[] = [];
      for (let i = 0; i < 40; i++) under.push(many.here.recv(into, { guard: "none" }));
      under.push(one.here.recv(beside, { guard: "none" }));
      await new Promise((resolve) => setTimeout(resolve, 5));
      const start = performance.now();
      for (let i = 0; i < 40; i++) under.push(many.there.send(from, { guard: "none" }));
      under.push(one.there.send(from, { guard: "none" }));
      while (last[0] !== round && performance.now() - start < 5000) compute(0.1); // nobody but the doorbell's thread brings them in
      const came = performance.now() - start;
      await Promise.all(under);
      least = Math.min(least, came / (performance.now() - start));
    }
  }
  assert.ok(least < 0.7, `it was there after ${least} of the time of the others, at least`);
  freeAll(from, into, beside);
  await pool.close();
});

test("sends do not wait while a message is being brought in", async () => {
  const pool = Pool.create({ bytes: 160 * MIB });
  {
    using ends = await pair(pool);
    const { here, there } = ends, bytes = 64 * MIB;
    const from = pool.alloc(bytes), into = pool.alloc(bytes);
    fill(from.bytes, 3);
    const sent = there.send(from, { guard: "cow" }), received = here.recv(into);
    let before = 0;
    for (let i = 0; i < 100; i++) {
      here.send(new Uint8Array(64));
      compute(0.01);
      before += Number(pool.stats().bytesReceived === 0);
    }
    assert.equal(before, 100, "JavaScript has not looked yet");
    assertBytes(into.bytes, from.bytes, "the message");
    await Promise.all([sent, received]);
  }
  await pool.close();
});

function codeOf(error: unknown): string {
  return error instanceof MoatError ? error.code : (error as Error).name;
}

function freeAll(...bufs: PoolBuffer[]): void {
  for (const buf of bufs) buf.free();
}
