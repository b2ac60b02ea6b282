import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { GuardTimeoutError, listen, MoatError, Pool, type Snapshot, viewShared } from "../mod.ts";
import { helper, QUERY } from "../ffi/helper.ts";
import { assertBytes, fill, pattern, sha256 } from "./support/bytes.ts";
import { Child, freshAddress, other } from "./support/child.ts";
import { collected } from "./support/garbage.ts";
import { pair } from "./support/pair.ts";
import { fly } from "./support/vmsplice.ts";
import type { Task } from "./programs/reader.ts";
import type { Order as Sending } from "./programs/sender.ts";
import type { Answer, Order } from "./programs/witness.ts";

const KIB = 1 << 10, MIB = 1 << 20, PAGE = 4096;
const SIZES = [1, PAGE - 1, PAGE, PAGE + 1, 64 * KIB, MIB, 8 * MIB];

function assertNothingHeld(pool: Pool): void {
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames, "free frames after everything was released");
  assert.equal(helper().moat_query(QUERY.opsLive, 0), 0, "operations left");
}

function code(expected: string): (error: unknown) => boolean {
  return (error) => error instanceof MoatError && error.code === expected;
}

for (const size of SIZES) {
  test(`a snapshot of ${size} bytes is what the buffer held, whatever becomes of the buffer`, async () => {
    await using pool = Pool.create({ bytes: 2 * size + MIB, reserve: 4 * size + MIB });
    const buf = pool.alloc(size), versions: Snapshot[] = [];
    for (let seed = 1; seed <= 4; seed++) {
      fill(buf.bytes, seed);
      versions.push(buf.snapshot());
    }
    buf.bytes.fill(0);
    versions.forEach((version, i) =>
      assertBytes(version.bytes, pattern(i + 1, size), `version ${i}`)
    );
    buf.free(); // the versions live on, also under the next owner of the pages
    using next = pool.alloc(size);
    next.bytes.fill(0xee);
    for (const i of [2, 0, 3, 1]) {
      assertBytes(versions[i]!.bytes, pattern(i + 1, size), `version ${i} after the buffer`);
      versions[i]!.release();
    }
    assertNothingHeld(pool);
  });

  test(`snapshots of ${size} bytes reach the device as they are, however often they are sent`, async () => {
    await using pool = Pool.create({ bytes: 2 * size + MIB, reserve: 4 * size + MIB });
    using buf = pool.alloc(size);
    fill(buf.bytes, 1);
    using version = buf.snapshot();
    const flights = [fly(pool, version, "cow"), fly(pool, version, "none")];
    fill(buf.bytes, 2);
    flights.push(fly(pool, buf, "cow"), fly(pool, version, "wait"));
    fill(buf.bytes, 3);
    version.release(); // what is in flight stays in flight
    const read = flights.map((flight) => flight.land());
    [1, 1, 2, 1].forEach((seed, i) => assertBytes(read[i]!, pattern(seed, size), `send ${i}`));
    assertBytes(buf.bytes, pattern(3, size), "the buffer");
    assertNothingHeld(pool);
  });
}

test("a send without a guard loses the race that a snapshot wins", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using buf = pool.alloc(64 * KIB);
  fill(buf.bytes, 1);
  using version = buf.snapshot();
  using kept = fly(pool, version, "none");
  assertBytes(
    (fill(buf.bytes, 2), kept.land()),
    pattern(1, 64 * KIB),
    "the snapshot",
  );
  fill(buf.bytes, 1);
  using lost = fly(pool, buf, "none");
  fill(buf.bytes, 2);
  assertBytes(lost.land(), pattern(2, 64 * KIB), "the buffer without a guard");
});

test("taking a snapshot copies nothing, and takes frames only as the buffer changes", async () => {
  await using pool = Pool.create({ bytes: 16 * MIB, hugePages: false });
  using buf = pool.alloc(8 * MIB);
  buf.bytes.fill(1);
  const { freeFrames, bytesCopiedOut } = pool.stats();
  using first = buf.snapshot();
  using second = buf.snapshot();
  assert.equal(pool.stats().freeFrames, freeFrames);
  for (const page of [0, 500]) buf.bytes[page * PAGE + 7] = 2;
  assert.equal(pool.stats().freeFrames, freeFrames - 2, "one frame for each page written");
  assert.equal(pool.stats().privatePages, 2);
  using third = buf.snapshot();
  buf.bytes[7] = 3;
  assert.equal(pool.stats().freeFrames, freeFrames - 3);
  second.release();
  assert.equal(pool.stats().freeFrames, freeFrames - 3, "the first holds them too");
  first.release();
  assert.equal(pool.stats().freeFrames, freeFrames - 1, "the third holds the rest");
  third.release();
  assert.equal(pool.stats().freeFrames, freeFrames);
  assert.equal(pool.stats().bytesCopiedOut, bytesCopiedOut);
});

test("a snapshot and its buffer are the same page until one of them is written", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using buf = pool.alloc(2 * PAGE);
  buf.bytes.fill(1);
  using version = buf.snapshot();
  const view = version.bytes;
  using flight = fly(pool, version, "none");
  const [segment] = flight.transfer.segments;
  assert.equal(segment, undefined, "the pipe took both pages");
  buf.bytes[PAGE] = 2;
  assert.deepEqual([view[0], view[PAGE], buf.bytes[PAGE]], [1, 1, 2]);
  assert.equal(pool.stats().privatePages, 1);
});

test("a write to a snapshot's bytes never changes the version, and is explained once", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using buf = pool.alloc(16 * KIB);
  fill(buf.bytes, 1);
  using version = buf.snapshot(), same = buf.snapshot();
  const { bytes } = version;
  bytes[5] = 99;
  bytes.fill(98, PAGE, 3 * PAGE);
  assertBytes(same.bytes, pattern(1, 16 * KIB), "another snapshot of the same pages");
  assertBytes(buf.bytes, pattern(1, 16 * KIB), "the buffer");
  using flight = fly(pool, same, "none");
  assertBytes(flight.land(), pattern(1, 16 * KIB), "what the device reads");
  assert.throws(() => version.bytes, code("SNAPSHOT_WRITTEN"));
  assertBytes(version.bytes, pattern(1, 16 * KIB), "the version, put back");
  version.bytes[0] = 1;
  assert.throws(() => fly(pool, version, "cow"), code("SNAPSHOT_WRITTEN"));
});

test("a released snapshot is refused, and its view is detached", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using buf = pool.alloc(PAGE);
  const version = buf.snapshot(), { bytes } = version;
  version.release();
  version.release();
  assert.equal(bytes.length, 0);
  assert.equal(version.released, true);
  assert.throws(() => version.bytes, code("BUFFER_FREED"));
  assert.throws(() => fly(pool, version, "cow"), code("BUFFER_FREED"));
  assertNothingHeld(pool);
});

test("a snapshot cannot be received into, moved or swapped", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using ends = await pair(pool);
  using buf = pool.alloc(PAGE);
  using version = buf.snapshot();
  await assert.rejects(ends.here.recv(version), code("INVALID_ARGUMENT"));
  await assert.rejects(ends.here.recv(version.bytes), code("INVALID_ARGUMENT"));
  await assert.rejects(ends.here.send(version, { guard: "move" }), code("INVALID_ARGUMENT"));
  assert.throws(() => pool.swap(buf, version.bytes), code("INVALID_ARGUMENT"));
});

test("a snapshot waits for a receive that is pending", async (t) => {
  await using pool = Pool.create({ bytes: 4 * MIB });
  const address = freshAddress(), listener = await listen(address, { pool });
  const child = new Child({ after: (fn) => t.after(fn) }, "sender", [address], other());
  const channel = await listener.accept();
  await listener.close();
  using buf = pool.alloc(64 * KIB);
  buf.bytes.fill(0);
  const order: Sending = { after: 30, messages: [{ seed: 5, bytes: 64 * KIB }], close: true };
  void channel.send(Buffer.from(JSON.stringify(order)));
  const received = channel.recv(buf);
  using version = buf.snapshot(); // JavaScript does not run in between
  assertBytes(version.bytes, pattern(5, 64 * KIB), "the snapshot");
  await received;
  await channel.close();
  assert.equal((await child.exit).code, 0);
});

test("without a frame for the change, the snapshot breaks and says so; nobody waits", async () => {
  await using pool = Pool.create({ bytes: 64 * KIB, reserve: 0, guardTimeout: 5000 });
  using buf = pool.alloc(64 * KIB);
  buf.bytes.fill(1);
  const version = buf.snapshot(), other = buf.snapshot();
  buf.bytes[0] = 2;
  assert.equal(pool.stats().timeouts.waited, 0, "at once");
  assert.equal(buf.bytes[0], 2);
  assert.throws(() => version.bytes, (error: unknown) => error instanceof GuardTimeoutError);
  other.release();
  version.release();
  using again = buf.snapshot();
  assert.equal(again.bytes[0], 2);
});

test("snapshots nobody holds are released; a view keeps its snapshot", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using buf = pool.alloc(64 * KIB);
  const { freeFrames } = pool.stats();
  const views: Uint8Array[] = [];
  buf.bytes.fill(7);
  (() => {
    for (let i = 0; i < 100; i++) buf.snapshot();
    views.push(buf.snapshot().bytes);
    buf.bytes.fill(1);
  })();
  const left = (): number => helper().moat_query(QUERY.opsLive, 0);
  assert.ok(await collected(() => left() <= 2)); // the runtime may keep the last one for a while
  assert.equal(views[0]![9], 7);
  assert.ok(left() > 0);
  views.length = 0;
  for (let i = 0; i < 100; i++) buf.snapshot().bytes[0];
  assert.ok(await collected(() => left() <= 2));
  assert.ok(pool.stats().freeFrames >= freeFrames - 16);
});

test("several Workers read one version, while the buffer changes", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB });
  using buf = pool.alloc(MIB);
  fill(buf.bytes, 1);
  const version = buf.snapshot(), flags = new SharedArrayBuffer(8);
  const workerData: Task = { share: version.share(), flags };
  const workers = [1, 2, 3].map(() =>
    new Worker(new URL("programs/reader.ts", import.meta.url), { workerData })
  );
  await Promise.all(workers.map((worker) => once(worker, "message")));
  const hashes = workers.map((worker) => once(worker, "message").then(([hash]) => hash));
  fill(buf.bytes, 2);
  Atomics.store(new Int32Array(flags), 0, 1);
  Atomics.notify(new Int32Array(flags), 0);
  const expected = sha256(pattern(1, MIB));
  assert.deepEqual(await Promise.all(hashes), [expected, expected, expected]);
  await Promise.all(workers.map((worker) => worker.terminate()));
  version.release();
  assert.equal(viewShared(workerData.share).length, MIB); // still memory
  viewShared(workerData.share)[MIB - 1];
  assertNothingHeld(pool);
});

test("a pool can be closed with snapshots left, whose views are detached", async () => {
  const pool = Pool.create({ bytes: MIB });
  const { bytes } = pool.alloc(PAGE).snapshot();
  await pool.close();
  assert.equal(bytes.length, 0);
});

test("versions and parts of them arrive at another process, scattered or not", async (t) => {
  await using pool = Pool.create({ bytes: 8 * MIB });
  const address = freshAddress(), listener = await listen(address, { pool });
  const child = new Child({ after: (fn) => t.after(fn) }, "witness", [address], other());
  const channel = await listener.accept();
  await listener.close();
  using buf = pool.alloc(MIB);
  const expected: string[] = [], sent: Promise<unknown>[] = [], versions: Snapshot[] = [];
  const parts = [[0, MIB], [4093, 300_001], [8192, 65_536], [1, 17_000], [5, 9]] as const;
  const order: Order = { messages: 4 * parts.length, look: "go" };
  void channel.send(Buffer.from(JSON.stringify(order)));
  for (let seed = 1; seed <= 4; seed++) {
    if (seed === 1) fill(buf.bytes, seed);
    else for (let page = seed; page < 256; page += seed * 3) buf.bytes[page * PAGE + seed] = seed;
    const version = buf.snapshot();
    versions.push(version);
    for (const [from, to] of parts) {
      const view = version.bytes.subarray(from, to);
      expected.push(sha256(view));
      sent.push(channel.send(view));
    }
  }
  buf.bytes.fill(0);
  void channel.send(Buffer.from("go"));
  using message = await channel.recv();
  const answer = JSON.parse(Buffer.from(message!.bytes).toString()) as Answer;
  assert.deepEqual(answer.sha256, expected);
  await Promise.all(sent);
  for (const version of versions) version.release();
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames);
  await channel.close();
  assert.equal((await child.exit).code, 0);
});
