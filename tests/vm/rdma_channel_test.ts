import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { connect, listen, MoatError, Pool } from "../../mod.ts";
import { CmId } from "../../lib/verbs/mod.ts";
import { processId } from "../../lib/identity.ts";
import { encodeHello } from "../../lib/rdma/hello.ts";
import { assertBytes, fill, pattern } from "../support/bytes.ts";
import { Child, other, share } from "../support/child.ts";
import { pair } from "../support/pair.ts";

const KIB = 1 << 10, MIB = 1 << 20, HOST = "10.9.0.1", AT = `rdma://${HOST}:0`;

const code = (wanted: string) => (error: unknown): boolean => {
  assert.ok(error instanceof MoatError, String(error));
  assert.equal(error.code, wanted, error.message);
  return true;
};

function assertNothingHeld(pool: Pool): void {
  const { freeFrames, reserveFrames, bytesAvailable } = pool.stats();
  assert.equal(freeFrames, reserveFrames, "free frames");
  assert.equal(bytesAvailable, pool.byteLength, "bytes available");
}

// Tests that start processes and Workers, which takes seconds here: the runtimes share them.
type Body = (t: { after(fn: () => void): void }) => Promise<void>;
const started: [name: string, body: Body][] = [];
function apart(name: string, body: Body): void {
  started.push([name, body]);
}

test("messages of 0 bytes to 8 MiB arrive whole and in order, from the pool and from elsewhere", async () => {
  await using pool = Pool.create({ bytes: 64 * MIB });
  using ends = await pair(pool, AT);
  const { here, there } = ends, sizes = [0, 1, 187, 188, 4071, 4072, 4073, 65_537, MIB, 8 * MIB, 3];
  for (const own of [true, false]) {
    const flying = sizes.map((size, i) => {
      if (!own || size === 0) return here.send(pattern(i, size));
      const buf = pool.alloc(size);
      fill(buf.bytes, i);
      const sent = here.send(buf);
      buf.free();
      return sent;
    });
    for (const [i, size] of sizes.entries()) {
      using message = await there.recv();
      assertBytes(message!.bytes, pattern(i, size), `message ${i}`);
    }
    await Promise.all(flying);
  }
  await Promise.all([here.close(), there.close()]);
  assertNothingHeld(pool);
});

test("a thousand sends in both directions without awaiting one arrive in order", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  using ends = await pair(pool, AT);
  const { here, there } = ends, count = 500, flying: Promise<unknown>[] = [];
  using buf = pool.alloc(64 * KIB);
  const bytes = (i: number): number => i % 3 === 0 ? 20_000 : i % 3 === 1 ? 8 : 3000;
  for (let i = 0; i < count; i++) {
    buf.bytes.fill(i & 0xff);
    for (const end of [here, there]) flying.push(end.send(buf.bytes.subarray(0, bytes(i))));
  }
  for (const end of [there, here]) {
    for (let i = 0; i < count; i++) {
      using message = await end.recv();
      assert.equal(message!.byteLength, bytes(i), `message ${i}`);
      assert.ok(message!.bytes.every((b) => b === (i & 0xff)), `message ${i}`);
    }
  }
  await Promise.all(flying);
});

test("who does not receive holds the sender back, and nothing is lost", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  using ends = await pair(pool, AT);
  const { here, there } = ends;
  let done = 0;
  const flying = Array.from(
    { length: 400 },
    (_, i) => here.send(pattern(i, 500)).then(() => done++),
  );
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.ok(done < 400, "sends that did not wait for a receiver");
  for (let i = 0; i < 400; i++) {
    using message = await there.recv();
    assertBytes(message!.bytes, pattern(i, 500), `message ${i}`);
  }
  await Promise.all(flying);
});

test("a message larger than the buffer stays for the next receive", async () => {
  await using pool = Pool.create({ bytes: 8 * MIB });
  using ends = await pair(pool, AT);
  const { here, there } = ends;
  using small = pool.alloc(100), buf = pool.alloc(MIB);
  fill(buf.bytes, 5);
  for (const size of [300, 100_000]) {
    const sent = here.send(buf.bytes.subarray(0, size), { guard: "cow" });
    await assert.rejects(there.recv(small), code("MESSAGE_TOO_LARGE"));
    using message = await there.recv();
    assertBytes(message!.bytes, buf.bytes.subarray(0, size), "at the second try");
    await sent;
  }
});

test("messages read ahead go to whatever receive comes, in order, and the rest back to the pool", async () => {
  await using pool = Pool.create({ bytes: 64 * MIB });
  const { here, there } = await pair(pool, AT), size = 200_000, count = 12;
  const flying = Array.from({ length: count }, (_, i) => here.send(pattern(i, size)));
  {
    using first = await there.recv(); // the next are read while nobody has asked for them
    assertBytes(first!.bytes, pattern(0, size), "message 0");
  }
  await Promise.all(flying.slice(0, 4)); // so these have been
  using small = pool.alloc(100), buf = pool.alloc(size + 1);
  await assert.rejects(there.recv(small), code("MESSAGE_TOO_LARGE"));
  for (let i = 1; i < 8; i++) {
    if (i % 2 === 0) {
      using message = await there.recv();
      assertBytes(message!.bytes, pattern(i, size), `message ${i}`);
      continue;
    }
    const got = there.recv(buf.bytes.subarray(1));
    assertBytes(buf.bytes.subarray(1, size + 1), pattern(i, size), `message ${i}`); // waits
    assert.equal((await got)!.bytes, size);
  }
  small.free();
  buf.free();
  there.abort(); // with some that nobody took
  await Promise.allSettled(flying);
  await here.close();
  await there.close();
  for (let i = 0; i < 100 && pool.stats().bytesAvailable < pool.byteLength; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assertNothingHeld(pool);
});

test("without room in the pool a message stays for a receive that has some", async () => {
  await using pool = Pool.create({ bytes: 8 * MIB });
  await using tight = Pool.create({ bytes: 64 * KIB });
  await using listener = await listen(AT, { pool });
  const [here, there] = await Promise.all([
    listener.accept(),
    connect(listener.address, { pool: tight }),
  ]);
  const hog = tight.alloc(60 * KIB), sent = here.send(pattern(1, 40 * KIB));
  await assert.rejects(there.recv(), code("POOL_EXHAUSTED"));
  hog.free();
  using message = await there.recv();
  assertBytes(message!.bytes, pattern(1, 40 * KIB), "after a buffer was freed");
  await sent;
  message!.release();
  await Promise.all([here.close(), there.close()]);
});

test("close() drains: what was sent before it arrives, also what is received after it", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  using ends = await pair(pool, AT);
  const { here, there } = ends, sizes = [10, 100_000, 20, MIB];
  for (const [i, size] of sizes.entries()) void here.send(pattern(i, size));
  const closed = here.close();
  for (const [i, size] of sizes.entries()) {
    using message = await there.recv();
    assertBytes(message!.bytes, pattern(i, size), `message ${i}`);
  }
  await closed;
  assert.equal(await there.recv(), null);
  await assert.rejects(there.send(pattern(0, 10)), code("CHANNEL_CLOSED"));
  await there.close();
  assertNothingHeld(pool);
});

test("abort() rejects everything at once, the peer is told, and every page opens again", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  using ends = await pair(pool, AT);
  const { here, there } = ends;
  using buf = pool.alloc(MIB), into = pool.alloc(MIB);
  const pending = [
    assert.rejects(here.send(buf, { guard: "wait" }), code("ABORTED")),
    assert.rejects(here.recv(into), code("ABORTED")),
  ];
  // The first may have reached the receive by then, the second has nowhere to go.
  const first = there.send(pattern(1, 100_000)).catch(() => {});
  const told = assert.rejects(there.send(pattern(1, 100_000)), code("PEER_ABORTED"));
  here.abort(new Error("enough"));
  await Promise.all([...pending, first, told]);
  // A write to the guarded page and a read of the pending one: the device has given both back, or will.
  buf.bytes.fill(1);
  into.bytes.fill(2);
  await assert.rejects(there.recv(), code("PEER_ABORTED"));
  await there.close();
});

test("an AbortSignal takes a receive back: the buffer opens, and the message goes to the next", async () => {
  await using pool = Pool.create({ bytes: 8 * MIB });
  using ends = await pair(pool, AT);
  const { here, there } = ends, stop = new AbortController();
  using buf = pool.alloc(64 * KIB);
  const refused = assert.rejects(there.recv(buf, { signal: stop.signal }), /never mind/);
  stop.abort(new Error("never mind"));
  await refused;
  buf.bytes[0] = 1; // without waiting
  assert.equal(pool.stats().waits.count, 0);
  const sent = here.send(pattern(3, 64 * KIB));
  using message = await there.recv();
  assertBytes(message!.bytes, pattern(3, 64 * KIB), "the next");
  await sent;
});

apart("messages move on while this thread computes, without the event loop", async (t) => {
  await using pool = Pool.create({ bytes: 8 * MIB });
  await using listener = await listen(AT, { pool });
  new Child(t, "sender", [listener.address], other());
  const channel = await listener.accept();
  using buf = pool.alloc(MIB);
  const order = { after: 100, messages: [{ seed: 4, bytes: MIB }], guard: "cow" };
  await channel.send(new TextEncoder().encode(JSON.stringify(order)));
  const got = channel.recv(buf), expected = pattern(4, MIB);
  // Computes for much longer than the message takes: it is the doorbell's thread that reads it.
  const until = performance.now() + 3000;
  while (performance.now() < until);
  assertBytes(buf.bytes, expected, "received");
  assert.equal(pool.stats().waits.count, 0, "accesses that had to wait");
  await got;
  channel.abort();
});

apart(
  "a peer that is killed while a handler waits: the page opens and the receive rejects",
  async (t) => {
    await using pool = Pool.create({ bytes: 8 * MIB });
    await using listener = await listen(AT, { pool });
    const child = new Child(t, "sender", [listener.address], other());
    const channel = await listener.accept();
    using buf = pool.alloc(MIB), sending = pool.alloc(MIB);
    const order = { after: 60_000, messages: [] };
    await channel.send(new TextEncoder().encode(JSON.stringify(order)));
    const got = assert.rejects(channel.recv(buf), code("PEER_LOST"));
    const sent = assert.rejects(channel.send(sending, { guard: "wait" }), code("PEER_LOST"));
    child.process.kill("SIGKILL");
    assert.equal(buf.bytes[0], 0); // waits for a message that never comes
    sending.bytes[0] = 1;
    await Promise.all([got, sent]);
    await channel.close();
  },
);

apart("a send under way to a peer that is killed rejects with what the device said", async (t) => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  await using listener = await listen(AT, { pool });
  const child = new Child(t, "sender", [listener.address], other());
  const channel = await listener.accept();
  await channel.send(new TextEncoder().encode(JSON.stringify({ after: 60_000, messages: [] })));
  const flying = Array.from({ length: 100 }, (_, i) => channel.send(pattern(i, 100_000)));
  child.process.kill("SIGKILL");
  // It may have read some of them before.
  const rejected = (await Promise.allSettled(flying)).flatMap((each) =>
    each.status === "rejected" ? [each.reason] : []
  );
  assert.ok(rejected.length > 0);
  for (const reason of rejected) code("PEER_LOST")(reason);
  await channel.close();
  assertNothingHeld(pool);
});

test("nobody listens, no such host, no device on the way: each is its own error", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const to = (address: string, timeout = 10_000): Promise<unknown> =>
    connect(address, { pool, timeout });
  await assert.rejects(to(`rdma://${HOST}:1`), code("CONNECTION_REFUSED"));
  await assert.rejects(to("rdma://10.9.0.77:7471", 1500), (error) => {
    assert.ok(error instanceof MoatError);
    assert.ok(["ADDRESS_ERROR", "UNREACHABLE", "TIMED_OUT"].includes(error.code), error.message);
    assert.ok(error.hint, error.message);
    return true;
  });
  await assert.rejects(to(`rdma://${HOST}:0`), code("INVALID_ARGUMENT"));
  await assert.rejects(to("rdma://:7471"), code("INVALID_ARGUMENT"));
  await assert.rejects(to("rdma://10.9.0.1"), code("INVALID_ARGUMENT"));
  await assert.rejects(listen(`rdma://192.0.2.1:0`, { pool }), MoatError);
  await using taken = await listen(AT, { pool });
  await assert.rejects(listen(taken.address, { pool }), code("ADDRESS_IN_USE"));
});

test("a stranger, another version and another page size are rejected with the reason", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using listener = await listen(AT, { pool });
  const port = Number(/:(\d+)$/.exec(listener.address)![1]);
  const hello = { base: 0, rkey: 0, frames: 1, pageSize: 4096, thread: 0, process: processId() };
  const right = encodeHello(hello), version = right.slice();
  version[4] = 99;
  const cases: [Uint8Array, RegExp][] = [
    [new Uint8Array(0), /does not speak this protocol/],
    [pattern(1, 48), /does not speak this protocol/],
    [version, /speaks version 99 of the protocol, this is version 1/],
    [encodeHello({ ...hello, pageSize: 65536 }), /pages of 65536 bytes, this host of 4096/],
  ];
  for (const [privateData, reason] of cases) {
    using id = CmId.create();
    await id.resolveAddr(HOST, port);
    await id.resolveRoute();
    const pd = id.context.allocPd(), cq = id.context.createCq();
    id.createQp(pd, { sendCq: cq });
    await assert.rejects(id.connect({ privateData }), code("REJECTED"));
    assert.match(new TextDecoder().decode(id.privateData), reason);
    id.close();
    cq.close();
    pd.close();
  }
  // The next one is welcome.
  const [here, there] = await Promise.all([listener.accept(), connect(listener.address, { pool })]);
  await Promise.all([here.close(), there.close()]);
});

test("what is not the protocol cuts the connection off with PEER_PROTOCOL", async () => {
  await using pool = Pool.create({ bytes: MIB });
  await using listener = await listen(AT, { pool });
  const port = Number(/:(\d+)$/.exec(listener.address)![1]);
  const header = (kind: number, change: (view: DataView) => void = () => {}): Uint8Array => {
    const bytes = new Uint8Array(40), view = new DataView(bytes.buffer);
    bytes[0] = kind;
    change(view);
    return bytes;
  };
  const messages: [string, Uint8Array][] = [
    ["a kind that is none", header(9)],
    ["shorter than a header", new Uint8Array(3)],
    ["a length that is not its own", header(1, (v) => v.setUint32(8, 1000, true))],
    ["more consumed than was sent", header(3, (v) => v.setUint32(4, 7, true))],
    ["a release of nothing", header(3, (v) => v.setUint16(2, 4, true))],
    [
      "pages beyond its pool",
      header(2, (v) => {
        v.setUint16(2, 2, true);
        v.setUint32(8, 8192, true);
        v.setUint32(24, 77, true);
        v.setUint32(28, 2, true);
      }),
    ],
  ];
  for (const [what, bytes] of messages) {
    using id = CmId.create();
    await id.resolveAddr(HOST, port);
    await id.resolveRoute();
    const pd = id.context.allocPd(), cq = id.context.createCq(), mr = pd.allocate(4096);
    const qp = id.createQp(pd, { sendCq: cq });
    mr.bytes.set(bytes);
    const hello = { base: mr.addr, rkey: 0, frames: 1, pageSize: 4096 };
    const privateData = encodeHello({ ...hello, thread: 0, process: new Uint8Array(16) });
    const [channel] = await Promise.all([listener.accept(), id.connect({ privateData })]);
    const received = assert.rejects(channel.recv(), code("PEER_PROTOCOL"), what);
    qp.send(mr.segment(0, bytes.length), { id: 1 });
    await received;
    await assert.rejects(channel.send(new Uint8Array(1)), code("PEER_PROTOCOL"), what);
    await channel.close();
    id.close();
    mr.close();
    cq.close();
    pd.close();
  }
});

apart(
  "a Worker terminated with a channel open: its peer is told, and nothing crashes",
  async () => {
    await using pool = Pool.create({ bytes: MIB });
    await using listener = await listen(AT, { pool });
    for (let i = 0; i < 2; i++) {
      const worker = new Worker(new URL("../programs/terminated.ts", import.meta.url), {
        workerData: listener.address,
      });
      const ready = once(worker, "message");
      const channel = await listener.accept();
      using first = await channel.recv();
      assert.deepEqual([...first!.bytes], [1, 2, 3]);
      await ready;
      const told = assert.rejects(channel.recv(), code("PEER_LOST"));
      await worker.terminate();
      await told;
      await channel.close();
    }
  },
);

apart("an idle connection over rdma:// with a pending receive uses no CPU", async (t) => {
  const child = new Child(t, "loop", ["idle", AT]);
  const { microseconds } = await child.next<{ microseconds: number }>();
  // Under software emulation everything is slow; a loop that polled would still use a million.
  assert.ok(microseconds < 200_000, `${microseconds} us of CPU in a second`);
  assert.equal((await child.exit).code, 0);
});

apart(
  "what is pending over rdma:// keeps the process alive, unless it is unreferenced",
  async (t) => {
    const said = { held: '{"got":5}', open: '"open"', unref: '"unreferenced"', reref: '{"got":6}' };
    // At once, because starting takes the time.
    await Promise.all(
      Object.entries(said).map(async ([name, expected]) => {
        const { code, stdout, stderr } = await new Child(t, "loop", [name, AT]).exit;
        assert.deepEqual([code, stdout.trim()], [0, expected], `${name}: ${stderr}`);
      }),
    );
  },
);

for (const [name, body] of share(started)) test(name, body);
