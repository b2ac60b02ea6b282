import assert from "node:assert/strict";
import { once } from "node:events";
import { after, test } from "node:test";
import { Worker } from "node:worker_threads";
import { Pool, type PoolBuffer } from "../mod.ts";
import { helper, QUERY } from "../ffi/helper.ts";
import { coreOf } from "../lib/memory/pool.ts";
import { assertBytes, fill, pattern, same } from "./support/bytes.ts";
import type { Task as Counting } from "./programs/counter.ts";
import type { Order } from "./programs/drainer.ts";
import type { Task } from "./programs/writer.ts";
import { type Flight, fly, segmentsOf } from "./support/vmsplice.ts";

const KIB = 1 << 10, MIB = 1 << 20;
const SIZES = [1, 4095, 4096, 4097, 64 * KIB, MIB, 64 * MIB];
// The largest messages are sent from the start and from one odd place, for the time they take.
const OFFSETS = [0, 1, 4093];
const ODD = [4093];

function offsetsFor(size: number): number[] {
  return size > MIB ? ODD : OFFSETS;
}

function poolFor(size: number): Pool {
  return Pool.create({ bytes: size + 16 * KIB, reserve: size + 256 * KIB });
}

function assertNothingHeld(pool: Pool): void {
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames, "free frames after everything has completed");
  assert.equal(helper().moat_query(QUERY.opsLive, 0), 0, "operations left");
}

// What the program writes when the device has not looked yet.
function scribble(view: Uint8Array): Uint8Array {
  fill(view, 77);
  return view.slice();
}

// ---- a Worker as the device, for writes that wait

let worker: Worker | undefined;
after(() => worker?.terminate());

/** Lets the Worker read a message as soon as `access` has begun; returns what it read. */
async function landDuring(flight: Flight, access: () => void): Promise<Uint8Array> {
  worker ??= new Worker(new URL("programs/drainer.ts", import.meta.url));
  const order: Order = { transfer: flight.transfer, start: new SharedArrayBuffer(4) };
  const ready = once(worker, "message");
  worker.postMessage(order);
  await ready;
  const landed = once(worker, "message") as Promise<[Uint8Array]>;
  const flag = new Int32Array(order.start);
  Atomics.store(flag, 0, 1);
  Atomics.notify(flag, 0);
  access();
  const [bytes] = await landed;
  flight.collect();
  return bytes;
}

// ---- one send

for (const size of SIZES) {
  test(`${size} bytes guarded by "none" reach the device as they were overwritten`, async () => {
    await using pool = poolFor(size);
    for (const offset of offsetsFor(size)) {
      using buf = pool.alloc(offset + size);
      const view = buf.bytes.subarray(offset);
      fill(view, 1);
      const before = view.slice();
      using flight = fly(pool, view, "none");
      const written = scribble(view);
      const read = flight.land();
      assert.ok(!same(read, before), `at offset ${offset} the race did not show`);
      assertBytes(read, written, `at offset ${offset}`);
    }
    assertNothingHeld(pool);
  });

  for (const guard of ["cow", "copy"] as const) {
    test(`${size} bytes guarded by "${guard}" reach the device as they were at the call`, async () => {
      await using pool = poolFor(size);
      for (const offset of offsetsFor(size)) {
        using buf = pool.alloc(offset + size);
        const view = buf.bytes.subarray(offset);
        fill(view, 1);
        const before = view.slice();
        using flight = fly(pool, view, guard);
        const written = scribble(view);
        assertBytes(flight.land(), before, `what was sent from offset ${offset}`);
        assertBytes(view, written, `what the program sees at offset ${offset}`);
      }
      assert.equal(pool.stats().waits.count, 0, "accesses that waited");
      assertNothingHeld(pool);
    });
  }

  test(`${size} bytes guarded by "wait" reach the device before the write that waits for it`, async () => {
    await using pool = poolFor(size);
    for (const [i, offset] of offsetsFor(size).entries()) {
      using buf = pool.alloc(offset + size);
      const view = buf.bytes.subarray(offset);
      fill(view, 1);
      const before = view.slice();
      using flight = fly(pool, view, "wait");
      let written: Uint8Array | undefined;
      const read = await landDuring(flight, () => written = scribble(view));
      assertBytes(read, before, `what was sent from offset ${offset}`);
      assertBytes(view, written!, `what the program sees at offset ${offset}`);
      assert.equal(pool.stats().waits.count, i + 1, "accesses that waited");
    }
    assert.equal(pool.stats().privatePages, 0, "private pages");
    assertNothingHeld(pool);
  });

  test(`${size} bytes guarded by "move" reach the device though the pool is used again`, async () => {
    await using pool = Pool.create({ bytes: 2 * size + 32 * KIB, reserve: 0 });
    for (const offset of offsetsFor(size)) {
      const buf = pool.alloc(offset + size);
      fill(buf.bytes, 1);
      const before = buf.bytes.slice();
      using flight = fly(pool, buf, "move");
      const rest: PoolBuffer[] = [];
      while (pool.stats().bytesAvailable > 0) {
        const other = pool.alloc(Math.min(pool.stats().bytesAvailable, MIB));
        other.bytes.fill(0xee);
        rest.push(other);
      }
      assertBytes(flight.land(), before, `what was sent of ${offset + size} bytes`);
      for (const other of rest) other.free();
    }
    assert.equal(pool.stats().bytesAvailable, pool.byteLength, "bytes given back");
    assertNothingHeld(pool);
  });
}

test("reading a buffer in flight neither faults nor waits", async () => {
  await using pool = poolFor(64 * KIB);
  using buf = pool.alloc(64 * KIB);
  fill(buf.bytes, 1);
  using flight = fly(pool, buf, "wait");
  assertBytes(buf.bytes, pattern(1, 64 * KIB), "what the program reads");
  assert.deepEqual(pool.stats().faults, { reads: 0, writes: 0 });
  flight.land();
});

test("a write to one page leaves the other pages of a send without copies", async () => {
  await using pool = poolFor(64 * KIB);
  using buf = pool.alloc(64 * KIB);
  using flight = fly(pool, buf, "cow");
  buf.bytes[5 * 4096] = 1;
  assert.equal(pool.stats().privatePages, 1);
  flight.land();
});

test("a write to a page that is not part of the send is not guarded", async () => {
  await using pool = poolFor(64 * KIB);
  using buf = pool.alloc(64 * KIB);
  using flight = fly(pool, buf.bytes.subarray(4096, 8192), "cow");
  buf.bytes[4095] = 1;
  buf.bytes[8192] = 1;
  assert.equal(pool.stats().faults.writes, 0);
  flight.land();
});

test("the first write after completion only restores the permission", async () => {
  await using pool = poolFor(64 * KIB);
  using buf = pool.alloc(64 * KIB);
  const view = buf.bytes;
  fly(pool, buf, "cow").land();
  view[9000] = 1;
  const { restores, privatePages, waits } = pool.stats();
  assert.deepEqual([restores, privatePages, waits.count], [1, 0, 0]);
});

test("a page is copied once however often it is written in one flight", async () => {
  await using pool = poolFor(64 * KIB);
  using buf = pool.alloc(4096);
  using flight = fly(pool, buf, "cow");
  for (let i = 0; i < 4096; i++) buf.bytes[i] = i;
  assert.equal(pool.stats().privatePages, 1);
  flight.land();
});

test("a buffer freed in flight reaches the device whole", async () => {
  await using pool = Pool.create({ bytes: 128 * KIB, reserve: 64 * KIB });
  const buf = pool.alloc(64 * KIB);
  fill(buf.bytes, 1);
  using flight = fly(pool, buf, "cow");
  buf.free();
  using other = pool.alloc(64 * KIB);
  other.bytes.fill(0xee);
  assertBytes(flight.land(), pattern(1, 64 * KIB), "what was sent");
  assertNothingHeld(pool);
});

test("the pages of a moved buffer come back at completion, not before", async () => {
  await using pool = Pool.create({ bytes: 64 * KIB });
  const buf = pool.alloc(64 * KIB);
  using flight = fly(pool, buf, "move");
  assert.equal(pool.stats().bytesAvailable, 0);
  flight.land();
  assert.equal(pool.stats().bytesAvailable, 64 * KIB);
});

test("a moved buffer's views are detached at once", async () => {
  await using pool = Pool.create({ bytes: 64 * KIB });
  const buf = pool.alloc(64 * KIB), part = buf.bytes.subarray(10, 20);
  using flight = fly(pool, buf, "move");
  assert.deepEqual([buf.bytes.byteLength, part.byteLength, part[0]], [0, 0, undefined]);
  flight.land();
});

test("a cow write without a free frame waits for the device", async () => {
  await using pool = Pool.create({ bytes: 64 * KIB, reserve: 0 });
  using buf = pool.alloc(4096);
  fill(buf.bytes, 1);
  using flight = fly(pool, buf, "cow");
  const read = await landDuring(flight, () => buf.bytes.fill(9));
  assertBytes(read, pattern(1, 4096), "what was sent");
  const { degraded, waits } = pool.stats();
  assert.deepEqual([degraded.cowToWait, waits.count], [1, 1]);
});

test("a wait that ends by guardTimeout gives the writer a private page", async () => {
  await using pool = Pool.create({ bytes: 64 * KIB, guardTimeout: 20 });
  using buf = pool.alloc(4096);
  fill(buf.bytes, 1);
  using flight = fly(pool, buf, "wait");
  buf.bytes.fill(9);
  const { timeouts, privatePages } = pool.stats();
  assert.deepEqual([timeouts.waited, privatePages], [1, 1]);
  assertBytes(flight.land(), pattern(1, 4096), "what was sent");
  assertNothingHeld(pool);
});

// ---- several operations on one page

test("two cow sends of one page with a write between them deliver two versions", async () => {
  await using pool = poolFor(64 * KIB);
  using buf = pool.alloc(4096);
  fill(buf.bytes, 1);
  using first = fly(pool, buf, "cow");
  fill(buf.bytes, 2);
  using second = fly(pool, buf, "cow");
  fill(buf.bytes, 3);
  assertBytes(first.land(), pattern(1, 4096), "the first");
  assertBytes(second.land(), pattern(2, 4096), "the second");
  assertBytes(buf.bytes, pattern(3, 4096), "what the program sees");
  assertNothingHeld(pool);
});

test("two cow sends of the same contents share one private page", async () => {
  await using pool = poolFor(64 * KIB);
  using buf = pool.alloc(4096);
  fill(buf.bytes, 1);
  using first = fly(pool, buf, "cow"), second = fly(pool, buf, "cow");
  fill(buf.bytes, 2);
  assert.equal(pool.stats().privatePages, 1);
  assertBytes(second.land(), pattern(1, 4096), "the second");
  assertBytes(first.land(), pattern(1, 4096), "the first");
  assertNothingHeld(pool);
});

test("a page stays guarded until the last of its sends has completed", async () => {
  await using pool = poolFor(64 * KIB);
  using buf = pool.alloc(4096);
  fill(buf.bytes, 1);
  using first = fly(pool, buf, "cow"), second = fly(pool, buf, "cow");
  first.land();
  fill(buf.bytes, 2);
  assertBytes(second.land(), pattern(1, 4096), "the second");
  assertNothingHeld(pool);
});

test("sends of overlapping parts of a buffer each deliver their part", async () => {
  await using pool = poolFor(64 * KIB);
  using buf = pool.alloc(64 * KIB);
  fill(buf.bytes, 1);
  const before = buf.bytes.slice();
  const parts = [[0, 10_000], [9_000, 30_001], [4095, 4097], [1, 65_536]] as const;
  const flights = parts.map(([from, to]) => fly(pool, buf.bytes.subarray(from, to), "cow"));
  buf.bytes.fill(0xee);
  for (const [i, [from, to]] of parts.entries()) {
    assertBytes(flights[i]!.land(), before.subarray(from, to), `bytes ${from} to ${to}`);
  }
  assertNothingHeld(pool);
});

test("a write to a page under cow and wait waits for the latter and spares the former", async () => {
  await using pool = poolFor(64 * KIB);
  using buf = pool.alloc(4096);
  fill(buf.bytes, 1);
  using cow = fly(pool, buf, "cow"), wait = fly(pool, buf, "wait");
  const read = await landDuring(wait, () => fill(buf.bytes, 2));
  assertBytes(read, pattern(1, 4096), "the send under wait");
  assertBytes(cow.land(), pattern(1, 4096), "the send under cow");
  assertBytes(buf.bytes, pattern(2, 4096), "what the program sees");
  const { waits, privatePages } = pool.stats();
  assert.deepEqual([waits.count, privatePages], [1, 1]);
  assertNothingHeld(pool);
});

test("an unguarded send does not lift the guard of another of the same page", async () => {
  await using pool = poolFor(64 * KIB);
  using buf = pool.alloc(4096);
  fill(buf.bytes, 1);
  using guarded = fly(pool, buf, "cow"), bare = fly(pool, buf, "none");
  bare.land();
  fill(buf.bytes, 2);
  assertBytes(guarded.land(), pattern(1, 4096), "the guarded send");
  assertNothingHeld(pool);
});

test("a page that several threads write in flight gets one private copy with all their bytes", async () => {
  await using pool = poolFor(MIB);
  using buf = pool.alloc(MIB);
  fill(buf.bytes, 1);
  using flight = fly(pool, buf, "cow");
  const threads = 3, start = new SharedArrayBuffer(4), share = buf.share();
  const workers: Worker[] = [];
  try {
    for (let id = 0; id < threads; id++) {
      const workerData: Task = { share, start, id, of: threads };
      const url = new URL("programs/writer.ts", import.meta.url);
      workers.push(new Worker(url, { workerData }));
      await once(workers[id]!, "message");
    }
    const finished = Promise.all(workers.map((each) => once(each, "message")));
    Atomics.store(new Int32Array(start), 0, 1);
    Atomics.notify(new Int32Array(start), 0);
    await finished;
  } finally {
    await Promise.all(workers.map((each) => each.terminate()));
  }
  assertBytes(flight.land(), pattern(1, MIB), "what was sent");
  const expected = Uint8Array.from({ length: MIB }, (_, i) => i % threads + 1);
  assertBytes(buf.bytes, expected, "what the threads wrote");
  assert.equal(pool.stats().privatePages, MIB / 4096);
  assertNothingHeld(pool);
});

// ---- large buffers, which get huge pages when they have been guarded a few times

test("a large buffer sent again and again reaches the device as it was each time", async () => {
  await using pool = Pool.create({ bytes: 8 * MIB, reserve: 8 * MIB });
  using buf = pool.alloc(5 * MIB);
  for (let round = 1; round <= 40; round++) {
    fill(buf.bytes, round);
    const before = buf.bytes.slice();
    using flight = fly(pool, buf, "cow");
    // From end to end, here and there, or not at all.
    if (round % 3 === 0) buf.bytes.fill(0xee);
    else if (round % 3 === 1) {
      for (let at = 0; at < buf.byteLength; at += 300_000) buf.bytes[at] = 0;
    }
    assertBytes(flight.land(), before, `what was sent in round ${round}`);
  }
  assertNothingHeld(pool);
});

test("a large buffer shows the program its own writes after each send", async () => {
  await using pool = Pool.create({ bytes: 8 * MIB, reserve: 8 * MIB });
  using buf = pool.alloc(5 * MIB);
  const expected = new Uint8Array(5 * MIB);
  buf.bytes.fill(0);
  for (let round = 1; round <= 40; round++) {
    using flight = fly(pool, buf, "cow");
    for (let at = round; at < buf.byteLength; at += round % 2 ? 100 : 300_000) {
      buf.bytes[at] = expected[at] = round;
    }
    flight.land();
    assertBytes(buf.bytes, expected, `what the program sees in round ${round}`);
  }
});

test("no write of a Worker is lost while a large buffer is sent and rewritten", async () => {
  await using pool = Pool.create({ bytes: 8 * MIB, reserve: 8 * MIB });
  using buf = pool.alloc(4 * MIB);
  const words = new Float64Array(buf.bytes.buffer), state = new SharedArrayBuffer(4);
  const flag = new Int32Array(state);
  // It writes to a page near the end, this thread to those before it.
  const workerData: Counting = { share: buf.share(), pages: [1000], state };
  const worker = new Worker(new URL("programs/counter.ts", import.meta.url), { workerData });
  await once(worker, "message");
  const result = once(worker, "message") as Promise<[{ writes: number; lost: number }]>;
  const write = (value: number): void => {
    for (let at = 0; at < 981 * 512; at++) words[at] = value;
  };
  try {
    for (let round = 0; round < 30; round++) { // in its first frames it gets huge pages
      fly(pool, buf, "cow").land();
      write(round);
    }
    Atomics.store(flag, 0, 1);
    Atomics.notify(flag, 0);
    for (let round = 0; round < 120; round++) { // and is moved to others and back
      using flight = fly(pool, buf, "cow");
      write(round);
      flight.land();
    }
    Atomics.store(flag, 0, 2);
    const [{ writes, lost }] = await result;
    assert.ok(writes > 0);
    assert.equal(lost, 0, `of ${writes} writes`);
  } finally {
    await worker.terminate();
  }
});

// ---- scattered buffers

// Moves every second page of a buffer to a private frame, so that no two of its frames are neighbours.
function scatter(pool: Pool, buf: PoolBuffer): void {
  using flight = fly(pool, buf, "cow");
  for (let at = 0; at < buf.byteLength; at += 2 * 4096) buf.bytes[at] = 1;
  flight.land();
}

for (const pages of [5, 24, 1300]) {
  test(`a buffer whose ${pages} pages are scattered is sent whole and guarded`, async () => {
    await using pool = poolFor(pages * 4096 * 2);
    using buf = pool.alloc(pages * 4096);
    scatter(pool, buf);
    fill(buf.bytes, 1);
    using flight = fly(pool, buf.bytes.subarray(1), "cow");
    assert.equal(segmentsOf(coreOf(pool), flight.transfer.op).length, pages);
    buf.bytes.fill(0xee);
    assertBytes(flight.land(), pattern(1, pages * 4096).subarray(1), "what was sent");
    assertNothingHeld(pool);
  });
}
