import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { Worker } from "node:worker_threads";
import { GuardTimeoutError, listen, Pool } from "../mod.ts";
import type { Task } from "./programs/reader.ts";
import type { Order } from "./programs/sender.ts";
import { assertBytes, fill, pattern, sha256 } from "./support/bytes.ts";
import { freshAddress } from "./support/child.ts";
import { pair } from "./support/pair.ts";
import { assertNothingHeld, type Sender, sender } from "./support/sender.ts";

const KIB = 1 << 10, MIB = 1 << 20;

// How long the other side waits before it sends, in milliseconds: long enough for the access that is to
// wait to come first.
const MOMENT = 100;

// One process for all tests that need nothing special of it.
let shared: Sender;
let end = (): void => {};
before(async () => {
  shared = await sender({ after: (fn) => end = fn });
});
after(async () => {
  end();
  shared.channel.abort();
  await shared.pool.close();
});

// Accesses that have waited.
const waits = (): number => shared.pool.stats().waits.count;

// ---- reads of a pending buffer

// Compiled where it is called, so that its first call is the one that waits.
function fresh(body: string): (view: Uint8Array) => unknown {
  return new Function("view", body) as (view: Uint8Array) => unknown;
}

function sum(view: Uint8Array): number {
  let total = 0;
  for (let i = 0; i < view.length; i++) total += view[i]!;
  return total;
}

const LENGTH = 64 * KIB;

const buffer = (view: Uint8Array): Buffer =>
  Buffer.from(view.buffer as ArrayBuffer, view.byteOffset, view.length);

const READS: Record<string, (view: Uint8Array) => unknown> = {
  "an element, in the first call of a function": fresh("return view[5]"),
  "a loop, in the first call of a function": fresh(
    "let total = 0; for (let i = 0; i < view.length; i++) total += view[i]; return total",
  ),
  "a DataView": (view) => new DataView(view.buffer, view.byteOffset).getFloat64(8192),
  "a Uint32Array": (view) => new Uint32Array(view.buffer, view.byteOffset, 2000)[1999],
  "a BigUint64Array": (view) => new BigUint64Array(view.buffer, view.byteOffset, 2000)[1999],
  "Atomics.load": (view) => Atomics.load(view, 4097),
  "Atomics.load of an Int32Array": (view) => Atomics.load(new Int32Array(view.buffer), 9),
  "TextDecoder": (view) => new TextDecoder("latin1").decode(view),
  "TextDecoder of UTF-8": (view) => new TextDecoder().decode(view),
  "slice": (view) => view.slice(4000, 9000),
  "set into other memory": (view) => {
    const copy = new Uint8Array(view.length);
    copy.set(view);
    return copy;
  },
  "copyWithin into the rest of itself": (view) => view.copyWithin(0, 100, 200).slice(0, 100),
  "indexOf": (view) => view.indexOf(77),
  "spread": (view) => [...view.subarray(0, 100)],
  "structuredClone": (view) => structuredClone(view.subarray(0)),
  "Buffer.toString": (view) => buffer(view).toString("hex"),
  "Buffer.readUInt32BE": (view) => buffer(view).readUInt32BE(5000),
  "Buffer.compare": (view) => buffer(view).compare(pattern(5, LENGTH)),
  "Buffer.equals": (view) => buffer(view).equals(pattern(5, LENGTH)),
  "Buffer.indexOf": (view) => buffer(view).indexOf(Buffer.from([1, 2])),
  "Buffer.concat": (view) => Buffer.concat([buffer(view), Buffer.from("end")]),
  "a hash": sha256,
};

for (const [name, read] of Object.entries(READS)) {
  test(`reading a buffer being received waits for its data: ${name}`, async () => {
    const peer = shared, waited = waits();
    using buf = peer.pool.alloc(LENGTH);
    const view = buf.bytes;
    buf.bytes.fill(0xee);
    peer.order({ after: MOMENT, messages: [{ seed: 5, bytes: LENGTH }] });
    const received = peer.channel.recv(buf);
    const value = read(view);
    assert.equal(waits() - waited, 1, "accesses that waited");
    assert.deepEqual(value, read(pattern(5, LENGTH)));
    assert.equal((await received)!.bytes, LENGTH);
    assertNothingHeld(peer.pool);
  });
}

test("reading a buffer being received waits for its data: optimised code", async () => {
  const peer = shared, waited = waits();
  using buf = peer.pool.alloc(LENGTH);
  const view = buf.bytes;
  using small = peer.pool.alloc(64);
  const warm = small.bytes;
  for (let i = 0; i < 100_000; i++) sum(warm);
  peer.order({ after: MOMENT, messages: [{ seed: 5, bytes: LENGTH }] });
  const received = peer.channel.recv(buf);
  const total = sum(view);
  assert.equal(waits() - waited, 1, "accesses that waited");
  assert.equal(total, sum(pattern(5, LENGTH)));
  await received;
  assertNothingHeld(peer.pool);
});

// Starts a Worker that reads a buffer as soon as it is told.
async function reader(
  share: Task["share"],
): Promise<{ worker: Worker; state: Int32Array<SharedArrayBuffer>; hash: Promise<unknown> }> {
  const flags = new SharedArrayBuffer(8), workerData: Task = { share, flags };
  const worker = new Worker(new URL("programs/reader.ts", import.meta.url), { workerData });
  await once(worker, "message");
  const hash = once(worker, "message").then(([value]) => value);
  return { worker, state: new Int32Array(flags), hash };
}

test("a Worker that reads a buffer being received waits while the main thread is idle", async () => {
  const peer = shared, waited = waits();
  using buf = peer.pool.alloc(LENGTH);
  const { worker, state, hash } = await reader(buf.share());
  peer.order({ after: MOMENT, messages: [{ seed: 5, bytes: LENGTH }] });
  const received = peer.channel.recv(buf);
  Atomics.store(state, 0, 1);
  Atomics.notify(state, 0);
  assert.equal(await hash, sha256(pattern(5, LENGTH)));
  await received;
  assert.equal(waits() - waited, 1, "accesses that waited");
  await worker.terminate();
  assertNothingHeld(peer.pool);
});

test("a Worker that reads a buffer being received waits while the main thread is blocked", async () => {
  const peer = shared;
  using buf = peer.pool.alloc(LENGTH);
  const { worker, state, hash } = await reader(buf.share());
  peer.order({ after: MOMENT, messages: [{ seed: 5, bytes: LENGTH }] });
  const received = peer.channel.recv(buf);
  Atomics.store(state, 0, 1);
  Atomics.notify(state, 0);
  // This thread looks after nothing until the Worker has its data.
  Atomics.wait(state, 1, 0, 30_000);
  assert.equal(Atomics.load(state, 1), 1, "the Worker has read");
  assert.equal(await hash, sha256(pattern(5, LENGTH)));
  await received;
  await worker.terminate();
  assertNothingHeld(peer.pool);
});

test("a message from a Worker of the same process is waited for", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const address = freshAddress(), listener = await listen(address, { pool });
  const worker = new Worker(new URL("programs/sender.ts", import.meta.url), {
    workerData: address,
  });
  await using channel = await listener.accept();
  await listener.close();
  using buf = pool.alloc(LENGTH);
  const order: Order = { after: MOMENT, messages: [{ seed: 5, bytes: LENGTH }] };
  void channel.send(Buffer.from(JSON.stringify(order)));
  const received = channel.recv(buf);
  assertBytes(buf.bytes, pattern(5, LENGTH), "what was read");
  assert.deepEqual(pool.stats().timeouts, { waited: 0, deadlock: 0 });
  await received;
  await worker.terminate();
});

// ---- writes to a pending buffer

test("a write to a buffer being received waits and lands after the data", async () => {
  const peer = shared, waited = waits();
  using buf = peer.pool.alloc(LENGTH);
  peer.order({ after: MOMENT, messages: [{ seed: 5, bytes: LENGTH }] });
  const received = peer.channel.recv(buf);
  buf.bytes[4100] = 7;
  assert.equal(waits() - waited, 1, "accesses that waited");
  const expected = pattern(5, LENGTH);
  expected[4100] = 7;
  assertBytes(buf.bytes, expected, "data with the write on it");
  await received;
  assertNothingHeld(peer.pool);
});

test("Atomics.add to a buffer being received adds to the data", async () => {
  const peer = shared;
  using buf = peer.pool.alloc(LENGTH);
  peer.order({ after: MOMENT, messages: [{ seed: 5, bytes: LENGTH }] });
  const received = peer.channel.recv(buf);
  assert.equal(Atomics.add(buf.bytes, 9000, 1), pattern(5, LENGTH)[9000]);
  assert.equal(buf.bytes[9000], (pattern(5, LENGTH)[9000]! + 1) & 255);
  await received;
  assertNothingHeld(peer.pool);
});

// ---- where the data lands

const PLACES = [
  { offset: 0, bytes: 1, from: 0 },
  { offset: 1, bytes: 4095, from: 0 },
  { offset: 4093, bytes: 6, from: 4095 },
  { offset: 4093, bytes: 100_001, from: 1 },
  { offset: 777, bytes: 3 * MIB + 1, from: 4093 },
];
for (const { offset, bytes, from } of PLACES) {
  // Through the ring or a copy, and from the sender's pages, which lie differently.
  for (const guard of ["copy", "cow"] as const) {
    test(`${bytes} bytes sent by "${guard}" and received at offset ${offset} leave the bytes around them as they were`, async () => {
      const peer = shared;
      using buf = peer.pool.alloc(offset + bytes + 5000);
      const view = buf.bytes;
      view.fill(0xee);
      const expected = view.slice();
      expected.set(pattern(5, bytes), offset);
      peer.order({ after: 0, messages: [{ seed: 5, bytes, offset: from }], guard });
      assert.equal((await peer.channel.recv(view.subarray(offset, offset + bytes)))!.bytes, bytes);
      assertBytes(view, expected, "the whole buffer");
      assertNothingHeld(peer.pool);
    });
  }
}

test("a message shorter than the buffer leaves the rest as it was", async () => {
  const peer = shared;
  using buf = peer.pool.alloc(LENGTH);
  buf.bytes.fill(0xee);
  peer.order({ after: 0, messages: [{ seed: 5, bytes: 20_001 }] });
  assert.equal((await peer.channel.recv(buf))!.bytes, 20_001);
  const expected = new Uint8Array(LENGTH).fill(0xee);
  expected.set(pattern(5, 20_001));
  assertBytes(buf.bytes, expected, "the whole buffer");
  assertNothingHeld(peer.pool);
});

test("pages outside the part being received can be read at once", async () => {
  const peer = shared;
  using buf = peer.pool.alloc(LENGTH);
  const view = buf.bytes;
  view.fill(0xee);
  peer.order({ after: MOMENT, messages: [{ seed: 5, bytes: 4096 }] });
  const received = peer.channel.recv(view.subarray(4096, 8192));
  const { faults } = peer.pool.stats();
  assert.deepEqual([view[4095], view[8192]], [0xee, 0xee]);
  assert.deepEqual(peer.pool.stats().faults, faults);
  await received;
  assertNothingHeld(peer.pool);
});

test("a page with two receives pending waits for both", async () => {
  const peer = shared;
  using buf = peer.pool.alloc(4096);
  const view = buf.bytes;
  peer.order({ after: 0, messages: [{ seed: 5, bytes: 2048 }] });
  peer.order({ after: MOMENT, messages: [{ seed: 6, bytes: 2048 }] });
  const both = [view.subarray(0, 2048), view.subarray(2048)].map((part) => peer.channel.recv(part));
  const read = view.slice();
  assertBytes(read.subarray(0, 2048), pattern(5, 2048), "the first");
  assertBytes(read.subarray(2048), pattern(6, 2048), "the second");
  await Promise.all(both);
  assertNothingHeld(peer.pool);
});

test("a buffer being received can be sent: what is sent is the data", async () => {
  const peer = shared;
  using echo = await pair(peer.pool);
  using buf = peer.pool.alloc(LENGTH);
  peer.order({ after: MOMENT, messages: [{ seed: 5, bytes: LENGTH }] });
  const received = peer.channel.recv(buf);
  const sent = echo.here.send(buf, { guard: "cow" });
  using message = await echo.there.recv();
  assertBytes(message!.bytes, pattern(5, LENGTH), "what was sent");
  message!.release();
  await Promise.all([received, sent]);
  assertNothingHeld(peer.pool);
});

test('under "none" a buffer being received can be read at once, and holds the old bytes', async () => {
  const peer = shared;
  using buf = peer.pool.alloc(LENGTH);
  buf.bytes.fill(0xee);
  peer.order({ after: MOMENT, messages: [{ seed: 5, bytes: LENGTH }] });
  const received = peer.channel.recv(buf, { guard: "none" });
  const { faults } = peer.pool.stats();
  const early = buf.bytes.slice();
  assertBytes(early, new Uint8Array(LENGTH).fill(0xee), "what was read at once");
  await received;
  assertBytes(buf.bytes, pattern(5, LENGTH), "what was received");
  assert.deepEqual(peer.pool.stats().faults, faults);
  assertNothingHeld(peer.pool);
});

// ---- messages and buffers that do not match

for (const bytes of [2000, 200_000]) {
  test(`a message of ${bytes} bytes that does not fit stays for the next receive`, async () => {
    const peer = shared;
    using buf = peer.pool.alloc(bytes - 1);
    buf.bytes.fill(0xee);
    peer.order({ after: 0, messages: [{ seed: 5, bytes }] });
    await assert.rejects(peer.channel.recv(buf), {
      name: "MoatError",
      code: "MESSAGE_TOO_LARGE",
      message: new RegExp(`${bytes} bytes.*${bytes - 1}`),
    });
    assertBytes(buf.bytes, new Uint8Array(bytes - 1).fill(0xee), "the buffer too small");
    using message = await peer.channel.recv();
    assertBytes(message!.bytes, pattern(5, bytes), "the message");
    assertNothingHeld(peer.pool);
  });

  test(`a message of ${bytes} bytes is copied into memory outside the pool`, async () => {
    const peer = shared;
    const start = peer.pool.stats();
    const into = new Uint8Array(bytes + 10).fill(0xee);
    const expected = into.slice();
    expected.set(pattern(5, bytes), 3);
    peer.order({ after: MOMENT, messages: [{ seed: 5, bytes }] });
    assert.equal((await peer.channel.recv(into.subarray(3)))!.bytes, bytes);
    assertBytes(into, expected, "the memory");
    const now = peer.pool.stats();
    assert.equal(now.bytesReceived - start.bytesReceived, bytes);
    assert.equal(now.bytesCopiedIn - start.bytesCopiedIn, bytes);
    assert.equal(now.bytesAvailable, start.bytesAvailable, "bytes of the pool in use");
    assertNothingHeld(peer.pool);
  });
}

for (const type of ["ArrayBuffer", "DataView", "Float64Array"] as const) {
  test(`a message is received into memory of the type ${type}`, async () => {
    const peer = shared;
    const memory = new ArrayBuffer(800);
    const into = type === "ArrayBuffer"
      ? memory
      : type === "DataView"
      ? new DataView(memory)
      : new Float64Array(memory);
    peer.order({ after: 0, messages: [{ seed: 5, bytes: 800 }] });
    await peer.channel.recv(into);
    assertBytes(new Uint8Array(memory), pattern(5, 800), "the memory");
    assertNothingHeld(peer.pool);
  });
}

test("recv(into) resolves to null when the peer closes, with the buffer as it was", async (t) => {
  const peer = await sender(t);
  const buf = peer.pool.alloc(LENGTH);
  buf.bytes.fill(0xee);
  peer.order({ after: MOMENT, messages: [], close: true });
  const received = peer.channel.recv(buf);
  assertBytes(buf.bytes, new Uint8Array(LENGTH).fill(0xee), "the buffer");
  assert.equal(await received, null);
  await peer.close();
});

// ---- order

test("receives of both kinds get the messages in the order they were called", async () => {
  const peer = shared;
  const sizes = [10, 50_000, 300, 20_000, 5, 100_000, 16_384, 16_385];
  peer.order({
    after: MOMENT,
    messages: sizes.map((bytes, i) => ({ seed: i, bytes })),
  });
  const got = await Promise.all(sizes.map(async (bytes, i) => {
    if (i % 2 === 0) {
      using message = await peer.channel.recv();
      return sha256(message!.bytes);
    }
    using buf = peer.pool.alloc(bytes);
    await peer.channel.recv(buf);
    return sha256(buf.bytes);
  }));
  assert.deepEqual(got, sizes.map((bytes, i) => sha256(pattern(i, bytes))));
  assertNothingHeld(peer.pool);
});

test("messages that are there before they are asked for come in order", async () => {
  const peer = shared;
  const sizes = [10, 50_000, 300, 20_000];
  peer.order({ after: 0, messages: sizes.map((bytes, i) => ({ seed: i, bytes })) });
  await new Promise((resolve) => setTimeout(resolve, MOMENT));
  for (const [i, bytes] of sizes.entries()) {
    using buf = peer.pool.alloc(bytes);
    await peer.channel.recv(buf);
    assertBytes(buf.bytes, pattern(i, bytes), `message ${i}`);
  }
  assertNothingHeld(peer.pool);
});

test("a buffer touched first is filled in its turn, after the receives before it", async () => {
  const peer = shared;
  using first = peer.pool.alloc(LENGTH);
  using second = peer.pool.alloc(LENGTH);
  using third = peer.pool.alloc(LENGTH);
  peer.order({ after: MOMENT, messages: [5, 6, 7].map((seed) => ({ seed, bytes: LENGTH })) });
  const all = [first, second, third].map((buf) => peer.channel.recv(buf));
  assertBytes(third.bytes, pattern(7, LENGTH), "the third");
  assertBytes(first.bytes, pattern(5, LENGTH), "the first");
  assertBytes(second.bytes, pattern(6, LENGTH), "the second");
  await Promise.all(all);
  assertNothingHeld(peer.pool);
});

// ---- pools without a frame to spare

test("receives that wait get small messages though no frame is free", async () => {
  await using pool = Pool.create({ bytes: MIB, reserve: 0 });
  using ends = await pair(pool);
  const { here, there } = ends;
  const received = [1, 2, 3].map(() => here.recv());
  for (const seed of [1, 2, 3]) await there.send(pattern(seed, 1000));
  for (const [i, message] of (await Promise.all(received)).entries()) {
    assertBytes(message!.bytes, pattern(i + 1, 1000), `message ${i}`);
  }
});

test("receives that wait get all messages of a peer that closed though no frame is free", async () => {
  await using pool = Pool.create({ bytes: MIB, reserve: 0 });
  using ends = await pair(pool);
  const { here, there } = ends;
  const received = [1, 2, 3, 4].map(() => here.recv());
  for (const seed of [1, 2, 3]) await there.send(pattern(seed, 1000));
  await there.close();
  const lengths = (await Promise.all(received)).map((message) => message?.byteLength);
  assert.deepEqual(lengths, [1000, 1000, 1000, undefined]);
});

// ---- waits that cannot end

test("an access to a receive without a sender ends after guardTimeout, and the receive with it", async (t) => {
  const peer = await sender(t, { bytes: MIB, guardTimeout: 30 });
  const buf = peer.pool.alloc(LENGTH);
  buf.bytes.fill(0xee);
  const received = peer.channel.recv(buf);
  const refused = assert.rejects(
    received,
    (error) =>
      error instanceof GuardTimeoutError && error.code === "GUARD_TIMEOUT" &&
      /guardTimeout/.test(error.message),
  );
  assert.equal(buf.bytes[0], 0xee);
  await refused;
  assert.deepEqual(peer.pool.stats().timeouts, { waited: 1, deadlock: 0 });
  peer.order({ after: 0, messages: [{ seed: 5, bytes: LENGTH }] });
  await peer.channel.recv(buf);
  assertBytes(buf.bytes, pattern(5, LENGTH), "the message sent afterwards");
  await peer.close();
});

test("an access that times out takes back the receives of its page alone", async (t) => {
  const peer = await sender(t, { bytes: MIB, guardTimeout: 30 });
  const [one, two] = [peer.pool.alloc(LENGTH), peer.pool.alloc(LENGTH)];
  const refused = assert.rejects(peer.channel.recv(one), GuardTimeoutError);
  const received = peer.channel.recv(two);
  one.bytes[0] = 1;
  await refused;
  peer.order({ after: 0, messages: [{ seed: 5, bytes: LENGTH }] });
  await received;
  assertBytes(two.bytes, pattern(5, LENGTH), "the message, in the second buffer");
  await peer.close();
});

// What ends these waits is not the clock: the counters tell.
const LONG = { bytes: MIB, guardTimeout: 4000 };

test("a read that only its own thread could end is known at once as a deadlock", async () => {
  await using pool = Pool.create(LONG);
  using ends = await pair(pool);
  const { here, there } = ends;
  using buf = pool.alloc(LENGTH);
  buf.bytes.fill(0xee);
  const refused = assert.rejects(
    here.recv(buf),
    (error) => error instanceof GuardTimeoutError && /both ends/.test(error.message),
  );
  assert.equal(buf.bytes[0], 0xee);
  await refused;
  assert.deepEqual(pool.stats().timeouts, { waited: 0, deadlock: 1 });
  const sent = there.send(pattern(5, LENGTH));
  await here.recv(buf);
  assertBytes(buf.bytes, pattern(5, LENGTH), "the message sent afterwards");
  await sent;
});

test("a write that only its own thread could let go on gets a private page at once", async () => {
  await using pool = Pool.create(LONG);
  using ends = await pair(pool);
  const { here, there } = ends;
  using buf = pool.alloc(LENGTH);
  fill(buf.bytes, 5);
  const sent = here.send(buf, { guard: "wait" });
  buf.bytes.fill(0xee);
  const { timeouts, privatePages } = pool.stats();
  assert.equal(timeouts.waited, 0);
  assert.ok(timeouts.deadlock > 0 && privatePages > 0);
  using message = await there.recv();
  assertBytes(message!.bytes, pattern(5, LENGTH), "what was sent");
  message!.release();
  await sent;
});

test("a wait for an earlier send is known as a deadlock though a later one has ended", async () => {
  await using pool = Pool.create(LONG);
  using ends = await pair(pool);
  const { here, there } = ends;
  using buf = pool.alloc(4096);
  fill(buf.bytes, 5);
  const sent = [here.send(buf, { guard: "wait" }), here.send(buf, { guard: "wait" })];
  using first = await there.recv();
  (await there.recv())!.release();
  await sent[1];
  fill(buf.bytes, 6);
  assert.deepEqual(pool.stats().timeouts, { waited: 0, deadlock: 1 });
  assertBytes(first!.bytes, pattern(5, 4096), "what was sent first");
  first!.release();
  await sent[0];
});

test("a wait for an earlier receive is known as a deadlock though a later one has ended", async () => {
  await using pool = Pool.create(LONG);
  using ends = await pair(pool);
  using others = await pair(pool);
  using buf = pool.alloc(4096);
  const refused = assert.rejects(ends.here.recv(buf.bytes.subarray(0, 2048)), GuardTimeoutError);
  const received = others.here.recv(buf.bytes.subarray(2048));
  await others.there.send(pattern(5, 2048));
  await received;
  assertBytes(buf.bytes.subarray(2048), pattern(5, 2048), "what was received");
  assert.deepEqual(pool.stats().timeouts, { waited: 0, deadlock: 1 });
  await refused;
});

test("a read of a message that this thread has sent already does not wait for the other end", async () => {
  await using pool = Pool.create(LONG);
  using ends = await pair(pool);
  const { here, there } = ends;
  using buf = pool.alloc(LENGTH);
  const received = here.recv(buf);
  const sent = there.send(pattern(5, LENGTH), { guard: "copy" });
  assertBytes(buf.bytes, pattern(5, LENGTH), "what was read before the event loop turned");
  assert.deepEqual(pool.stats().timeouts, { waited: 0, deadlock: 0 });
  await Promise.all([received, sent]);
});
