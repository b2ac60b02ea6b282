import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { type Channel, listen, MoatError, Pool } from "../mod.ts";
import { helper, QUERY } from "../ffi/helper.ts";
import { assertBytes, fill, pattern, sha256 } from "./support/bytes.ts";
import { Child, freshAddress, other } from "./support/child.ts";
import { pair } from "./support/pair.ts";
import { settled } from "./support/settled.ts";
import { http, pipeFile } from "./support/streams.ts";

const KIB = 1 << 10, MIB = 1 << 20;

function fails(code: string): (error: unknown) => boolean {
  return (error) => error instanceof MoatError && error.code === code;
}

async function withPair(
  body: (here: Channel, there: Channel, pool: Pool) => Promise<void>,
  { at = freshAddress(), copyThreshold = 64 * KIB } = {},
): Promise<void> {
  const operations = helper().moat_query(QUERY.opsLive, 0);
  const pool = Pool.create({ bytes: 32 * MIB, copyThreshold });
  const { here, there } = await pair(pool, at);
  await body(here, there, pool);
  await Promise.all([here.close(), there.close()]);
  for (let i = 0; i < 100 && pool.stats().freeFrames < pool.stats().reserveFrames; i++) {
    await new Promise((resolve) => setTimeout(resolve, 10)); // after an abort
  }
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames, "free frames");
  assert.equal(helper().moat_query(QUERY.opsLive, 0), operations, "operations");
  await pool.close();
}

/** Everything until the end of the stream, read in pieces of at most `most` bytes. */
async function readAll(channel: Channel, most = 64 * KIB): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [], p = new Uint8Array(most);
  for (let n; (n = await channel.read(p)) !== null;) chunks.push(p.slice(0, n));
  return Buffer.concat(chunks);
}

async function readFull(channel: Channel, p: Uint8Array): Promise<void> {
  for (let at = 0; at < p.length;) {
    const n = await channel.read(p.subarray(at));
    assert.ok(n !== null, "the stream ended");
    at += n;
  }
}

// ---- reading and writing

for (const bytes of [1, 7, 4096, 100_000]) {
  test(`reads of ${bytes} bytes get what was written and sent, in order, in pieces or not`, () =>
    withPair(async (here, there, pool) => {
      using buf = pool.alloc(70_000);
      fill(buf.bytes, 3);
      const parts = [pattern(1, 5), pattern(2, 16 * KIB + 1), buf.bytes.slice(), pattern(4, 300)];
      const sent = [
        here.write(parts[0]!),
        here.write(parts[1]!),
        here.write(buf.bytes),
        here.send(parts[3]!, { header: pattern(5, 10) }),
        here.closeWrite(),
      ];
      const expected = Buffer.concat(bytes === 1 ? [parts[0]!] : parts);
      if (bytes === 1) { // the rest in larger pieces
        const p = new Uint8Array(1), got: number[] = [];
        for (let i = 0; i < 5; i++) got.push((await there.read(p))!, p[0]!);
        assert.deepEqual(got, [...expected].flatMap((byte) => [1, byte]));
        await readAll(there);
      } else assertBytes(await readAll(there, bytes), expected, "what was read");
      assert.deepEqual(await Promise.all(sent.slice(0, 3)), [5, 16 * KIB + 1, 70_000]);
      await Promise.all(sent);
    }));
}

test("reads that wait get their bytes in the order they were called", () =>
  withPair(async (here, there) => {
    const places = Array.from({ length: 5 }, () => new Uint8Array(3));
    const reads = places.map((p) => there.read(p));
    await here.write(new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]));
    for (let i = 9; i < 12; i++) await here.write(new Uint8Array([i]));
    assert.deepEqual(await Promise.all(reads), [3, 3, 2, 1, 1]);
    assert.deepEqual(places.map((p) => p[0]), [1, 4, 7, 9, 10]);
    const p = new Uint8Array(9);
    assert.equal(await there.read(new Uint8Array(0)), 0);
    assert.equal(await there.read(p), 1);
    assert.equal(p[0], 11);
  }));

test("what was written may be changed at once: memory of the pool, and any other, small and large", () =>
  withPair(async (here, there, pool) => {
    using buf = pool.alloc(MIB);
    const views = [buf.bytes, buf.bytes.subarray(5, 900_000), new Uint8Array(3 * MIB)];
    for (const view of [...views, new Uint8Array(100), buf.bytes.subarray(0, 10)]) {
      fill(view, view.length);
      const written = here.write(view);
      view.fill(0);
      const got = new Uint8Array(view.length);
      await readFull(there, got);
      assertBytes(got, pattern(view.length, view.length), `${view.length} bytes`);
      assert.equal(await written, view.length);
    }
  }));

test("pages are written from where they are, and read with one copy", () =>
  withPair(async (here, there, pool) => {
    using buf = pool.alloc(4 * MIB);
    fill(buf.bytes, 1);
    const warm = here.write(buf.bytes), into = new Uint8Array(MIB);
    for (let at = 0; at < 4 * MIB; at += into.length) await readFull(there, into);
    await warm;
    const before = pool.stats(), written = here.write(buf.bytes);
    for (let at = 0; at < 4 * MIB; at += into.length) {
      await readFull(there, into);
      assertBytes(into, buf.bytes.subarray(at, at + MIB), "what was read");
    }
    await written;
    const after = pool.stats();
    assert.equal(after.bytesCopiedOut - before.bytesCopiedOut, 0);
    assert.equal(after.bytesCopiedIn - before.bytesCopiedIn, 4 * MIB);
  }));

test("bytes are read into memory of the pool, at any offset", () =>
  withPair(async (here, there, pool) => {
    using buf = pool.alloc(200_000);
    for (const [offset, length] of [[0, 100_000], [1, 50], [4095, 70_000]] as const) {
      buf.bytes.fill(0xee);
      const written = here.write(pattern(offset, length));
      await readFull(there, buf.bytes.subarray(offset, offset + length));
      assertBytes(buf.bytes.subarray(offset, offset + length), pattern(offset, length), "bytes");
      assert.ok(buf.bytes.subarray(0, offset).every((byte) => byte === 0xee));
      assert.ok(buf.bytes.subarray(offset + length).every((byte) => byte === 0xee));
      await written;
    }
  }));

test("a pool without a reserve carries streams too", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB, reserve: 0 });
  const { here, there } = await pair(pool);
  const written = here.write(pattern(1, 10_000)), p = new Uint8Array(10_000);
  await readFull(there, p);
  assertBytes(p, pattern(1, 10_000), "bytes");
  await written;
  await Promise.all([here.close(), there.close()]);
});

// ---- the ends

test("a write of nothing sends nothing; an empty message is the end", () =>
  withPair(async (here, there) => {
    assert.equal(await here.write(new Uint8Array(0)), 0);
    await here.write(new Uint8Array([1]));
    await here.send(new Uint8Array(0));
    assert.deepEqual([...await readAll(there)], [1]);
  }));

test("a closed channel is the end of the stream for the peer, after what was written", () =>
  withPair(async (here, there) => {
    const large = here.write(pattern(1, MIB)), closed = large.then(() => here.close());
    assertBytes(await readAll(there), pattern(1, MIB), "what was read");
    await closed;
    assert.equal(await there.read(new Uint8Array(1)), null);
    await assert.rejects(there.write(new Uint8Array(5)), fails("CHANNEL_CLOSED"));
    await assert.rejects(here.read(new Uint8Array(1)), fails("CHANNEL_CLOSED"));
  }));

test("both sides may close with a message half read", () =>
  withPair(async (here, there) => {
    const writes = [here.write(pattern(1, MIB)), there.write(pattern(1, 100_000))];
    const p = new Uint8Array(10), outcomes = Promise.allSettled(writes);
    assert.equal(await here.read(p), 10);
    assert.equal(await there.read(p), 10);
    await Promise.all([here.close(), there.close()]);
    await outcomes;
  }));

test("a read that waits ends when the channel is closed or aborted here, or aborted there", async () => {
  await using pool = Pool.create({ bytes: MIB });
  for (const [end, code] of [["close", "CHANNEL_CLOSED"], ["abort", "ABORTED"]] as const) {
    const { here, there } = await pair(pool);
    const reads = [here.read(new Uint8Array(1)), here.read(new Uint8Array(1))];
    const peer = there.read(new Uint8Array(1));
    const ended = here[end]();
    for (const read of reads) await assert.rejects(read, fails(code));
    if (end === "close") assert.equal(await peer, null);
    else await assert.rejects(peer, fails("PEER_ABORTED"));
    await ended;
    await there.close();
  }
});

test("receiving messages and reading bytes are not mixed", () =>
  withPair(async (here, there, pool) => {
    await here.write(new Uint8Array(10));
    await there.read(new Uint8Array(5));
    for (const recv of [() => there.recv(), () => there.recv(pool.alloc(10))]) {
      await assert.rejects(recv, /recv\(\) on a channel that uses read\(\)/);
    }
    await there.send(new Uint8Array(5));
    await here.recv();
    await assert.rejects(here.read(new Uint8Array(5)), /read\(\) on a channel that uses recv\(\)/);
    await assert.rejects(here.readable.getReader().read(), fails("INVALID_ARGUMENT"));
  }));

test("a snapshot is written, and not read into", () =>
  withPair(async (here, there, pool) => {
    using buf = pool.alloc(100_000);
    fill(buf.bytes, 1);
    using snapshot = buf.snapshot();
    buf.bytes.fill(0);
    const written = here.write(snapshot.bytes), got = new Uint8Array(100_000);
    await readFull(there, got);
    assertBytes(got, pattern(1, 100_000), "the version");
    await written;
    await assert.rejects(there.read(snapshot.bytes), /into a snapshot, which never changes/);
  }));

test("what is no bytes is neither read into nor written", () =>
  withPair(async (here, there, pool) => {
    for (const bad of [undefined, "text", [1], new ArrayBuffer(3), 5]) {
      await assert.rejects(here.write(bad as never), fails("INVALID_ARGUMENT"));
      await assert.rejects(there.read(bad as never), fails("INVALID_ARGUMENT"));
    }
    const buf = pool.alloc(10), { bytes } = buf;
    buf.free();
    await assert.rejects(here.write(bytes), fails("DETACHED_VIEW"));
  }));

// ---- WHATWG streams

const ADDRESSES = { shm: freshAddress, tcp: (): string => "tcp://127.0.0.1:0" };

for (const [name, at] of Object.entries(ADDRESSES)) {
  test(`${name}: a real HTTP/1.1 request and response, by a client and a server made for sockets`, () =>
    http(at()));

  test(`${name}: a file of 64 MiB is piped through a channel into another`, async (t) => {
    const directory = mkdtempSync(join(tmpdir(), "moat-stream-"));
    t.after(() => rmSync(directory, { recursive: true }));
    await pipeFile(at(), directory, 64 * MIB);
  });

  test(`${name}: each side can end its writing first, and goes on reading`, () =>
    withPair(async (here, there) => {
      for (const [from, to] of [[here, there], [there, here]] as const) {
        const data = pattern(1, MIB), written = from.write(data);
        const closed = [from.closeWrite(), from.closeWrite()];
        assertBytes(await readAll(to), data, "what was read");
        await Promise.all([written, ...closed]);
        assert.equal(await to.read(new Uint8Array(1)), null);
        await assert.rejects(from.write(new Uint8Array(1)), fails("CHANNEL_CLOSED"));
      }
    }, { at: at() }));

  test(`${name}: a reader that is slow bounds what the writer is rid of`, () =>
    withPair(async (here, there) => {
      const writer = here.writable.getWriter(), chunk = new Uint8Array(64 * KIB);
      let written = 0, stop = false;
      const writing = (async () => {
        for (let i = 0; i < 400 && !stop; i++) {
          await writer.write(chunk);
          written += chunk.length;
        }
        await writer.close();
      })();
      const most = await settled(() => written), slack = name === "tcp" ? 16 * MIB : 3 * MIB; // of the kernel's buffers
      assert.ok(most < slack, `${most} bytes written, and none read`);
      assert.ok(writer.desiredSize! <= 0);
      const p = new Uint8Array(MIB);
      for (let read = 0; read < 2 * MIB;) read += (await there.read(p))!;
      const more = await settled(() => written) - most;
      assert.ok(more > 0 && more < slack, `${more} bytes more`);
      stop = true;
      await Promise.all([writing, readAll(there)]);
    }, { at: at() }));
}

test("readable and writable are made once, and carry what read() and write() do", () =>
  withPair(async (here, there) => {
    assert.equal(here.writable, here.writable);
    assert.equal(there.readable, there.readable);
    const writer = here.writable.getWriter();
    const chunks = [pattern(1, 10), pattern(2, 100_000), pattern(3, MIB)];
    const written = (async () => {
      for (const chunk of chunks) await writer.write(chunk);
      await writer.write(new Uint16Array([0x0201]));
      await writer.write(new Uint8Array([3]).buffer);
      await writer.close();
    })();
    const got: Uint8Array[] = [];
    for await (const chunk of there.readable) got.push(chunk);
    await written;
    assertBytes(
      Buffer.concat(got),
      Buffer.concat([...chunks, new Uint8Array([1, 2, 3])]),
      "what was read",
    );
  }));

test("a BYOB reader gets the bytes in its own memory", () =>
  withPair(async (here, there) => {
    const data = pattern(1, 100_000), written = here.write(data).then(() => here.closeWrite());
    const reader = there.readable.getReader({ mode: "byob" }), got: Uint8Array[] = [];
    let view = new Uint8Array(4000);
    for (;;) {
      const { value, done } = await reader.read(view);
      if (done) break;
      assert.equal(value.buffer.byteLength, 4000);
      got.push(value.slice());
      view = new Uint8Array(value.buffer);
    }
    await written;
    assertBytes(Buffer.concat(got), data, "what was read");
  }));

test("small writes that nobody reads wait as well", () =>
  withPair(async (here, there) => {
    const writer = here.writable.getWriter(), chunk = new Uint8Array(100);
    let written = 0, stop = false;
    const writing = (async () => {
      while (!stop) {
        await writer.write(chunk);
        written += chunk.length;
      }
      await writer.close();
    })();
    assert.ok(await settled(() => written) > 0, "it waits at some point");
    stop = true;
    await Promise.all([writing, readAll(there)]);
  }));

test("cancelling readable ends the reading, and writing goes on", () =>
  withPair(async (here, there) => {
    const reader = there.readable.getReader(), waiting = reader.read();
    await reader.cancel("enough");
    assert.equal((await waiting).done, true);
    assert.equal(await there.read(new Uint8Array(1)), null);
    await there.write(new Uint8Array([1]));
    await there.closeWrite();
    assert.deepEqual([...await readAll(here)], [1]);
  }));

test("cancelling readable in the middle of a message releases it", () =>
  withPair(async (here, there) => {
    const written = here.write(pattern(1, 256 * KIB));
    assert.equal(await there.read(new Uint8Array(10)), 10);
    await there.readable.cancel();
    assert.equal(await written, 256 * KIB);
  }));

test("aborting writable ends a write that waits for the peer to read", () =>
  withPair(async (here, there) => {
    const writer = here.writable.getWriter(), written = writer.write(new Uint8Array(4 * MIB));
    const outcomes = Promise.allSettled([written, writer.closed]);
    await new Promise((resolve) => setTimeout(resolve, 20));
    await writer.abort(new Error("no more"));
    for (const { status } of await outcomes) assert.equal(status, "rejected");
    await assert.rejects(readAll(there), fails("PEER_ABORTED"));
  }));

test("aborting writable aborts the channel: the peer does not take half for the whole", () =>
  withPair(async (here, there) => {
    const writer = here.writable.getWriter();
    await writer.write(new Uint8Array([1]));
    const p = new Uint8Array(1);
    assert.equal(await there.read(p), 1);
    await writer.abort(new Error("no more"));
    await assert.rejects(there.read(p), fails("PEER_ABORTED"));
    await assert.rejects(there.readable.getReader().read(), fails("PEER_ABORTED"));
    await assert.rejects(here.write(p), fails("ABORTED"));
  }));

test("a peer that is killed: both streams fail with PEER_LOST", async (t) => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  await using listener = await listen(freshAddress(), { pool });
  const child = new Child(t, "peer", [listener.address, "silent", "100"], other());
  const channel = await listener.accept(), writer = channel.writable.getWriter();
  const read = channel.readable.getReader().read();
  const written = (async () => {
    for (;;) await writer.write(new Uint8Array(100_000));
  })();
  await assert.rejects(read, fails("PEER_LOST"));
  await assert.rejects(written, fails("PEER_LOST"));
  await child.exit;
  await channel.close();
});

test("an echo over another process, which ends by itself when the streams have", async (t) => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  await using listener = await listen(freshAddress(), { pool });
  const child = new Child(t, "echo", [listener.address], other());
  const channel = await listener.accept(), data = pattern(1, 20 * MIB);
  const written = channel.write(data).then(() => channel.closeWrite());
  assert.equal(sha256(await readAll(channel, MIB)), sha256(data));
  await written;
  const { code, stderr } = await child.exit;
  assert.equal(code, 0, stderr);
  await channel.close();
});

// ---- memory

interface Runtime {
  gc?: () => void;
  Bun?: { gc(now: boolean): void };
}

async function heapUsed(): Promise<number> {
  const { gc, Bun } = globalThis as Runtime;
  for (let i = 0; i < 3; i++) {
    gc?.();
    Bun?.gc(true);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  if (!Bun) return process.memoryUsage().heapUsed;
  const { heapStats } = await import(`bun:${"jsc"}`);
  return heapStats().heapSize;
}

// Half of them each way. The heap is compared with what it was after a tenth of the rounds.
const ROUNDS = 500_000;

test("a million small messages leave nothing on the heap", (t) =>
  withPair(async (here, there, pool) => {
    const ping = new Uint8Array(64).fill(1), pong = new Uint8Array(64), back = new Uint8Array(64);
    const counts = (): unknown => [
      helper().moat_query(QUERY.opsLive, 0),
      pool.stats().freeFrames,
      pool.stats().bytesAvailable,
    ];
    let first = 0, before: unknown;
    for (let i = 1; i <= ROUNDS; i++) {
      if (i % 2 === 0) { // there before it is asked for
        await here.write(ping);
        assert.equal(await there.read(pong), 64);
      } else {
        const read = there.read(pong);
        await here.write(ping);
        assert.equal(await read, 64);
      }
      await there.write(pong);
      assert.equal(await here.read(back), 64);
      if (i === ROUNDS / 10) {
        first = await heapUsed();
        before = counts();
      }
    }
    const last = await heapUsed();
    t.diagnostic(`${first} bytes after a tenth, ${last} at the end`);
    assert.ok(last - first < 256 * KIB, `the heap has grown by ${last - first} bytes`);
    assert.deepEqual(counts(), before);
  }));
