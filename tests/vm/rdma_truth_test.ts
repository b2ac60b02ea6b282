import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { after, before, test } from "node:test";
import { type Channel, type Guard, GuardTimeoutError, listen, Pool } from "../../mod.ts";
import type { Answer, Order } from "../programs/witness.ts";
import type { Order as SendOrder } from "../programs/sender.ts";
import { assertBytes, fill, pattern, sha256 } from "../support/bytes.ts";
import { Child, other, share } from "../support/child.ts";

const KIB = 1 << 10, MIB = 1 << 20;
// Smaller ones go out in one packet burst inside send() itself: there is no race to be lost.
const SIZES = [16 * KIB + 1, 64 * KIB, MIB, 8 * MIB];
const OFFSETS = [0, 1, 4093];
const HOST = "10.9.0.1";

interface Ends {
  pool: Pool;
  channel: Channel;
}

let ends: Ends, sender: Ends;
let kill: (() => void)[] = [];

// A channel to a program in a process of its own, on the other runtime.
async function peer(name: string, args: string[] = []): Promise<Ends> {
  const pool = Pool.create({ bytes: 32 * MIB });
  await using listener = await listen(`rdma://${HOST}:0`, { pool });
  const scope = { after: (fn: () => void) => void kill.push(fn) };
  const child = new Child(scope, name, [listener.address, ...args], other());
  const channel = await Promise.race([
    listener.accept(),
    child.exit.then(({ stderr }) => Promise.reject(new Error(`${name} ended: ${stderr}`))),
  ]);
  return { pool, channel };
}

before(async () => {
  [ends, sender] = await Promise.all([peer("witness", [String(32 * MIB)]), peer("sender")]);
});
after(async () => {
  for (const { channel } of [ends, sender]) channel.abort();
  for (const fn of kill) fn();
  kill = [];
  await Promise.all([ends.pool.close(), sender.pool.close()]);
});

function order(what: Order): void {
  void ends.channel.send(Buffer.from(JSON.stringify(what)));
}
function tellSender(what: SendOrder): void {
  void sender.channel.send(Buffer.from(JSON.stringify(what)));
}
async function answer(): Promise<string[]> {
  using message = await ends.channel.recv();
  return (JSON.parse(Buffer.from(message!.bytes).toString()) as Answer).sha256;
}

interface Outcome {
  before: string;
  written: string;
  arrived: string;
  waits: number;
  privatePages: number;
}

// Sends bytes and overwrites them at once.
async function overwrite(guard: Guard, size: number, offset: number): Promise<Outcome> {
  const { pool, channel } = ends, start = pool.stats();
  using buf = pool.alloc(offset + size);
  const view = buf.bytes.subarray(offset), ones = pattern(1, size), twos = pattern(2, size);
  view.set(ones);
  order({ messages: 1, look: 0 });
  const sent = channel.send(view, { guard });
  view.set(twos);
  const { waits, privatePages } = pool.stats();
  const [arrived] = await answer();
  const result = await sent;
  assert.equal(result.guard, guard === "auto" ? result.guard : guard);
  const written = sha256(view);
  assert.equal(written, sha256(twos), "what the program sees of its own write");
  return {
    before: sha256(ones),
    written,
    arrived: arrived!,
    waits: waits.count - start.waits.count,
    privatePages: privatePages - start.privatePages,
  };
}

for (const size of share(SIZES)) {
  test(`${size} bytes guarded by "none" are overwritten on their way over the wire`, async () => {
    let lost = false;
    for (let tries = 0; tries < 20 && !lost; tries++) {
      const { before, arrived } = await overwrite("none", size, OFFSETS[tries % 3]!);
      lost = arrived !== before;
    }
    assert.ok(lost, "the race did not show");
  });

  for (const guard of ["cow", "wait", "copy", "auto"] as const) {
    test(`${size} bytes guarded by "${guard}" arrive over the wire as they were at the call`, async () => {
      for (const offset of OFFSETS) {
        const { before, arrived, waits } = await overwrite(guard, size, offset);
        assert.equal(arrived, before, `at offset ${offset}`);
        if (guard === "cow" || guard === "copy") assert.equal(waits, 0, "accesses that waited");
      }
      const { freeFrames, reserveFrames } = ends.pool.stats();
      assert.equal(freeFrames, reserveFrames, "free frames after everything was released");
    });
  }

  test(`${size} bytes guarded by "move" arrive over the wire though the pool is used again`, async () => {
    const { pool, channel } = ends, available = pool.stats().bytesAvailable;
    const buf = pool.alloc(size);
    fill(buf.bytes, 1);
    order({ messages: 1, look: 0 });
    const sent = channel.send(buf, { guard: "move" });
    using next = pool.alloc(size);
    next.bytes.fill(0xee);
    assert.deepEqual(await answer(), [sha256(pattern(1, size))]);
    await sent;
    next.free();
    assert.equal(pool.stats().bytesAvailable, available, "bytes given back");
  });

  for (const offset of OFFSETS) {
    test(`a read of ${size} bytes pending at ${offset} waits for the data from the wire`, async () => {
      const { pool, channel } = sender;
      using buf = pool.alloc(offset + size);
      buf.bytes.fill(0xee);
      const before = pool.stats().waits.count, view = buf.bytes.subarray(offset);
      tellSender({ after: 100, messages: [{ seed: 7, bytes: size, offset: 5 }], guard: "cow" });
      const got = channel.recv(view);
      // No await: nothing but the handler can bring the bytes.
      const last = view[size - 1], expected = pattern(7, size);
      assert.equal(last, expected[size - 1]);
      assertBytes(view, expected, "received");
      assert.equal(pool.stats().waits.count, before + 1, "accesses that waited");
      assert.equal((await got)!.bytes, size);
    });

    test(`a read of ${size} bytes pending at ${offset} without a guard sees what was there`, async () => {
      const { pool, channel } = sender;
      using buf = pool.alloc(offset + size);
      buf.bytes.fill(0xee);
      const view = buf.bytes.subarray(offset);
      tellSender({ after: 100, messages: [{ seed: 7, bytes: size }] });
      const got = channel.recv(view, { guard: "none" });
      assert.equal(view[size - 1], 0xee);
      await got;
      assertBytes(view, pattern(7, size), "received");
    });
  }
}

test("a small message for a pending receive waits and arrives, too", async () => {
  const { pool, channel } = sender;
  using buf = pool.alloc(4096);
  for (const size of [1, 100, 4000]) {
    tellSender({ after: 50, messages: [{ seed: size, bytes: size }] });
    const got = channel.recv(buf.bytes.subarray(0, size));
    assertBytes(buf.bytes.subarray(0, size), pattern(size, size), `${size} bytes`);
    await got;
  }
});

test("many versions of one buffer in flight arrive as they were, in order", async () => {
  const { pool, channel } = ends;
  using buf = pool.alloc(64 * KIB);
  const versions = Array.from({ length: 60 }, (_, i) => i);
  order({ messages: versions.length, look: 0 });
  const sent = versions.map((i) => {
    fill(buf.bytes, i);
    return channel.send(buf, { guard: "cow" });
  });
  assert.deepEqual(await answer(), versions.map((i) => sha256(pattern(i, 64 * KIB))));
  await Promise.all(sent);
});

test("a buffer in more scattered pages than an announcement lists arrives whole", async () => {
  const { pool, channel } = ends;
  using buf = pool.alloc(8 * MIB);
  fill(buf.bytes, 1);
  // Every other page becomes private: 1,024 runs and more.
  order({ messages: 2, look: 0 });
  const first = channel.send(buf, { guard: "cow" });
  for (let at = 0; at < buf.byteLength; at += 8192) buf.bytes[at]! ^= 0xff;
  const expected = sha256(buf.bytes);
  const second = channel.send(buf, { guard: "cow" });
  assert.deepEqual(await answer(), [sha256(pattern(1, 8 * MIB)), expected]);
  await Promise.all([first, second]);
});

test("an access that could only be ended by its own thread is told so", async () => {
  const { pool, channel } = sender;
  await using listener = await listen(`rdma://${HOST}:0`, { pool });
  const { connect } = await import("../../mod.ts");
  const [here, there] = await Promise.all([
    listener.accept(),
    connect(listener.address, { pool }),
  ]);
  using buf = pool.alloc(4096);
  const got = here.recv(buf);
  const refused = assert.rejects(got, GuardTimeoutError);
  assert.equal(buf.bytes[0], buf.bytes[0]);
  await refused;
  // What is on its way already needs nobody's help: this thread drives both ends.
  const again = here.recv(buf), sent = there.send(pattern(9, 4096), { guard: "copy" });
  assertBytes(buf.bytes, pattern(9, 4096), "received by the handler");
  await Promise.all([again, sent]);
  here.abort();
  there.abort();
  void channel;
});
