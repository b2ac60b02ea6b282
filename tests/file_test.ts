import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { on } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { Worker } from "node:worker_threads";
import { type File, MoatError, Pool, type PoolBuffer } from "../mod.ts";
import { helper, QUERY } from "../ffi/helper.ts";
import { assertBytes, fill, pattern, same, sha256 } from "./support/bytes.ts";
import { Child } from "./support/child.ts";
import { pair } from "./support/pair.ts";
import { cachedPages, dropCache } from "./support/page_cache.ts";
import { fly } from "./support/vmsplice.ts";

const KIB = 1 << 10, MIB = 1 << 20, PAGE = 4096;
const directory = mkdtempSync(join(tmpdir(), "moat-files-"));
after(() => rmSync(directory, { recursive: true }));
let names = 0;
const fresh = (): string => join(directory, String(names++));

function create(pool: Pool, contents?: Uint8Array): File {
  const path = fresh();
  if (contents) writeFileSync(path, contents);
  return pool.open(path, { create: true });
}

function assertNothingHeld(pool: Pool): void {
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames, "free frames after everything has completed");
  assert.equal(helper().moat_query(QUERY.opsLive, 0), 0, "operations left");
}

const descriptors = (): number => readdirSync("/proc/self/fd").length;

function fails(code: string, errno?: number): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof MoatError, String(error));
    assert.deepEqual([error.code, error.errno], [code, errno], error.message);
    return true;
  };
}

/** Moves every other page of a buffer to another frame. */
function scatter(pool: Pool, buf: PoolBuffer): void {
  using flight = fly(pool, buf, "cow");
  for (let at = 0; at < buf.byteLength; at += 2 * PAGE) buf.bytes[at] = 99;
  flight.land();
}

// ---- bytes

for (const size of [1, 511, 4095, 4096, 4097, 64 * KIB, MIB + 1]) {
  test(`${size} bytes are written and read at odd places of memory and file`, async () => {
    await using pool = Pool.create({ bytes: 4 * MIB });
    for (const at of [0, 1, 4093, 3 * PAGE, 70_000]) {
      for (const offset of [0, 1, 4093]) {
        await using file = create(pool);
        using buf = pool.alloc(offset + size);
        const view = buf.bytes.subarray(offset);
        fill(view, size + at);
        const written = await file.write(view, at, { guard: "cow" });
        assert.deepEqual([written.bytes, written.zeroCopy], [size, true]);
        const whole = readFileSync(file.path);
        assert.equal(whole.length, at + size);
        assert.ok(whole.subarray(0, at).every((byte) => byte === 0), "before it");
        assertBytes(whole.subarray(at), pattern(size + at, size), "what is in the file");
        view.fill(0);
        const { bytes } = await file.read(view, at);
        assert.equal(bytes, size);
        assertBytes(view, pattern(size + at, size), "what was read");
      }
    }
    assertNothingHeld(pool);
  });
}

test("memory outside the pool is written and read as a copy, and the result says so", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using file = create(pool);
  const written = await file.write(pattern(1, 10_000), 5, { guard: "cow" });
  assert.deepEqual([written.bytes, written.guard, written.zeroCopy], [10_000, "copy", false]);
  const into = new Uint8Array(20_000);
  const got = await file.read(into, 5);
  assert.deepEqual([got.bytes, got.zeroCopy], [10_000, false]);
  assertBytes(into.subarray(0, 10_000), pattern(1, 10_000), "what was read");
  const { bytesCopiedOut, bytesCopiedIn, bytesWritten, bytesRead } = pool.stats();
  assert.deepEqual([bytesCopiedOut, bytesCopiedIn], [10_000, 10_000]);
  assert.deepEqual([bytesWritten, bytesRead], [10_000, 10_000]);
  assertNothingHeld(pool);
});

test("the end of the file gives fewer bytes, and behind it none", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using file = create(pool, pattern(1, 10_000));
  using buf = pool.alloc(64 * KIB);
  buf.bytes.fill(7);
  assert.equal((await file.read(buf, 0)).bytes, 10_000);
  assertBytes(buf.bytes.subarray(0, 10_000), pattern(1, 10_000), "what was read");
  assert.ok(buf.bytes.subarray(3 * PAGE).every((byte) => byte === 7), "pages behind it");
  assert.equal((await file.read(buf, 9_999)).bytes, 1);
  assert.equal((await file.read(buf, 10_000)).bytes, 0);
  assert.equal((await file.read(buf, 2 ** 40)).bytes, 0);
});

test("a buffer in many pieces is written and read whole", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB, reserve: 4 * MIB });
  await using file = create(pool);
  using buf = pool.alloc(2 * MIB);
  fill(buf.bytes, 1);
  scatter(pool, buf);
  const before = buf.bytes.slice();
  await file.write(buf, 3 * PAGE, { guard: "cow" });
  assertBytes(readFileSync(file.path).subarray(3 * PAGE), before, "what is in the file");
  await file.write(pattern(5, 2 * MIB), 0);
  await file.read(buf, 0);
  assertBytes(buf.bytes, pattern(5, 2 * MIB), "what was read");
});

test("size, truncate and sync", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using file = create(pool, pattern(1, 10_000));
  assert.equal(file.size(), 10_000);
  file.truncate(20_000);
  assert.equal(file.size(), 20_000);
  file.truncate(5);
  await file.sync();
  assertBytes(readFileSync(file.path), pattern(1, 10_000).subarray(0, 5), "what is left");
});

test("an operation of no bytes ends at once", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using file = create(pool);
  assert.equal((await file.write(new Uint8Array(0))).bytes, 0);
  assert.equal((await file.read(new Uint8Array(0))).bytes, 0);
});

// ---- past the page cache

// tmpfs is nothing but page cache.
async function directHere(): Promise<boolean> {
  await using pool = Pool.create({ bytes: MIB });
  await using file = create(pool);
  return file.direct;
}
const noDirect = await directHere() ? false : `${directory} has no O_DIRECT`;

test("aligned data goes past the page cache", { skip: noDirect }, async () => {
  await using pool = Pool.create({ bytes: 4 * MIB });
  await using file = create(pool);
  using buf = pool.alloc(MIB);
  fill(buf.bytes, 1);
  assert.equal((await file.write(buf, 0, { guard: "cow" })).direct, MIB);
  assert.equal(cachedPages(file.path, MIB), 0, "after writing");
  assert.equal((await file.read(buf, 64 * KIB)).direct, MIB - 64 * KIB);
  assert.equal(cachedPages(file.path, MIB), 0, "after reading");
  assertBytes(readFileSync(file.path), pattern(1, MIB), "what is in the file");
});

test("the odd ends of a large write go through the cache, the rest past it", {
  skip: noDirect,
}, async () => {
  await using pool = Pool.create({ bytes: 4 * MIB });
  await using file = create(pool);
  using buf = pool.alloc(MIB);
  fill(buf.bytes, 1);
  const view = buf.bytes.subarray(100, MIB - 100);
  const { direct } = await file.write(view, 100, { guard: "cow" });
  assert.ok(direct >= MIB - 3 * PAGE && direct < view.length, `${direct} bytes direct`);
  assertBytes(readFileSync(file.path).subarray(100), view, "what is in the file");
  assert.equal((await file.write(view, 101, { guard: "cow" })).direct, 0, "never aligned");
});

test("direct: false goes through the page cache", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB });
  await using file = pool.open(fresh(), { create: true, direct: false });
  using buf = pool.alloc(MIB);
  fill(buf.bytes, 1);
  assert.deepEqual(await file.write(buf, 0, { guard: "cow" }), {
    bytes: MIB,
    guard: "cow",
    zeroCopy: true,
    direct: 0,
  });
  assert.equal(cachedPages(file.path, MIB), MIB / PAGE);
});

test("files on tmpfs", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const path = `/dev/shm/moat-files-${process.pid}`;
  try {
    await using file = pool.open(path, { create: true });
    using buf = pool.alloc(256 * KIB);
    fill(buf.bytes, 1);
    assert.deepEqual([file.direct, (await file.write(buf, 0)).direct], [false, 0]);
    assertBytes(readFileSync(path), buf.bytes, "what is in the file");
  } finally {
    rmSync(path, { force: true });
  }
});

// ---- guards

for (const guard of ["auto", "cow", "wait", "copy"] as const) {
  for (const direct of [true, false]) {
    test(`a write with the guard "${guard}" is what the buffer held at the call, direct: ${direct}`, async () => {
      await using pool = Pool.create({ bytes: 24 * MIB, reserve: 24 * MIB });
      await using file = pool.open(fresh(), { create: true, direct });
      for (const [size, offset] of [[4096, 0], [MIB, 0], [20 * MIB, 0], [MIB, 4093]] as const) {
        using buf = pool.alloc(offset + size);
        const view = buf.bytes.subarray(offset);
        fill(view, 1);
        const written = file.write(view, 0, { guard });
        fill(view, 2);
        const { bytes } = await written;
        assert.equal(bytes, size);
        assertBytes(readFileSync(file.path).subarray(0, size), pattern(1, size), "the file");
        assertBytes(view, pattern(2, size), "what the program sees of its own write");
      }
      assertNothingHeld(pool);
    });
  }
}

test('a write with the guard "move" takes the buffer away', async () => {
  await using pool = Pool.create({ bytes: 4 * MIB });
  await using file = create(pool);
  const buf = pool.alloc(MIB), view = buf.bytes;
  fill(view, 1);
  const written = file.write(buf, 0, { guard: "move" });
  assert.deepEqual([view.length, buf.freed], [0, true]);
  assert.equal((await written).guard, "move");
  assertBytes(readFileSync(file.path), pattern(1, MIB), "the file");
  assert.equal(pool.stats().bytesAvailable, 4 * MIB);
  using other = pool.alloc(MIB);
  await assert.rejects(
    file.write(other.bytes.subarray(1), 0, { guard: "move" }),
    fails("INVALID_ARGUMENT"),
  );
});

test('a write with the guard "none" is raced by the program', async () => {
  await using pool = Pool.create({ bytes: 64 * MIB });
  await using file = create(pool);
  using buf = pool.alloc(64 * MIB);
  for (let attempt = 0;; attempt++) {
    fill(buf.bytes, 1);
    const written = file.write(buf, 0, { guard: "none" });
    buf.bytes.fill(2, 32 * MIB);
    await written;
    if (!same(readFileSync(file.path), pattern(1, 64 * MIB))) break;
    assert.ok(attempt < 20, "the race did not show in 20 attempts");
  }
});

test("an access to a buffer being read waits for the data", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  await using file = create(pool, pattern(1, 32 * MIB));
  using buf = pool.alloc(32 * MIB);
  let waits = 0;
  for (let attempt = 0; attempt < 20 && waits === 0; attempt++) {
    buf.bytes.fill(0);
    dropCache(file.path);
    const reading = file.read(buf, 0);
    const last = buf.bytes.at(-1);
    assertBytes(buf.bytes, pattern(1, 32 * MIB), "what was there at once");
    assert.equal(last, pattern(1, 32 * MIB).at(-1));
    assert.equal((await reading).bytes, 32 * MIB);
    waits = pool.stats().waits.count;
  }
  assert.ok(waits > 0, "accesses that waited");
  assertNothingHeld(pool);
});

// A read into scattered pages takes several requests, one after the other. The thread that began it sleeps, and the
// one that waits may not submit: the doorbell's thread has to.
test("another thread waits for a read in many pieces while the first sleeps", async () => {
  await using pool = Pool.create({ bytes: 16 * MIB, reserve: 16 * MIB });
  await using file = create(pool, pattern(1, 16 * MIB));
  using buf = pool.alloc(16 * MIB);
  scatter(pool, buf);
  const flags = new SharedArrayBuffer(8), state = new Int32Array(flags);
  const worker = new Worker(new URL("programs/reader.ts", import.meta.url), {
    workerData: { share: buf.share(), flags },
  });
  const answers = on(worker, "message");
  await answers.next();
  const reading = file.read(buf, 0);
  Atomics.store(state, 0, 1);
  Atomics.notify(state, 0);
  assert.notEqual(Atomics.wait(state, 1, 0, 30_000), "timed-out");
  assert.deepEqual((await answers.next()).value, [sha256(pattern(1, 16 * MIB))]);
  assert.equal((await reading).bytes, 16 * MIB);
  await worker.terminate();
});

// What the handler reaps, the doorbell's thread does not find, and the event loop had gone to sleep before.
test("a write whose end only the fault handler saw is known to the event loop", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  await using file = create(pool);
  using buf = pool.alloc(32 * MIB);
  for (let i = 0; i < 30; i++) {
    const written = file.write(buf, 0, { guard: "wait" });
    await new Promise((resolve) => setTimeout(resolve, 1));
    buf.bytes[i] = i;
    assert.equal((await written).bytes, 32 * MIB);
  }
});

test('an access to a buffer being read with the guard "none" sees what was there', async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  await using file = create(pool, pattern(1, 32 * MIB).fill(3));
  using buf = pool.alloc(32 * MIB);
  for (let attempt = 0;; attempt++) {
    buf.bytes.fill(0);
    dropCache(file.path);
    const reading = file.read(buf, 0, { guard: "none" });
    const last = buf.bytes.at(-1);
    await reading;
    assert.equal(buf.bytes.at(-1), 3);
    if (last === 0) break;
    assert.ok(attempt < 20, "the race did not show in 20 attempts");
  }
  assert.equal(pool.stats().faults.reads, 0);
});

test("many operations at once, more than the ring has room for", async () => {
  await using pool = Pool.create({ bytes: 8 * MIB });
  await using file = create(pool);
  using buf = pool.alloc(4 * MIB);
  fill(buf.bytes, 1);
  const part = (i: number): Uint8Array => buf.bytes.subarray(i * PAGE, (i + 1) * PAGE);
  const all = Array.from({ length: 1024 }, (_, i) => i);
  await Promise.all(all.map((i) => file.write(part(i), i * PAGE, { guard: "cow" })));
  assertBytes(readFileSync(file.path), buf.bytes, "the file");
  const before = buf.bytes.slice();
  buf.bytes.fill(0);
  await Promise.all(all.map((i) => file.read(part(i), i * PAGE)));
  assertBytes(buf.bytes, before, "what was read");
  assertNothingHeld(pool);
});

// ---- without io_uring

for (const [errno, hint] of [[1, /seccomp|sysctl/], [38, /newer kernel/]] as const) {
  test(`where io_uring fails with ${errno}, a thread does the same`, async (t) => {
    const child = new Child(t, "files", [fresh(), String(errno)]);
    const { hint: said, direct, ...rest } = await child.next<Record<string, unknown>>();
    assert.deepEqual(rest, {
      wrong: [],
      engine: "thread",
      bytes: (4 << 20) + 77,
      errno,
      leaked: 0,
    });
    assert.match(String(said), hint);
    assert.equal(typeof direct, "boolean");
    const { code, stderr } = await child.exit;
    assert.deepEqual([code, stderr], [0, ""]);
  });
}

test("where io_uring can be had, the same program uses it", async (t) => {
  const answer = await new Child(t, "files", [fresh()]).next<Record<string, unknown>>();
  assert.deepEqual([answer.engine, answer.wrong, answer.leaked], ["io_uring", [], 0]);
});

// ---- errors

test("errors say what, which file, and why", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const missing = join(directory, "missing", "file");
  assert.throws(() => pool.open(missing), fails("SYSTEM", 2));
  assert.throws(() => pool.open(missing), /open of ".*missing\/file" failed: ENOENT: pass create/);
  assert.throws(() => pool.open(directory), fails("SYSTEM", 21));
  assert.throws(() => pool.open(directory, { write: true }), fails("SYSTEM", 21));
  assert.throws(() => pool.open("/dev/null"), fails("INVALID_ARGUMENT"));
  assert.throws(() => pool.open(7 as unknown as string), fails("INVALID_ARGUMENT"));
  assert.throws(() => pool.open("a", { read: false }), fails("INVALID_ARGUMENT"));

  const path = fresh();
  writeFileSync(path, "content");
  await using file = pool.open(path);
  await assert.rejects(file.write(new Uint8Array(5)), fails("PERMISSION_DENIED", 9));
  await assert.rejects(file.write(new Uint8Array(5), -1), fails("INVALID_ARGUMENT"));
  await assert.rejects(file.read(new Uint8Array(5), 0.5), fails("INVALID_ARGUMENT"));
  await assert.rejects(file.read(new Uint8Array(5), 0, { guard: "cow" as "wait" }), /"cow"/);
  await assert.rejects(file.write(new Uint8Array(5), 0, { guard: "x" as "cow" }), /"x"/);
  await assert.rejects(file.read(new Uint8Array(2 * MIB), 0), fails("INVALID_ARGUMENT"));
  assert.throws(() => file.truncate(-1), fails("INVALID_ARGUMENT"));
  assertNothingHeld(pool);
});

test("a file that may not be opened", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const sysfs = "/sys/kernel/uevent_seqnum"; // which not even root may write
  assert.throws(() => pool.open(sysfs, { write: true }), fails("PERMISSION_DENIED", 13));
});

test("a write that the disk refuses ends with its errno, and nothing is held", {
  skip: noDirect && "tmpfs takes any offset",
}, async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using file = create(pool);
  using buf = pool.alloc(256 * KIB);
  for (const guard of ["cow", "wait", "copy"] as const) {
    // Behind the largest file there can be.
    await assert.rejects(file.write(buf, 2 ** 53 - 4096, { guard }), (error: MoatError) => {
      assert.deepEqual([error.code, error.errno! > 0], ["SYSTEM", true], error.message);
      assert.match(error.message, /write to \(0 of 262144 bytes done\) ".*" failed: E/);
      return true;
    });
  }
  buf.bytes.fill(1);
  assertNothingHeld(pool);
});

test("a signal stops the waiting, not the guard", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB, reserve: 32 * MIB });
  await using file = create(pool);
  using buf = pool.alloc(16 * MIB);
  fill(buf.bytes, 1);
  const stop = new AbortController();
  const written = file.write(buf, 0, { guard: "cow", signal: stop.signal });
  stop.abort(new Error("enough"));
  fill(buf.bytes, 2);
  await assert.rejects(written, /enough/);
  await file.close();
  assertBytes(readFileSync(file.path), pattern(1, 16 * MIB), "the file");
  assertNothingHeld(pool);
});

test("a closed file says so, and closing waits for what is in flight", async () => {
  const pool = Pool.create({ bytes: 32 * MIB });
  const file = create(pool), buf = pool.alloc(16 * MIB);
  fill(buf.bytes, 1);
  const written = file.write(buf, 0, { guard: "wait" });
  const closed = file.close();
  await assert.rejects(file.read(buf, 0), fails("RESOURCE_CLOSED"));
  assert.throws(() => file.size(), fails("RESOURCE_CLOSED"));
  await closed;
  assert.equal((await written).bytes, 16 * MIB);
  await file.close();
  await pool.close();
});

test("a file goes with its pool, and no descriptor is left", async () => {
  const round = async (): Promise<void> => {
    await using pool = Pool.create({ bytes: MIB });
    const file = create(pool);
    using buf = pool.alloc(64 * KIB);
    const written = file.write(buf, 0, { guard: "cow" });
    await pool.close();
    await written;
    assert.equal(file.closed, true);
  };
  await round();
  const before = descriptors();
  for (let i = 0; i < 20; i++) await round();
  assert.equal(descriptors(), before);
});

test("a buffer freed in flight stays until the disk is done", async () => {
  await using pool = Pool.create({ bytes: 16 * MIB });
  await using file = create(pool);
  const buf = pool.alloc(16 * MIB);
  fill(buf.bytes, 1);
  const written = file.write(buf, 0, { guard: "cow" });
  buf.free();
  await written;
  assertBytes(readFileSync(file.path), pattern(1, 16 * MIB), "the file");
  using again = pool.alloc(16 * MIB);
  again.bytes.fill(1);
});

test("a message that is read in place is written from there, and released when it is written", async () => {
  await using pool = Pool.create({ bytes: 8 * MIB });
  const path = fresh(), size = 2 * MIB + 5000;
  await using file = pool.open(path, { create: true });
  using ends = await pair(pool);
  using buf = pool.alloc(size);
  fill(buf.bytes, 1);
  const sent = ends.here.send(buf, { guard: "cow" });
  const message = (await ends.there.recv())!;
  assert.equal(message.copied, false);
  const { bytesCopiedOut } = pool.stats();
  const whole = file.write(message.bytes),
    part = file.write(message.bytes.subarray(3, 9000), 4 * MIB);
  message.bytes.fill(0); // goes to private pages of the message's reader
  fill(buf.bytes, 2); //    goes to private pages of its sender
  message.release();
  assert.deepEqual(await whole.then(({ bytes, zeroCopy }) => [bytes, zeroCopy]), [size, true]);
  assert.equal((await part).bytes, 8997);
  await sent; // the pages were the sender's until then
  assert.equal(pool.stats().bytesCopiedOut, bytesCopiedOut);
  const written = readFileSync(path);
  assertBytes(written.subarray(0, size), pattern(1, size), "the file");
  assertBytes(written.subarray(4 * MIB), pattern(1, size).subarray(3, 9000), "the part");
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames);
});
