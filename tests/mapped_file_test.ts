import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import {
  type Channel,
  connect,
  type Fault,
  listen,
  type MapOptions,
  type MappedFile,
  MoatError,
  Pool,
} from "../mod.ts";
import { helper, QUERY } from "../ffi/helper.ts";
import { OP } from "../ffi/layout.ts";
import { runtime } from "../ffi/runtime.ts";
import { assertBytes, fill, pattern, same } from "./support/bytes.ts";
import { Child, type Exit } from "./support/child.ts";
import { pair } from "./support/pair.ts";
import { drain, type Flight, fly } from "./support/vmsplice.ts";

const KIB = 1 << 10, MIB = 1 << 20, PAGE = 4096;
const directory = mkdtempSync(join(tmpdir(), "moat-mapped-"));
after(() => rmSync(directory, { recursive: true }));
let names = 0;

/** A new file with a pattern in it. */
function file(length: number, seed = 1): string {
  const path = join(directory, String(names++));
  writeFileSync(path, pattern(seed, length));
  return path;
}

function mapNew(pool: Pool, length: number, options: MapOptions = { write: true }): MappedFile {
  return pool.map(file(length), options);
}

function assertFile(mapped: MappedFile, expected: Uint8Array, what = "the file"): void {
  assertBytes(readFileSync(mapped.path), expected, what);
}

function assertNothingHeld(pool: Pool): void {
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames, "free frames after everything has completed");
  assert.equal(helper().moat_query(QUERY.opsLive, 0), 0, "operations left");
}

function fails(code: string, message = /./): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof MoatError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  };
}

/** Has another process cut a file off. */
function cutOff(path: string, bytes: number): void {
  const { status } = spawnSync("truncate", ["-s", String(bytes), path]);
  assert.equal(status, 0, "truncate");
}

// ---- the buffer

test("the bytes are the file's, both ways", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using mapped = mapNew(pool, 100_001);
  assert.deepEqual([mapped.byteLength, mapped.writable, mapped.freed], [100_001, true, false]);
  assertBytes(mapped.bytes, pattern(1, 100_001), "what is mapped");
  fill(mapped.bytes, 2);
  assertFile(mapped, pattern(2, 100_001), "what another reader sees");
  writeFileSync(mapped.path, pattern(3, 100_001), { flag: "r+" });
  assertBytes(mapped.bytes, pattern(3, 100_001), "what another writer wrote");
  await mapped.sync();
});

test("a part of a file", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using mapped = mapNew(pool, 100_000, { write: true, offset: 2 * PAGE, length: 5_000 });
  assertBytes(mapped.bytes, pattern(1, 100_000).subarray(8192, 13_192), "what is mapped");
  mapped.bytes.fill(0);
  const expected = pattern(1, 100_000);
  expected.fill(0, 8192, 13_192);
  assertFile(mapped, expected);
});

// ---- in flight: a pipe that holds the pages of the page cache

for (const size of [1, 4097, 64 * KIB, 4 * MIB]) {
  for (const offset of [0, 4093]) {
    test(`${size} bytes at ${offset}: "none" reaches the device, "cow" reaches the file when it is done`, async () => {
      await using pool = Pool.create({ bytes: MIB });
      await using mapped = mapNew(pool, offset + size);
      const view = mapped.bytes.subarray(offset),
        before = view.slice(),
        expected = pattern(1, offset + size);
      {
        using flight = fly(pool, view, "none");
        fill(view, 77);
        assert.ok(!same(flight.land(), before), "the race did not show");
      }
      view.set(before);
      using flight = fly(pool, view, "cow");
      fill(view, 5);
      const written = view.slice();
      assertFile(mapped, expected, "the file in flight");
      assertBytes(flight.land(), before, "what the device read");
      assertBytes(view, written, "what the program sees");
      expected.set(written, offset);
      assertFile(mapped, expected, "the file afterwards");
      fill(view, 6);
      expected.set(view, offset);
      assertFile(mapped, expected, "a write after that");
      assert.equal(pool.stats().mappings.used, 0);
    });
  }
}

test("a page that is sent again while its private copy is away", async () => {
  for (const order of [[0, 1], [1, 0]]) {
    await using pool = Pool.create({ bytes: MIB });
    await using mapped = mapNew(pool, 2 * PAGE);
    const flights: Flight[] = [], sent: Uint8Array[] = [];
    for (const seed of [2, 3]) {
      sent.push(mapped.bytes.slice());
      flights.push(fly(pool, mapped, "cow"));
      fill(mapped.bytes, seed);
    }
    assertFile(mapped, pattern(1, 2 * PAGE), "the file with both in flight");
    for (const i of order) assertBytes(flights[i]!.land(), sent[i]!, `flight ${i}`);
    assertBytes(mapped.bytes, pattern(3, 2 * PAGE), "what the program sees");
    assertFile(mapped, pattern(3, 2 * PAGE));
    mapped.bytes[0] = 9;
    assert.equal(readFileSync(mapped.path)[0], 9);
  }
});

test("any order of writes, sends and completions leaves what was written", async () => {
  const size = 24 * PAGE + 17;
  let seed = 12345;
  const random = (below: number): number => {
    seed = Math.imul(seed, 1103515245) + 12345 >>> 0;
    return Math.floor(seed / 2 ** 32 * below);
  };
  for (let round = 0; round < 20; round++) {
    await using pool = Pool.create({ bytes: MIB });
    await using mapped = mapNew(pool, size);
    const flights: { flight: Flight; expected: Uint8Array }[] = [];
    const land = (): void => {
      const [{ flight, expected }] = flights.splice(random(flights.length), 1) as [
        typeof flights[0],
      ];
      assertBytes(flight.land(), expected, "what was sent");
    };
    const model = mapped.bytes.slice();
    for (let step = 0; step < 60; step++) {
      const from = random(size), to = from + 1 + random(size - from);
      const what = random(3);
      if (what === 0 && flights.length < 8) {
        const view = mapped.bytes.subarray(from, to);
        flights.push({ flight: fly(pool, view, "cow"), expected: view.slice() });
      } else if (what === 1 && flights.length > 0) land();
      else {
        const end = Math.min(to, from + 3 * PAGE), byte = random(256);
        mapped.bytes.fill(byte, from, end);
        model.fill(byte, from, end);
      }
      assertBytes(mapped.bytes, model, `what the program sees, round ${round}, step ${step}`);
    }
    while (flights.length > 0) land();
    assertFile(mapped, model);
    await mapped.sync();
    assertNothingHeld(pool);
  }
});

test("sync waits for private pages", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using mapped = mapNew(pool, 64 * KIB);
  using flight = fly(pool, mapped, "cow");
  fill(mapped.bytes, 2);
  let synced = false;
  const sync = mapped.sync().then(() => synced = true);
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(synced, false);
  assertBytes(flight.land(), pattern(1, 64 * KIB), "what the device read");
  await sync;
  assertFile(mapped, pattern(2, 64 * KIB));
});

test("onFault names the file", async () => {
  await using pool = Pool.create({ bytes: MIB, trace: true });
  const faults: Fault[] = [];
  pool.onFault = (fault) => faults.push(fault);
  await using mapped = mapNew(pool, 64 * KIB);
  using flight = fly(pool, mapped, "cow");
  mapped.bytes[5000] = 1;
  flight.land();
  pool.stats();
  assert.deepEqual(
    faults.map(({ file, offset, bufferPage, outcome }) => ({ file, offset, bufferPage, outcome })),
    [{ file: mapped.path, offset: 5000, bufferPage: undefined, outcome: "private" }],
  );
});

// ---- channels and files

for (const guard of ["auto", "cow", "wait", "copy"] as const) {
  test(`a mapped file is sent over shm:// with the guard "${guard}" through pool pages, and the result says so`, async () => {
    await using pool = Pool.create({ bytes: 4 * MIB });
    await using mapped = mapNew(pool, MIB + 5);
    using ends = await pair(pool);
    for (const size of [10, 10_000, MIB + 5]) {
      fill(mapped.bytes, size);
      const expected = mapped.bytes.slice(0, size);
      const sent = ends.here.send(mapped.bytes.subarray(0, size), { guard });
      fill(mapped.bytes, 7);
      using message = await ends.there.recv();
      assertBytes(message!.bytes, expected, "what arrived");
      message!.release();
      assert.deepEqual(await sent, { bytes: size, guard: "copy", zeroCopy: false });
    }
  });
}

test("a message is received into a mapped file", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB });
  await using mapped = mapNew(pool, MIB);
  using ends = await pair(pool);
  for (const size of [100, 100_000, MIB - 3]) {
    const got = ends.there.recv(mapped.bytes.subarray(3));
    await ends.here.send(pattern(size, size));
    assert.equal((await got)!.bytes, size);
    assertBytes(readFileSync(mapped.path).subarray(3, 3 + size), pattern(size, size), "the file");
  }
  assertNothingHeld(pool);
});

test("a message received into pages that are being sent is in the file when both are done", async () => {
  for (const first of ["send", "receive"]) {
    await using pool = Pool.create({ bytes: MIB });
    await using mapped = mapNew(pool, 64 * KIB);
    using ends = await pair(pool);
    using flight = fly(pool, mapped, "cow");
    const got = ends.there.recv(mapped);
    const land = (): void => assertBytes(flight.land(), pattern(1, 64 * KIB), "what was sent");
    if (first === "send") land();
    await ends.here.send(pattern(2, 64 * KIB));
    await got;
    if (first === "receive") land();
    assertFile(mapped, pattern(2, 64 * KIB));
  }
});

test("an access to a mapped file that is being received into waits for the data", async (t) => {
  await using pool = Pool.create({ bytes: 4 * MIB });
  await using mapped = mapNew(pool, MIB);
  const child = new Child(t, "late_sender", [mapped.path]);
  const { address } = await child.next<{ address: string }>();
  const { connect } = await import("../mod.ts");
  await using channel = await connect(address, { pool });
  const got = channel.recv(mapped);
  await channel.send(new Uint8Array(1)); // it sends a moment after this
  assert.equal(mapped.bytes[MIB - 1], pattern(9, MIB)[MIB - 1]);
  assertBytes(mapped.bytes, pattern(9, MIB), "what was there at once");
  assert.ok(pool.stats().waits.count > 0, "accesses that waited");
  await got;
});

for (const guard of ["auto", "cow", "wait", "copy"] as const) {
  test(`a mapped file is written to another file with the guard "${guard}"`, async () => {
    await using pool = Pool.create({ bytes: 8 * MIB });
    await using mapped = mapNew(pool, 4 * MIB);
    await using out = pool.open(join(directory, "out"), { create: true, truncate: true });
    fill(mapped.bytes, 1);
    const written = out.write(mapped, 0, { guard });
    fill(mapped.bytes, 2);
    const result = await written;
    assert.deepEqual([result.bytes, result.zeroCopy], [4 * MIB, result.guard !== "copy"]);
    assertBytes(readFileSync(out.path), pattern(1, 4 * MIB), "the other file");
    await mapped.sync();
    assertFile(mapped, pattern(2, 4 * MIB));
    assertNothingHeld(pool);
  });
}

test("a file is read into a mapped file", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using mapped = mapNew(pool, 300_000);
  await using other = pool.open(file(300_000, 4));
  const reading = other.read(mapped.bytes.subarray(5), 5);
  assert.equal(mapped.bytes[299_999], pattern(4, 300_000)[299_999]);
  const { bytes, zeroCopy } = await reading;
  assert.deepEqual([bytes, zeroCopy], [299_995, true]);
  assertBytes(readFileSync(mapped.path).subarray(5), pattern(4, 300_000).subarray(5), "the file");
});

test('a write with the guard "move" takes the mapping away', async () => {
  await using pool = Pool.create({ bytes: MIB });
  const mapped = mapNew(pool, 300_000), view = mapped.bytes;
  await using out = pool.open(join(directory, "moved"), { create: true });
  const written = out.write(mapped, 0, { guard: "move" });
  assert.deepEqual([view.length, mapped.freed], [0, true]);
  assert.equal((await written).guard, "move");
  assertBytes(readFileSync(out.path), pattern(1, 300_000), "the other file");
});

// ---- read-only

test("a file mapped read-only is sent and written, never received or read into", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using mapped = mapNew(pool, 100_000, {});
  using ends = await pair(pool);
  {
    using flight = fly(pool, mapped, "cow");
    assertBytes(flight.land(), pattern(1, 100_000), "what the device read");
  }
  await using out = pool.open(join(directory, "copied"), { create: true });
  assert.equal((await out.write(mapped, 0, { guard: "wait" })).zeroCopy, true);
  assertBytes(readFileSync(out.path), pattern(1, 100_000), "the other file");
  await assert.rejects(ends.here.recv(mapped), fails("READ_ONLY", /write: true/));
  await assert.rejects(out.read(mapped, 0), fails("READ_ONLY"));
  assert.equal(mapped.writable, false);
});

test("a write to a file mapped read-only is lost, and the next use says so", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using mapped = mapNew(pool, 100_000, {});
  await using out = pool.open(join(directory, "scribbled"), { create: true });
  using flight = fly(pool, mapped, "cow");
  fill(mapped.bytes, 9);
  assertBytes(mapped.bytes, pattern(9, 100_000), "what the program sees of its own write");
  assertFile(mapped, pattern(1, 100_000));
  assertBytes(flight.land(), pattern(1, 100_000), "what the device read");
  await assert.rejects(out.write(mapped, 0), fails("READ_ONLY", /the program wrote to it/));
  await assert.rejects(mapped.sync(), fails("READ_ONLY"));
});

// ---- a file that is cut off

test("an access behind the end of a file that was cut off reads zeros, and operations say why", async () => {
  await using pool = Pool.create({ bytes: MIB });
  for (const write of [true, false]) {
    await using mapped = mapNew(pool, 100_000, { write });
    using ends = await pair(pool);
    await using out = pool.open(join(directory, "cut"), { create: true });
    cutOff(mapped.path, 5_000);
    assert.deepEqual([mapped.bytes[4_000], mapped.bytes[50_000]], [pattern(1, 5_000)[4_000], 0]);
    if (write) mapped.bytes[60_000] = 1;
    for (const guard of ["auto", "cow", "copy"] as const) {
      const cut = fails("FILE_TRUNCATED", /was cut off/);
      await assert.rejects(ends.here.send(mapped, { guard }), cut);
      await assert.rejects(out.write(mapped, 0, { guard }), cut);
    }
    await assert.rejects(ends.here.recv(mapped), fails("FILE_TRUNCATED"));
    await assert.rejects(mapped.sync(), fails("FILE_TRUNCATED"));
    // Its being made longer again does not mend it: pages of it are gone.
    truncateSync(mapped.path, 100_000);
    await assert.rejects(mapped.sync(), fails("FILE_TRUNCATED"));
  }
  assertNothingHeld(pool);
});

test("a file that is cut off and made longer in between is as if it had not been", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using mapped = mapNew(pool, 100_000);
  cutOff(mapped.path, 0);
  truncateSync(mapped.path, 100_000);
  assert.equal(mapped.bytes[50_000], 0);
  fill(mapped.bytes, 3);
  await mapped.sync();
  assertFile(mapped, pattern(3, 100_000));
});

test("a file cut off in flight: the handler copies what is gone, and the process lives", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using mapped = mapNew(pool, 16 * PAGE);
  using flight = fly(pool, mapped, "cow");
  cutOff(mapped.path, 0);
  mapped.bytes.fill(7); // faults, copies pages that are gone, and writes
  assert.equal(mapped.bytes[3 * PAGE], 7);
  assertBytes(drain(flight.transfer), pattern(1, 16 * PAGE), "the device still had the pages");
  const address = helper().moat_op_address(flight.transfer.op);
  const status = new DataView(runtime().viewOf(address, OP.size)).getInt32(OP.status, true);
  assert.equal(status, -116, "ESTALE for the operation");
  flight.collect();
  await assert.rejects(mapped.sync(), fails("FILE_TRUNCATED"));
  assert.equal(readFileSync(mapped.path).length, 0);
});

test("a receive into a file that is cut off meanwhile ends with FILE_TRUNCATED", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using mapped = mapNew(pool, 64 * KIB);
  using ends = await pair(pool);
  const got = ends.there.recv(mapped);
  cutOff(mapped.path, 0);
  const [outcome] = await Promise.allSettled([got, ends.here.send(pattern(2, 64 * KIB))]);
  assert.equal(outcome.status, "rejected");
  fails("FILE_TRUNCATED")((outcome as PromiseRejectedResult).reason);
  // The channel is none the worse for it.
  const next = ends.there.recv();
  await ends.here.send(new Uint8Array([5]));
  assert.deepEqual([...(await next)!.bytes], [5]);
});

/** Two ends of a connection over TCP. */
async function tcpPair(
  pool: Pool,
): Promise<{ here: Channel; there: Channel; end: () => Promise<void> }> {
  const listener = await listen("tcp://127.0.0.1:0", { pool });
  const [here, there] = await Promise.all([
    connect(listener.address, { pool }),
    listener.accept(),
  ]);
  const end = async (): Promise<void> => {
    await Promise.all([here.close(), there.close()]);
    await listener.close();
  };
  return { here, there, end };
}

for (const size of [100, 4 * MIB]) {
  test(`over tcp:// too: ${size} bytes, and no thread of the process dies of it`, async () => {
    await using pool = Pool.create({ bytes: 16 * MIB });
    await using mapped = mapNew(pool, 4 * MIB);
    const { here, there, end } = await tcpPair(pool);
    const got = there.recv(mapped);
    await sleep(20); // nobody looks: the doorbell's thread will receive it
    cutOff(mapped.path, 0);
    const sent = here.send(pattern(2, size));
    await assert.rejects(got, fails("FILE_TRUNCATED"));
    await sent;
    await end();
  });
}

test("a message with a header that came ahead over tcp:// is received into a mapped file", async () => {
  await using pool = Pool.create({ bytes: 16 * MIB });
  await using mapped = mapNew(pool, MIB);
  const { here, there, end } = await tcpPair(pool);
  const send = (i: number): Promise<unknown> =>
    here.send(pattern(i, 300_000), { header: pattern(i + 10, 24) });
  for (let i = 0; i < 3; i++) {
    const sent = send(i);
    (await there.recv())!.release();
    await sent;
  }
  const sent = send(3);
  await sleep(20); // it is there before it is asked for
  const { bytes, header } = (await there.recv(mapped))!;
  assert.equal(bytes, 300_000);
  assertBytes(header, pattern(13, 24), "its header");
  assertBytes(mapped.bytes.subarray(0, bytes), pattern(3, bytes), "the message");
  await sent;
  await end();
  assertNothingHeld(pool);
});

test("what is sent over tcp:// from a file that is cut off goes on with zeros, and FILE_TRUNCATED is told", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  await using mapped = mapNew(pool, 2 * MIB);
  const { here, there, end } = await tcpPair(pool);
  using first = pool.alloc(16 * MIB); // more than the socket takes
  const sent = [here.send(first), here.send(mapped, { guard: "cow" }), here.send(pattern(3, 9))];
  const settled = Promise.allSettled(sent);
  cutOff(mapped.path, 0);
  for (const expected of [first.bytes, new Uint8Array(2 * MIB), pattern(3, 9)]) {
    using message = await there.recv();
    assertBytes(message!.bytes, expected, `${expected.length} bytes`);
  }
  const outcomes = await settled;
  assert.deepEqual(outcomes.map(({ status }) => status), ["fulfilled", "rejected", "fulfilled"]);
  fails("FILE_TRUNCATED")((outcomes[1] as PromiseRejectedResult).reason);
  await end();
});

test("an operation whose file is cut off before the kernel reads it ends with FILE_TRUNCATED", async () => {
  await using pool = Pool.create({ bytes: MIB });
  for (const direct of [true, false]) {
    await using mapped = mapNew(pool, 8 * MIB);
    await using out = pool.open(join(directory, "late"), { create: true, direct });
    // Once the operation holds the pages it is too late for them to be missed, so this may also succeed.
    const written = out.write(mapped, 0, { guard: "cow" });
    truncateSync(mapped.path, 0);
    const [outcome] = await Promise.allSettled([written]);
    if (outcome.status === "rejected") fails("FILE_TRUNCATED")(outcome.reason);
    await assert.rejects(out.write(mapped, 0), fails("FILE_TRUNCATED"));
  }
  assertNothingHeld(pool);
});

for (const name of ["foreign", "sent"]) {
  test(`a SIGBUS that is not Moat's behaves as without it: ${name}`, async (t) => {
    const run = (mode: string): Promise<Exit> => new Child(t, "bus", [name, mode, file(PAGE)]).exit;
    const bare = await run("bare"), moat = await run("moat");
    const crash = (text: string): string => /(panic|Bus error|SIGBUS)/.exec(text)?.[0] ?? "";
    const outcome = ({ code, signal, stdout, stderr }: Exit): unknown => {
      return { code, signal, stdout, crash: crash(stderr) };
    };
    assert.deepEqual(outcome(moat), outcome(bare), moat.stderr);
    assert.ok(moat.stdout.includes("before"), moat.stderr);
  });
}

// ---- errors and ends

test("what cannot be mapped says why", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const path = file(10_000), cannot = fails("INVALID_ARGUMENT");
  assert.throws(() => pool.map(join(directory, "none")), fails("SYSTEM", /ENOENT/));
  assert.throws(() => pool.map(directory), fails("SYSTEM", /EISDIR/));
  assert.throws(() => pool.map("/dev/null"), cannot);
  assert.throws(() => pool.map(path, { offset: 5 }), fails("INVALID_ARGUMENT", /page size, 4096/));
  assert.throws(() => pool.map(path, { offset: -PAGE }), cannot);
  assert.throws(() => pool.map(path, { length: 0 }), cannot);
  assert.throws(() => pool.map(path, { length: 1.5 }), cannot);
  assert.throws(() => pool.map(path, { length: 10_001 }), fails("INVALID_ARGUMENT", /truncate/));
  assert.throws(() => pool.map(path, { offset: 3 * PAGE }), cannot);
  assert.throws(() => pool.map(file(0)), fails("INVALID_ARGUMENT", /it has 0 bytes/));
});

test("a mapped file is used with its own pool only, and until it is freed", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using other = Pool.create({ bytes: MIB });
  const mapped = mapNew(pool, 10_000);
  await using out = other.open(join(directory, "foreign"), { create: true });
  await assert.rejects(out.write(mapped, 0), fails("FOREIGN_BUFFER"));
  mapped.free();
  assert.throws(() => mapped.free(), fails("BUFFER_FREED"));
  await assert.rejects(mapped.sync(), fails("BUFFER_FREED"));
  await using own = pool.open(join(directory, "own"), { create: true });
  await assert.rejects(own.write(mapped, 0), fails("BUFFER_FREED"));
  assert.equal(mapped.bytes.length, 0);
  await mapped.close();
});

test("a mapping freed in flight stays until the disk is done", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const mapped = mapNew(pool, 8 * MIB);
  await using out = pool.open(join(directory, "freed"), { create: true });
  const written = out.write(mapped, 0, { guard: "cow" });
  mapped.free();
  await mapped.close();
  assert.equal((await written).bytes, 8 * MIB);
  assertBytes(readFileSync(out.path), pattern(1, 8 * MIB), "the other file");
});

interface Collector {
  gc?: () => void;
  Bun?: { gc(now: boolean): void };
}

test("a mapping that nobody holds any more goes by itself", async () => {
  const { gc, Bun } = globalThis as Collector;
  assert.ok(gc ?? Bun, "this test needs --expose-gc");
  await using pool = Pool.create({ bytes: MIB });
  const path = file(100_000);
  (() => pool.map(path, { write: true }).bytes[5] = 7)();
  const mapped = (): boolean => readFileSync("/proc/self/maps", "utf8").includes(path);
  assert.ok(mapped());
  for (let i = 0; i < 200 && mapped(); i++) {
    if (Bun) Bun.gc(true);
    else gc!();
    await new Promise((resolve) => setTimeout(resolve, 1)); // finalizers run from the event loop
  }
  assert.equal(mapped(), false);
  assert.equal(readFileSync(path)[5], 7);
});

test("mappings go with their pool, and nothing is left of them", async () => {
  const path = file(3 * PAGE + 1);
  const held = (): number[] => [
    // Those of the runtime come and go.
    readdirSync("/proc/self/fd").filter((fd) => {
      try {
        const to = readlinkSync(`/proc/self/fd/${fd}`);
        return to.includes(path) || /memfd:moat|io_uring/.test(to);
      } catch {
        return false; // of the listing itself
      }
    }).length,
    readFileSync("/proc/self/maps", "utf8").split("\n").filter((line) => line.includes(path))
      .length,
    readFileSync("/proc/self/maps", "utf8").split("moat-map").length,
  ];
  const round = async (end: "pool" | "free" | "close"): Promise<void> => {
    await using pool = Pool.create({ bytes: MIB });
    const mapped = pool.map(path, { write: true });
    using flight = fly(pool, mapped, "cow");
    mapped.bytes.fill(3);
    flight.land();
    if (end === "free") mapped.free();
    if (end === "close") await mapped.close();
  };
  await round("pool");
  const before = held();
  for (const end of ["pool", "free", "close"] as const) {
    for (let i = 0; i < 5; i++) await round(end);
  }
  for (let i = 0; i < 1000 && !isDeepStrictEqual(held(), before); i++) await sleep(5);
  assert.deepEqual(held(), before);
  assert.equal(helper().moat_query(QUERY.mapsUsed, 0), 0);
});
