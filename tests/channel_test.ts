import assert from "node:assert/strict";
import { test } from "node:test";
import { type Channel, connect, listen, type Message, MoatError, Pool } from "../mod.ts";
import { freshAddress } from "./support/child.ts";

interface Pair {
  pool: Pool;
  a: Channel;
  b: Channel;
  end(): Promise<void>;
}

async function pair(bytes = 16 << 20): Promise<Pair> {
  const pool = Pool.create({ bytes }), address = freshAddress();
  const listener = await listen(address, { pool });
  const [a, b] = await Promise.all([connect(address, { pool }), listener.accept()]);
  await listener.close();
  return {
    pool,
    a,
    b,
    async end(): Promise<void> {
      await Promise.all([a.close(), b.close()]);
      // After an abort the frames come back when the peer's goodbye has been heard.
      for (let i = 0; i < 100 && pool.stats().freeFrames < pool.stats().reserveFrames; i++) {
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      const { freeFrames, reserveFrames } = pool.stats();
      assert.equal(freeFrames, reserveFrames);
      await pool.close();
    },
  };
}

function fails(code: string): (error: unknown) => boolean {
  return (error) => error instanceof MoatError && error.code === code;
}

test("the memory of a message has no properties of its own", async () => {
  const { pool, a, b, end } = await pair(), buf = pool.alloc(1 << 20);
  const sent = a.send(buf);
  {
    using message = await b.recv();
    assert.equal(message!.copied, false);
    assert.deepEqual(Reflect.ownKeys(message!.bytes.buffer), []);
    assert.deepEqual(message!.bytes.buffer, new ArrayBuffer(1 << 20));
  }
  await sent;
  buf.free();
  await end();
});

test("messages of 0 bytes to 40 MiB arrive whole and in order, from the pool and from elsewhere", async () => {
  const { pool, a, b, end } = await pair(96 << 20);
  const sizes = [0, 1, 100, 4096, 16384, 16385, 70_001, 1 << 20, 40 << 20];
  for (const size of sizes) {
    const data = new Uint8Array(size).map((_, i) => i * 31 + size);
    const buf = size > 0 ? pool.alloc(size) : undefined;
    buf?.bytes.set(data);
    const sends = [a.send(data), ...(buf ? [a.send(buf)] : [])];
    for (const _ of sends) {
      using message = await b.recv();
      assert.equal(message!.byteLength, size);
      assert.deepEqual(message!.bytes, data);
    }
    for (const result of await Promise.all(sends)) assert.equal(result.bytes, size);
    buf?.free();
  }
  await end();
});

test("a message in more pieces than a descriptor or a page of descriptors has room for", async () => {
  const { pool, a, b, end } = await pair(32 << 20);
  const buf = pool.alloc(4096 * 1500);
  buf.bytes.fill(1);
  // Every other page becomes a private one elsewhere while the first send is in flight.
  const first = a.send(buf, { guard: "cow" });
  for (let page = 0; page < 1500; page += 2) buf.bytes[page * 4096] = 2;
  (await b.recv())!.release();
  await first;
  const expected = buf.bytes.slice();
  const second = a.send(buf, { guard: "cow" });
  buf.bytes.fill(3);
  using message = await b.recv();
  assert.deepEqual(message!.bytes, expected);
  message!.release();
  await second;
  await end();
});

test("a scattered message is read in place through an alias, and the alias is given back", async () => {
  const { pool, a, b, end } = await pair();
  const buf = pool.alloc(1 << 20);
  for (let round = 0; round < 50; round++) {
    buf.bytes.fill(round);
    const sent = a.send(buf, { guard: "cow" });
    buf.bytes[123_456] = 255;
    using message = await b.recv();
    assert.equal(message!.copied, false);
    assert.ok(message!.bytes.every((byte) => byte === round));
    message!.bytes[0] = 99; // a private page of this message
    assert.equal(message!.bytes[0], 99);
    message!.release();
    await sent;
    assert.equal(buf.bytes[0], round);
  }
  assert.equal(pool.stats().privateMessagePages, 50);
  await end();
});

test("two messages of the same pages are apart: a write to one is not seen in the other", async () => {
  const { pool, a, b, end } = await pair();
  const buf = pool.alloc(100_000);
  buf.bytes.fill(5);
  const sends = [a.send(buf, { guard: "cow" }), a.send(buf, { guard: "cow" })];
  using one = await b.recv();
  using two = await b.recv();
  one!.bytes.fill(6);
  assert.ok(two!.bytes.every((byte) => byte === 5));
  two!.bytes[7] = 8;
  assert.equal(one!.bytes[7], 6);
  assert.equal(buf.bytes[7], 5);
  one!.release();
  two!.release();
  await Promise.all(sends);
  const again = a.send(buf, { guard: "cow" });
  using three = await b.recv();
  assert.ok(three!.bytes.every((byte) => byte === 5)); // nothing of the private pages is left
  three!.release();
  await again;
  await end();
});

test("release() detaches the view and completes the send; a dropped message is released by itself", async () => {
  const { pool, a, b, end } = await pair();
  const buf = pool.alloc(100_000);
  let done = false;
  const sent = a.send(buf, { guard: "cow" }).then(() => done = true);
  const message = await b.recv();
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(done, false);
  const view = message!.bytes;
  message!.release();
  message!.release();
  assert.equal(view.length, 0);
  await sent;
  const dropped = a.send(buf, { guard: "cow" });
  await b.recv();
  const collect = (globalThis as { gc?: () => void }).gc ??
    (() => (globalThis as unknown as { Bun: { gc(now: boolean): void } }).Bun.gc(true));
  const timer = setInterval(collect, 10);
  await dropped;
  clearInterval(timer);
  await end();
});

test("for await receives until the peer closes, and releases what a block used", async () => {
  const { pool, a, b, end } = await pair();
  const buf = pool.alloc(50_000);
  const received = (async () => {
    const lengths: number[] = [];
    for await (using message of b) lengths.push(message.byteLength);
    return lengths;
  })();
  const sends = [a.send(buf, { guard: "cow" }), a.send(new Uint8Array(3)), a.send(buf)];
  await Promise.all(sends);
  await a.close();
  assert.deepEqual(await received, [50_000, 3, 50_000]);
  assert.equal(await b.recv(), null);
  await end();
});

test("close() drains: what was sent before it arrives, also what is received after it", async () => {
  const { pool, a, b, end } = await pair();
  const buf = pool.alloc(200_000);
  buf.bytes.fill(4);
  const sends = Array.from({ length: 30 }, () => a.send(buf, { guard: "cow" }));
  const closed = a.close();
  await assert.rejects(a.send(buf), fails("CHANNEL_CLOSED"));
  let count = 0;
  for await (using message of b) {
    assert.ok(message.bytes.every((byte) => byte === 4));
    count++;
  }
  await closed;
  await Promise.all(sends);
  assert.equal(count, 30);
  await end();
});

test("close() ends waiting receives, and a closed peer ends sends", async () => {
  const { pool, a, b, end } = await pair();
  const into = pool.alloc(5000);
  into.bytes.fill(1);
  const waiting = [assert.rejects(a.recv(), fails("CHANNEL_CLOSED"))];
  waiting.push(assert.rejects(a.recv(into), fails("CHANNEL_CLOSED")));
  await a.close();
  await Promise.all(waiting);
  assert.equal(into.bytes[0], 1);
  assert.equal(await b.recv(into), null);
  assert.equal(into.bytes[0], 1);
  await assert.rejects(b.send(new Uint8Array(10)), fails("CHANNEL_CLOSED"));
  await assert.rejects(b.send(into, { guard: "cow" }), fails("CHANNEL_CLOSED"));
  await end();
});

test("abort() rejects everything at once, and the guard stays until the peer has let go", async () => {
  const { pool, a, b, end } = await pair();
  const buf = pool.alloc(100_000);
  buf.bytes.fill(1);
  const reason = new Error("enough");
  const sent = a.send(buf, { guard: "cow" });
  const received = a.recv();
  const message: Message | null = await b.recv();
  a.abort(reason);
  for (const promise of [sent, received]) {
    await assert.rejects(
      promise,
      (error) => fails("ABORTED")(error) && (error as Error).cause === reason,
    );
  }
  buf.bytes.fill(2);
  assert.ok(message!.bytes.every((byte) => byte === 1));
  assert.ok(pool.stats().privatePages > 0);
  message!.release();
  await assert.rejects(b.recv(), fails("PEER_ABORTED"));
  await end();
});

test("an AbortSignal stops the waiting of a send, not its guard", async () => {
  const { pool, a, b, end } = await pair();
  const buf = pool.alloc(100_000);
  buf.bytes.fill(1);
  const controller = new AbortController();
  const sent = a.send(buf, { guard: "cow", signal: controller.signal });
  controller.abort(new Error("no longer"));
  await assert.rejects(sent, /no longer/);
  buf.bytes.fill(2);
  using message = await b.recv();
  assert.ok(message!.bytes.every((byte) => byte === 1));
  message!.release();
  await assert.rejects(a.send(buf, { signal: controller.signal }), /no longer/);
  await end();
});

test("an AbortSignal takes a receive back: the buffer opens, and the message goes to the next", async () => {
  const { pool, a, b, end } = await pair();
  const into = pool.alloc(5000), controller = new AbortController();
  into.bytes.fill(1);
  const first = b.recv(into, { signal: controller.signal });
  controller.abort(new Error("changed my mind"));
  await assert.rejects(first, /changed my mind/);
  assert.equal(into.bytes[0], 1);
  assert.equal(pool.stats().waits.count, 0);
  await a.send(new Uint8Array([9]));
  using message = await b.recv();
  assert.deepEqual([...message!.bytes], [9]);
  await end();
});

test("close({ signal }) gives up on a peer that does not let go", async () => {
  const { pool, a, b, end } = await pair();
  const buf = pool.alloc(100_000);
  const sent = assert.rejects(a.send(buf, { guard: "cow" }), fails("ABORTED"));
  const message = await b.recv();
  await a.close({ signal: AbortSignal.timeout(30) });
  await sent;
  assert.equal(a.closed, true);
  message!.release();
  await end();
});

test("spin finds a message without going to sleep, and gives up in time", async () => {
  const pool = Pool.create({ bytes: 1 << 20 }), address = freshAddress();
  const listener = await listen(address, { pool, spin: 100 });
  const [a, b] = await Promise.all([connect(address, { pool }), listener.accept()]);
  await a.send(new Uint8Array([1]));
  assert.deepEqual([...(await b.recv())!.bytes], [1]);
  const late = b.recv();
  await a.send(new Uint8Array([2]));
  assert.deepEqual([...(await late)!.bytes], [2]);
  await Promise.all([a.close(), b.close(), listener.close()]);
  await pool.close();
});

test("a listener: accepts in order, refuses the address twice, ends accept() when closed", async () => {
  const pool = Pool.create({ bytes: 1 << 20 }), address = freshAddress();
  const listener = await listen(address, { pool });
  assert.equal(listener.address, address);
  await assert.rejects(listen(address, { pool }), fails("ADDRESS_IN_USE"));
  const channels: Channel[] = [];
  for (let i = 0; i < 3; i++) {
    const channel = await connect(address, { pool });
    await channel.send(new Uint8Array([i]));
    channels.push(channel);
  }
  let i = 0;
  for await (const channel of listener) {
    assert.deepEqual([...(await channel.recv())!.bytes], [i++]);
    channels.push(channel);
    if (i === 3) break;
  }
  const controller = new AbortController();
  const aborted = listener.accept({ signal: controller.signal });
  controller.abort(new Error("not now"));
  await assert.rejects(aborted, /not now/);
  const pending = assert.rejects(listener.accept(), fails("CHANNEL_CLOSED"));
  await listener.close();
  await pending;
  await assert.rejects(connect(address, { pool }), fails("CONNECTION_REFUSED"));
  await Promise.all(channels.map((channel) => channel.close()));
  await pool.close();
});

test("a socket left behind by a dead listener does not stand in the way", async () => {
  const { libc, C, cString } = await import("../ffi/libc.ts");
  const { listenSocket, socketPath } = await import("../lib/shm/socket.ts");
  const address = freshAddress(), path = socketPath(address.slice("shm://".length));
  libc().close(listenSocket(path, false)); // closed, but not unlinked: what a crash leaves
  assert.equal(libc().chmod(cString(path), 0o600), 0);
  assert.ok(C.AF_UNIX);
  const pool = Pool.create({ bytes: 1 << 20 });
  const listener = await listen(address, { pool });
  const channel = await connect(address, { pool });
  await channel.close();
  await listener.close();
  await pool.close();
});

test("addresses and options that cannot be are refused with what to do", async () => {
  const pool = Pool.create({ bytes: 1 << 20 });
  for (
    const address of [
      ...["", "shm:/x", "shm://", "shm://a b", "shm://../x", "ftp://x", 7],
      ...["rdma://", "rdma://h", "rdma://h:", "rdma://h:65536", "rdma://a b:1", "rdma://fe80::1:1"],
    ]
  ) {
    await assert.rejects(connect(address as string, { pool }), fails("INVALID_ARGUMENT"));
    await assert.rejects(listen(address as string, { pool }), fails("INVALID_ARGUMENT"));
  }
  for (
    const options of [
      ...[{ timeout: 0 }, { timeout: NaN }, { timeout: "1" as unknown as number }],
      ...[{ spin: -1 }, { pool: {} as Pool }, { rawMessageBytes: 0 }],
      ...[{ protocol: "raw" as const }, { protocol: "other" as "raw" }], // the first is for rdma://
    ]
  ) {
    await assert.rejects(connect("shm://x", { pool, ...options }), fails("INVALID_ARGUMENT"));
  }
  await assert.rejects(connect("shm://nobody-is-here", { pool }), fails("CONNECTION_REFUSED"));
  await pool.close();
  await assert.rejects(connect("shm://x", { pool }), fails("POOL_CLOSED"));
});

test("a channel without a pool of its own gets one, closed with it", async () => {
  const address = freshAddress();
  const listener = await listen(address);
  const [a, b] = await Promise.all([connect(address), listener.accept()]);
  assert.notEqual(a.pool, b.pool);
  const buf = a.pool.alloc(100_000);
  buf.bytes.fill(3);
  const sent = a.send(buf, { guard: "move" });
  assert.equal(buf.bytes.length, 0);
  using message = await b.recv();
  assert.ok(message!.bytes.every((byte) => byte === 3));
  message!.release();
  await sent;
  await a.close();
  await b.close();
  await listener.close();
  assert.throws(() => a.pool.alloc(1), fails("POOL_CLOSED"));
});

test("onFault is told what was touched, by what, during what, and how it ended", async () => {
  const pool = Pool.create({ bytes: 4 << 20, trace: true }), address = freshAddress();
  const listener = await listen(address, { pool });
  const [a, b] = await Promise.all([connect(address, { pool }), listener.accept()]);
  const buf = pool.alloc(100_000), faults: import("../mod.ts").Fault[] = [];
  pool.onFault = (fault) => faults.push(fault);
  const sent = a.send(buf, { guard: "cow" });
  buf.bytes[5000] = 1;
  (await b.recv())!.release();
  await sent;
  const fault = faults[0]!;
  assert.equal(fault.offset, 5000);
  assert.equal(fault.bufferPage, buf.page);
  assert.equal(fault.access, "write");
  assert.equal(fault.operation, "send");
  assert.equal(fault.outcome, "private");
  assert.match(fault.stack!, /channel_test/);
  assert.ok(fault.nanoseconds > 0 && fault.thread > 0);
  await Promise.all([a.close(), b.close(), listener.close()]);
  await pool.close();
});
