import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Channel,
  type Data,
  type Guard,
  MoatError,
  Pool,
  type PoolOptions,
  type PoolStats,
} from "../mod.ts";
import { helper, QUERY } from "../ffi/helper.ts";
import { assertBytes, fill, pattern } from "./support/bytes.ts";
import { freshAddress } from "./support/child.ts";
import { pair } from "./support/pair.ts";

const KIB = 1 << 10, MIB = 1 << 20;
const HEADERS = [1, 24, 1024], SIZES = [0, 1, 4095, 4096, 17 * KIB, MIB];

function fails(code: string): (error: unknown) => boolean {
  return (error) => error instanceof MoatError && error.code === code;
}

type Body = (here: Channel, there: Channel, pool: Pool) => Promise<void>;

// After the end every frame is free, and no operation is left.
async function withPair(
  body: Body,
  at: string = freshAddress(),
  options: PoolOptions = { bytes: 16 * MIB },
): Promise<void> {
  const operations = helper().moat_query(QUERY.opsLive, 0);
  const pool = Pool.create(options), { here, there } = await pair(pool, at);
  await body(here, there, pool);
  await Promise.all([here.close(), there.close()]);
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames, "free frames");
  assert.equal(helper().moat_query(QUERY.opsLive, 0), operations, "operations");
  await pool.close();
}

/** The same over every transport that needs no device. */
function everywhere(name: string, body: Body, options?: PoolOptions): void {
  for (const [transport, at] of [["shm", freshAddress()], ["tcp", "tcp://127.0.0.1:0"]] as const) {
    test(`${transport}: ${name}`, () => withPair(body, at, options));
  }
}

function copied(pool: Pool, since: PoolStats): { out: number; in: number } {
  const now = pool.stats();
  return {
    out: now.bytesCopiedOut - since.bytesCopiedOut,
    in: now.bytesCopiedIn - since.bytesCopiedIn,
  };
}

for (const length of HEADERS) {
  everywhere(
    `a header of ${length} bytes arrives with messages of every size, asked for before and after`,
    async (here, there, pool) => {
      for (const [i, size] of SIZES.entries()) {
        for (const early of [true, false]) {
          const header = pattern(i + 100, length), data = pattern(i, size);
          const asked = early ? there.recv() : undefined;
          const sent = here.send(data, { header });
          header.fill(0);
          data.fill(0);
          using message = await (asked ?? there.recv());
          assertBytes(message!.bytes, pattern(i, size), `${size} bytes`);
          assertBytes(message!.header, pattern(i + 100, length), `header of ${size} bytes`);
          message!.release();
          assertBytes(message!.header, pattern(i + 100, length), "header after the release");
          assert.equal((await sent).bytes, size);
        }
        if (size === 0) continue;
        using into = pool.alloc(size);
        for (const early of [true, false]) {
          const asked = early ? there.recv(into) : undefined;
          const sent = here.send(pattern(i, size), { header: pattern(i + 200, length) });
          const got = await (asked ?? there.recv(into));
          assert.equal(got!.bytes, size);
          assertBytes(got!.header, pattern(i + 200, length), `header of ${size} bytes`);
          assertBytes(into.bytes, pattern(i, size), `${size} bytes`);
          await sent;
        }
      }
    },
  );
}

test("data with a header stays in its pages: sent from them, read in them, no byte of it copied", () =>
  withPair(async (here, there, pool) => {
    using buf = pool.alloc(MIB);
    fill(buf.bytes, 1);
    const before = pool.stats();
    const sent = here.send(buf, { guard: "cow", header: pattern(2, 24) });
    buf.bytes.fill(0); // in private pages
    using message = await there.recv();
    assert.equal(message!.copied, false);
    assertBytes(message!.bytes, pattern(1, MIB), "data");
    assertBytes(message!.header, pattern(2, 24), "header");
    message!.release();
    assert.deepEqual(await sent, { bytes: MIB, guard: "cow", zeroCopy: true });
    assert.deepEqual(copied(pool, before), { out: 0, in: 0 });
    assert.equal(pool.stats().privatePages > before.privatePages, true);
  }));

test("a page with a header is sent from its place, also where it is small", () =>
  withPair(async (here, there, pool) => {
    using buf = pool.alloc(4096);
    fill(buf.bytes, 1);
    const before = pool.stats();
    const sent = here.send(buf, { guard: "cow", header: pattern(2, 1024) });
    using message = await there.recv();
    assert.equal(message!.copied, false);
    assert.deepEqual(copied(pool, before), { out: 0, in: 0 });
    message!.release();
    assert.equal((await sent).zeroCopy, true);
  }));

for (const guard of ["cow", "wait", "copy"] as Guard[]) {
  everywhere(
    `what is sent with a header under "${guard}" is what the buffer held at the call`,
    async (here, there, pool) => {
      using buf = pool.alloc(256 * KIB);
      fill(buf.bytes, 7);
      const received = (async () => {
        using message = await there.recv();
        const { bytes, header } = message!;
        assertBytes(bytes, pattern(7, 256 * KIB), "data");
        assertBytes(header, pattern(8, 100), "header");
      })();
      const header = pattern(8, 100), sent = here.send(buf, { guard, header });
      header.fill(1);
      if (guard !== "wait") buf.bytes.fill(1);
      await Promise.all([received, sent]);
    },
  );
}

everywhere("a buffer is given away with a header", async (here, there, pool) => {
  const buf = pool.alloc(64 * KIB), view = buf.bytes;
  fill(view, 3);
  const sent = here.send(buf, { guard: "move", header: new Float64Array([1.5]) });
  assert.equal(view.byteLength, 0);
  using message = await there.recv();
  assertBytes(message!.bytes, pattern(3, 64 * KIB), "data");
  assert.equal(new Float64Array(message!.header.buffer)[0], 1.5);
  message!.release();
  await sent;
});

everywhere("a snapshot is sent with one header after the other", async (here, there, pool) => {
  using buf = pool.alloc(64 * KIB);
  fill(buf.bytes, 3);
  using snapshot = buf.snapshot();
  buf.bytes.fill(0);
  const flying = [1, 2, 3].map((i) => here.send(snapshot, { header: new Uint8Array([i]) }));
  for (const i of [1, 2, 3]) {
    using message = await there.recv();
    assert.deepEqual([...message!.header], [i]);
    assertBytes(message!.bytes, pattern(3, 64 * KIB), "data");
  }
  await Promise.all(flying);
});

everywhere(
  "a header is any typed array, and pool memory too; an empty one is none",
  async (here, there, pool) => {
    using buf = pool.alloc(100);
    fill(buf.bytes, 1);
    const views = [buf.bytes.subarray(3, 50), new DataView(buf.bytes.buffer, 3, 47)];
    for (const header of views) {
      await here.send(new Uint8Array(5), { header });
      using message = await there.recv();
      assertBytes(message!.header, pattern(1, 100).subarray(3, 50), "header");
    }
    await here.send(new Uint8Array(5), { header: new Uint8Array(0) });
    await here.send(new Uint8Array(5));
    for (const _ of [1, 2]) assert.equal((await there.recv())!.header.length, 0);
  },
);

everywhere(
  "a header that is too large, or none, is refused, and nothing is sent",
  async (here, there) => {
    const data = new Uint8Array(10), bad = [new Uint8Array(1025), "text", 5, null, [1, 2]];
    for (const header of bad) {
      const options = { header } as { header: Uint8Array };
      await assert.rejects(here.send(data, options), fails("INVALID_ARGUMENT"));
    }
    await here.send(data, { header: new Uint8Array(1024) });
    assert.equal((await there.recv())!.header.length, 1024);
  },
);

// Everything that can be in the ring: messages with and without, small and in pages.
function mixed(pool: Pool, i: number): { data: Data; bytes: number; header: number } {
  const bytes = [0, 9, 3000, 16 * KIB, 20_000][i % 5]!, header = [0, 1, 24, 1024][i % 4]!;
  if (i % 3 !== 0 || bytes === 0) return { data: pattern(i, bytes), bytes, header };
  const data = pool.alloc(bytes);
  fill(data.bytes, i);
  return { data, bytes, header };
}

everywhere(
  "a thousand of them in flight arrive in order, whatever the ring has room for",
  async (here, there, pool) => {
    const flying: Promise<unknown>[] = [], lengths: [number, number][] = [];
    for (let i = 0; i < 1000; i++) {
      const { data, bytes, header } = mixed(pool, i);
      flying.push(here.send(data, header > 0 ? { header: pattern(i + 1, header) } : {}));
      if ("free" in data) data.free();
      lengths.push([bytes, header]);
    }
    for (const [i, [bytes, header]] of lengths.entries()) {
      using message = await there.recv();
      assertBytes(message!.bytes, pattern(i, bytes), `message ${i}`);
      assertBytes(message!.header, pattern(i + 1, header), `header ${i}`);
    }
    await Promise.all(flying);
  },
  { bytes: 32 * MIB, reserve: 4 * MIB },
);

everywhere("a thousand receives that wait get their headers", async (here, there, pool) => {
  using into = pool.alloc(1000 * 16);
  const waiting = Array.from(
    { length: 1000 },
    (_, i) => i % 2 ? there.recv(into.bytes.subarray(i * 16, i * 16 + 16)) : there.recv(),
  );
  const flying: Promise<unknown>[] = [];
  for (let i = 0; i < 1000; i++) {
    flying.push(here.send(pattern(i, 16), { header: pattern(i, i % 7 * 10) }));
  }
  for (const [i, got] of (await Promise.all(waiting)).entries()) {
    assertBytes(got!.header, pattern(i, i % 7 * 10), `header ${i}`);
  }
  await Promise.all(flying);
});

everywhere(
  "without a free frame headers are sent and received one after the other",
  async (here, there, pool) => {
    using buf = pool.alloc(4096);
    fill(buf.bytes, 1);
    const waiting = Array.from({ length: 50 }, () => there.recv());
    const flying = Array.from(
      { length: 50 },
      (_, i) => here.send(buf, { guard: "cow", header: pattern(i, 40) }),
    );
    for (const [i, promise] of waiting.entries()) {
      using message = await promise;
      assertBytes(message!.header, pattern(i, 40), `header ${i}`);
      assertBytes(message!.bytes, pattern(1, 4096), `message ${i}`);
    }
    await Promise.all(flying);
  },
  { bytes: MIB, reserve: 0 },
);

everywhere(
  "a message too large for the buffer keeps its header for the next receive",
  async (here, there, pool) => {
    using small = pool.alloc(10);
    const sent = here.send(pattern(1, 40_000), { header: pattern(2, 30) });
    await assert.rejects(there.recv(small), fails("MESSAGE_TOO_LARGE"));
    using message = await there.recv();
    assertBytes(message!.header, pattern(2, 30), "header");
    message!.release();
    await sent;
  },
);

test("an abort with headers queued, in flight and parked leaves nothing", async () => {
  const operations = helper().moat_query(QUERY.opsLive, 0);
  const pool = Pool.create({ bytes: 4 * MIB });
  const { here, there } = await pair(pool);
  const waiting = Array.from({ length: 20 }, () => there.recv());
  const flying = Array.from(
    { length: 1500 },
    (_, i) => here.send(pattern(i, 5000), { header: pattern(i, 24) }),
  );
  await waiting[3];
  here.abort();
  there.abort();
  await Promise.allSettled([...waiting, ...flying]);
  for (let i = 0; i < 100 && pool.stats().freeFrames < pool.stats().reserveFrames; i++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.equal(pool.stats().freeFrames, pool.stats().reserveFrames);
  await pool.close();
  assert.equal(helper().moat_query(QUERY.opsLive, 0), operations);
});
