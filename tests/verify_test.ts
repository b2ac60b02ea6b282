import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { type Channel, listen, MoatError, Pool, type PoolOptions } from "../mod.ts";
import { checksum } from "../lib/memory/verify.ts";
import { fill } from "./support/bytes.ts";
import { Child, freshAddress, other } from "./support/child.ts";
import { pair } from "./support/pair.ts";

const PAGE = 4096, MIB = 1 << 20;
const directory = mkdtempSync(join(tmpdir(), "moat-verify-"));
after(() => rmSync(directory, { recursive: true }));
const TEST = fileURLToPath(import.meta.url);

/** Another process that holds what it is sent. */
interface Holder {
  pool: Pool;
  channel: Channel;
  /** Has it do the next step. */
  step<T>(): Promise<T>;
  end(): Promise<void>;
}

async function holder(
  t: TestContext,
  address: string,
  options: PoolOptions = {},
): Promise<Holder> {
  const pool = Pool.create({ bytes: 40 * MIB, ...options });
  const listener = await listen(address, { pool });
  const child = new Child(t, "holder", [listener.address], other());
  const channel = await listener.accept();
  await listener.close();
  assert.equal(await child.next(), "connected");
  return {
    pool,
    channel,
    step: <T>(): Promise<T> => {
      child.process.stdin!.write("\n");
      return child.next<T>();
    },
    async end(): Promise<void> {
      await channel.close();
      child.process.stdin!.end();
      await child.exit;
      await pool.close();
    },
  };
}

/** True for the error that says which bytes were written to. */
function modified(what: string, from: number, to: number): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof MoatError, String(error));
    assert.equal(error.code, "BUFFER_MODIFIED", error.message);
    assert.match(
      error.message,
      new RegExp(`^${what} of \\d+ bytes with the guard "none": bytes ${from} to ${to}\\b`),
    );
    assert.match((error.cause as Error).stack!, /\n {4}at .*\/verify_test\.ts:\d+:\d+/);
    return true;
  };
}

// ---- over transports

for (const [name, address] of [["shm", freshAddress()], ["tcp", "tcp://127.0.0.1:0"]] as const) {
  test(`a write to what is in flight over ${name}:// is found, with its place`, async (t) => {
    const { pool, channel, step, end } = await holder(t, address);
    const buf = pool.alloc(16 * MIB), options = { guard: "none", verify: "checksum" } as const;
    fill(buf.bytes, 1);
    for (const at of [0, 5 * PAGE + 7, 16 * MIB - 1]) {
      const sent = channel.send(buf, options);
      buf.bytes[at]! ^= 0x80;
      const page = Math.floor(at / PAGE) * PAGE;
      const rejected = assert.rejects(sent, modified("send", page, page + PAGE - 1));
      assert.equal(await step(), 16 * MIB);
      assert.equal(await step(), "released");
      await rejected;
    }
    await end();
  });

  test(`what is not touched in flight over ${name}://, or after the end, is as it was`, async (t) => {
    const { pool, channel, step, end } = await holder(t, address, { verify: "checksum" });
    const buf = pool.alloc(MIB);
    for (
      const data of [buf, buf.bytes.subarray(3, 100_001), buf.bytes.subarray(PAGE - 1, PAGE + 1)]
    ) {
      fill(buf.bytes, 2);
      const sent = channel.send(data, { guard: "none" });
      assert.equal(await step(), data.byteLength);
      assert.equal(await step(), "released");
      const { zeroCopy, guard } = await sent;
      assert.deepEqual([zeroCopy, guard], [true, "none"]);
      buf.bytes.fill(9);
    }
    await end();
  });
}

test("over shm:// the message is in flight until the receiver has released it", async (t) => {
  const { pool, channel, step, end } = await holder(t, freshAddress(), { verify: "checksum" });
  const buf = pool.alloc(MIB);
  fill(buf.bytes, 3);
  const rejected = assert.rejects(
    channel.send(buf.bytes.subarray(100, 3 * PAGE), { guard: "none" }),
    modified("send", 2 * PAGE - 100, 3 * PAGE - 101),
  );
  assert.equal(await step(), 3 * PAGE - 100);
  buf.bytes[99] = 1; // before it,
  buf.bytes[3 * PAGE] = 1; // behind it, on pages that it shares or not,
  buf.bytes[2 * PAGE + 5]!++; // and in it
  assert.equal(await step(), "released");
  await rejected;
  await end();
});

test("a guarded or copied message cannot be changed, and is not found to be", async (t) => {
  const { pool, channel, step, end } = await holder(t, freshAddress(), { verify: "checksum" });
  const buf = pool.alloc(MIB);
  for (const guard of ["cow", "copy", "auto"] as const) {
    fill(buf.bytes, 4);
    const sent = channel.send(buf, { guard });
    assert.equal(await step(), MIB);
    buf.bytes.fill(5);
    assert.equal(await step(), "released");
    assert.equal((await sent).bytes, MIB);
  }
  await end();
});

// ---- what it looks at

test("the first page and the number of the others are told, and the line that sent them", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB, verify: "checksum" });
  using ends = await pair(pool);
  using buf = pool.alloc(64 * PAGE);
  const sent = ends.here.send(buf, { guard: "none" }); // mark: sent
  using message = await ends.there.recv();
  for (const page of [9, 3, 40]) buf.bytes[page * PAGE + 1]!++;
  message!.release();
  await assert.rejects(sent, (error: MoatError) => {
    modified("send", 3 * PAGE, 4 * PAGE - 1)(error);
    assert.match(error.message, /bytes 12288 to 16383 and 2 more pages of them were written to/);
    assert.match(error.hint!, /use the guard "cow" or "wait"/);
    const source = readFileSync(TEST, "utf8").split("\n");
    const line = 1 + source.findIndex((text) => text.endsWith("// mark: sent"));
    assert.match((error.cause as Error).stack!, new RegExp(`started here\n    at .*:${line}:`));
    return true;
  });
});

test("a program that another guard has moved to other pages writes to those", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB, verify: "checksum" });
  using ends = await pair(pool);
  using buf = pool.alloc(64 * PAGE);
  fill(buf.bytes, 6);
  const bare = ends.here.send(buf, { guard: "none" }),
    guarded = ends.here.send(buf, { guard: "cow" });
  const first = await ends.there.recv(), second = await ends.there.recv();
  buf.bytes.fill(7);
  first!.release();
  second!.release();
  assert.equal((await bare).guard, "none");
  assert.equal((await guarded).guard, "cow");
});

test("a buffer freed in flight is looked at as well", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB, verify: "checksum" });
  using ends = await pair(pool);
  for (const write of [true, false]) {
    const buf = pool.alloc(64 * PAGE);
    const sent = ends.here.send(buf, { guard: "none" });
    const message = await ends.there.recv();
    if (write) buf.bytes[PAGE]!++;
    buf.free();
    message!.release();
    if (write) await assert.rejects(sent, modified("send", PAGE, 2 * PAGE - 1));
    else await sent;
  }
});

test("snapshots and memory outside the pool have nothing to verify", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB, verify: "checksum" });
  using ends = await pair(pool);
  using buf = pool.alloc(64 * PAGE);
  using version = buf.snapshot();
  const foreign = new Uint8Array(64 * PAGE);
  const sends = [version, foreign].map((data) => ends.here.send(data, { guard: "none" }));
  const messages = [await ends.there.recv(), await ends.there.recv()];
  buf.bytes.fill(1);
  foreign.fill(1);
  for (const message of messages) message!.release();
  assert.deepEqual((await Promise.all(sends)).map(({ guard }) => guard), ["none", "copy"]);
});

test("a write to a file is verified the same way", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB });
  await using file = pool.open(join(directory, "file"), { create: true });
  using buf = pool.alloc(64 * PAGE);
  fill(buf.bytes, 8);
  const options = { guard: "none", verify: "checksum" } as const;
  const written = file.write(buf, 0, options);
  buf.bytes[7 * PAGE]!++;
  await assert.rejects(written, modified("write", 7 * PAGE, 8 * PAGE - 1));
  assert.equal((await file.write(buf, 0, options)).bytes, 64 * PAGE);
  const unasked = file.write(buf, 0, { guard: "none" });
  buf.bytes[7 * PAGE]!++;
  assert.equal((await unasked).bytes, 64 * PAGE);
});

test("a mapped file is verified where it is written from", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB, verify: "checksum" });
  await using file = pool.open(join(directory, "copy"), { create: true });
  const path = join(directory, "mapped");
  writeFileSync(path, new Uint8Array(64 * PAGE));
  using mapped = pool.map(path, { write: true });
  const written = file.write(mapped, 0, { guard: "none" });
  mapped.bytes[9 * PAGE]!++;
  await assert.rejects(written, modified("write", 9 * PAGE, 10 * PAGE - 1));
  assert.equal((await file.write(mapped, 0, { guard: "none" })).bytes, 64 * PAGE);
});

test("another value than checksum is refused", async () => {
  const wrong = "md5" as "checksum";
  const refused = (error: unknown): boolean =>
    error instanceof MoatError && error.code === "INVALID_ARGUMENT" &&
    /verify: "md5"/.test(error.message);
  assert.throws(() => Pool.create({ verify: wrong }), refused);
  await using pool = Pool.create({ bytes: MIB });
  using ends = await pair(pool);
  await assert.rejects(ends.here.send(new Uint8Array(1), { verify: wrong }), refused);
  await using file = pool.open(join(directory, "wrong"), { create: true });
  await assert.rejects(file.write(new Uint8Array(1), 0, { verify: wrong }), refused);
});

// ---- the checksum

test("every change of one bit changes the checksum, wherever the bytes begin and end", () => {
  const memory = new ArrayBuffer(PAGE),
    words = new Int32Array(memory),
    bytes = new Uint8Array(memory);
  fill(bytes, 11);
  for (
    const [from, to] of [[0, PAGE], [1, 40], [15, 17], [16, 32], [4093, PAGE], [
      3,
      3 + 257,
    ]] as const
  ) {
    const before = checksum(words, bytes, from, to);
    for (let at = 0; at < PAGE; at += to - from < 1000 || at % 61 === 0 ? 1 : 7) {
      for (let bit = 0; bit < 8; bit++) {
        bytes[at]! ^= 1 << bit;
        const same = checksum(words, bytes, from, to) === before;
        assert.equal(
          same,
          at < from || at >= to,
          `bit ${bit} of byte ${at}, from ${from} to ${to}`,
        );
        bytes[at]! ^= 1 << bit;
      }
    }
  }
});

test("changes that simple sums miss change the checksum", () => {
  const memory = new ArrayBuffer(PAGE),
    words = new Int32Array(memory),
    bytes = new Uint8Array(memory);
  const sum = (): number => checksum(words, bytes, 0, PAGE), floats = new Float32Array(memory);
  floats.forEach((_, i) => floats[i] = i);
  const before = sum();
  floats.forEach((value, i) => floats[i] = -value); // the highest bit of every word
  assert.notEqual(sum(), before, "signs");
  floats.forEach((value, i) => floats[i] = -value);
  assert.equal(sum(), before);
  floats.reverse();
  assert.notEqual(sum(), before, "the order");
  bytes.fill(0);
  const zeros = sum();
  bytes.fill(0xff);
  assert.notEqual(sum(), zeros, "all bits");
});
