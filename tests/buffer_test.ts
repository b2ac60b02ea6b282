import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { closeSync, openSync, readSync } from "node:fs";
import { test } from "node:test";
import {
  connect,
  type ErrorCode,
  type Guard,
  listen,
  MoatError,
  Pool,
  type ReceiveGuard,
  type SharedHandle,
  viewShared,
} from "../mod.ts";
import { helper, QUERY } from "../ffi/helper.ts";
import { assertBytes, pattern } from "./support/bytes.ts";
import { Child, freshAddress } from "./support/child.ts";
import { collect, collected } from "./support/garbage.ts";
import { type Pair, pair } from "./support/pair.ts";

const KIB = 1 << 10, MIB = 1 << 20;

// An error of ours, which names the value and says what to do.
function refusal(code: ErrorCode, ...names: (string | RegExp)[]): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof MoatError, `not a MoatError: ${error}`);
    assert.equal(error.code, code, error.message);
    for (const name of names) {
      assert.ok(
        typeof name === "string" ? error.message.includes(name) : name.test(error.message),
        `${JSON.stringify(error.message)} does not name ${name}`,
      );
    }
    assert.ok(error.hint !== undefined && error.message.endsWith(error.hint), "it has a hint");
    return true;
  };
}

// What a pool has given out.
function held(pool: Pool): Record<string, number> {
  const { bytesAvailable, freeFrames } = pool.stats();
  return { bytesAvailable, freeFrames, operations: helper().moat_query(QUERY.opsLive, 0) };
}

// Runs what is to be refused with a pool and a channel, and checks that nothing of them is held afterwards.
async function refused(run: (pool: Pool, ends: Pair) => Promise<unknown>): Promise<void> {
  await using pool = Pool.create({ bytes: MIB });
  using ends = await pair(pool);
  const before = held(pool);
  await run(pool, ends);
  assert.deepEqual(held(pool), before);
}

// ---- sizes

const WRONG_SIZES: [unknown, string][] = [
  [0, "0"],
  [-1, "-1"],
  [NaN, "NaN"],
  [Infinity, "Infinity"],
  [1.5, "1.5"],
  ["4096", '"4096"'],
  [4096n, "4096"],
  [null, "null"],
  [undefined, "undefined"],
  [{}, "Object"],
];
for (const [size, name] of WRONG_SIZES) {
  test(`alloc of ${typeof size} ${name} is refused`, async () => {
    await using pool = Pool.create({ bytes: MIB });
    const before = held(pool);
    assert.throws(
      () => pool.alloc(size as number),
      refusal("INVALID_ARGUMENT", `alloc of ${name} bytes`, "whole number"),
    );
    assert.deepEqual(held(pool), before);
  });
}

test("alloc of more than the pool has is refused with both sizes", async () => {
  await using pool = Pool.create({ bytes: MIB });
  assert.throws(
    () => pool.alloc(MIB + 1),
    refusal("INVALID_ARGUMENT", "1048577", "1048576", "pool larger"),
  );
});

test("alloc in an exhausted pool is refused with what is free", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using _most = pool.alloc(MIB - 3 * 4096);
  const before = held(pool);
  assert.throws(
    () => pool.alloc(4 * 4096),
    refusal("POOL_EXHAUSTED", "16384", "12288", "1048576", "free buffers"),
  );
  assert.deepEqual(held(pool), before);
});

test("alloc in a pool free only in pieces is refused with that reason", async () => {
  await using pool = Pool.create({ bytes: 4 * 4096 });
  const [a, _b, c, _d] = [1, 2, 3, 4].map(() => pool.alloc(4096));
  a!.free();
  c!.free();
  assert.throws(() => pool.alloc(8192), refusal("POOL_EXHAUSTED", "not in one piece"));
});

test("after the refusals of an exhausted pool a buffer freed can be allocated again", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const all = pool.alloc(MIB);
  assert.throws(() => pool.alloc(1), refusal("POOL_EXHAUSTED"));
  all.free();
  using again = pool.alloc(MIB);
  assert.equal(again.byteLength, MIB);
});

const WRONG_OPTIONS: [Record<string, unknown>, string][] = [
  [{ bytes: 0 }, "bytes of 0"],
  [{ bytes: -4096 }, "bytes of -4096"],
  [{ bytes: NaN }, "bytes of NaN"],
  [{ bytes: "1 GiB" }, 'bytes of "1 GiB"'],
  [{ reserve: -1 }, "reserve of -1"],
  [{ reserve: 0.5 }, "reserve of 0.5"],
  [{ copyThreshold: -1 }, "copyThreshold of -1"],
  [{ guardTimeout: -1 }, "guardTimeout of -1"],
  [{ guardTimeout: NaN }, "guardTimeout of NaN"],
  [{ guardTimeout: "10 s" }, 'guardTimeout of "10 s"'],
  [{ guardTimeout: 86_400_001 }, "guardTimeout of 86400001"],
];
for (const [options, name] of WRONG_OPTIONS) {
  test(`a pool with ${name} is refused`, () => {
    assert.throws(() => Pool.create(options), refusal("INVALID_ARGUMENT", name, "pass"));
  });
}

// ---- buffers that cannot be used

test("sending a freed buffer is refused", () =>
  refused(async (pool, { here }) => {
    const buf = pool.alloc(MIB / 2);
    buf.free();
    await assert.rejects(here.send(buf), refusal("BUFFER_FREED", "pool.alloc()"));
  }));

test("receiving into a freed buffer is refused", () =>
  refused(async (pool, { here }) => {
    const buf = pool.alloc(4096);
    buf.free();
    await assert.rejects(here.recv(buf), refusal("BUFFER_FREED", "pool.alloc()"));
  }));

test("sharing a freed buffer is refused", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const buf = pool.alloc(4096);
  buf.free();
  assert.throws(() => buf.share(), refusal("BUFFER_FREED"));
});

test("freeing a buffer twice is refused, and gives its pages back once", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const buf = pool.alloc(4096);
  buf.free();
  assert.throws(() => buf.free(), refusal("BUFFER_FREED", "free()", "once"));
  assert.equal(pool.stats().bytesAvailable, MIB);
});

test("freeing a buffer that was moved is refused", () =>
  refused(async (pool, { here, there }) => {
    const buf = pool.alloc(64 * KIB);
    const sent = here.send(buf, { guard: "move" });
    assert.throws(() => buf.free(), refusal("BUFFER_FREED", '"move"'));
    (await there.recv())!.release();
    await sent;
  }));

test("sending a view of a freed buffer is refused", () =>
  refused(async (pool, { here }) => {
    const buf = pool.alloc(4096), view = buf.bytes.subarray(10);
    buf.free();
    await assert.rejects(here.send(view), refusal("DETACHED_VIEW", "send", "buffer.bytes"));
  }));

test("receiving into a view of a freed buffer is refused", () =>
  refused(async (pool, { here }) => {
    const buf = pool.alloc(4096), view = buf.bytes.subarray(10);
    buf.free();
    await assert.rejects(here.recv(view), refusal("DETACHED_VIEW", "recv", "buffer.bytes"));
  }));

test("sending a buffer whose bytes were transferred away is refused", () =>
  refused(async (pool, { here }) => {
    using buf = pool.alloc(4096);
    buf.bytes.buffer.transfer();
    await assert.rejects(here.send(buf), refusal("DETACHED_VIEW", "send", "transferred"));
  }));

test("receiving into a buffer whose bytes were transferred away is refused", () =>
  refused(async (pool, { here }) => {
    using buf = pool.alloc(4096);
    structuredClone(buf.bytes.buffer, { transfer: [buf.bytes.buffer] });
    await assert.rejects(here.recv(buf), refusal("DETACHED_VIEW", "recv", "transferred"));
  }));

test("sending a detached view of ordinary memory is refused", () =>
  refused(async (_pool, { here }) => {
    const view = new Uint8Array(100);
    view.buffer.transfer();
    await assert.rejects(here.send(view), refusal("DETACHED_VIEW", "send"));
  }));

test("sending a buffer of another pool is refused", () =>
  refused(async (_pool, { here }) => {
    await using other = Pool.create({ bytes: MIB });
    using buf = other.alloc(4096);
    await assert.rejects(here.send(buf), refusal("FOREIGN_BUFFER", "send", "another pool"));
    await assert.rejects(here.send(buf.bytes), refusal("FOREIGN_BUFFER"));
  }));

test("receiving into a buffer of another pool is refused", () =>
  refused(async (_pool, { here }) => {
    await using other = Pool.create({ bytes: MIB });
    using buf = other.alloc(4096);
    await assert.rejects(here.recv(buf), refusal("FOREIGN_BUFFER", "recv", "another pool"));
    await assert.rejects(here.recv(buf.bytes), refusal("FOREIGN_BUFFER"));
  }));

const NO_BUFFERS: [unknown, string][] = [
  [null, "null"],
  [7, "7"],
  ["text", '"text"'],
  [[1, 2], "Array"],
  [{ length: 3 }, "Object"],
];
for (const [value, name] of NO_BUFFERS) {
  test(`sending ${name} is refused`, () =>
    refused(async (_pool, { here }) => {
      await assert.rejects(
        here.send(value as Uint8Array),
        refusal("INVALID_ARGUMENT", `send: ${name} is not a buffer`, "pass a PoolBuffer"),
      );
    }));
}

test("receiving into what is not a buffer is refused", () =>
  refused(async (_pool, { here }) => {
    for (const [value, name] of NO_BUFFERS.slice(0, 4)) {
      await assert.rejects(
        here.recv(value as Uint8Array),
        refusal("INVALID_ARGUMENT", `recv: ${name} is not a buffer`, "pass a PoolBuffer"),
      );
    }
  }));

test("receiving into a buffer of 0 bytes is refused", () =>
  refused(async (pool, { here }) => {
    using buf = pool.alloc(4096);
    await assert.rejects(
      here.recv(buf.bytes.subarray(5, 5)),
      refusal("INVALID_ARGUMENT", "0 bytes", "recv() without a buffer"),
    );
  }));

// ---- guards

for (const guard of ["fast", "COW", "", null, 2, "toString", {}]) {
  test(`a send with the guard ${JSON.stringify(guard)} is refused`, () =>
    refused(async (pool, { here }) => {
      using buf = pool.alloc(4096);
      const name = typeof guard === "object" && guard ? "Object" : JSON.stringify(guard);
      await assert.rejects(
        here.send(buf, { guard: guard as Guard }),
        refusal("INVALID_ARGUMENT", `guard ${name}`, '"auto", "cow", "wait", "move"'),
      );
    }));
}

for (const guard of ["cow", "auto", null, 1]) {
  test(`a receive with the guard ${JSON.stringify(guard)} is refused`, () =>
    refused(async (pool, { here }) => {
      using buf = pool.alloc(4096);
      await assert.rejects(
        here.recv(buf, { guard: guard as ReceiveGuard }),
        refusal("INVALID_ARGUMENT", `guard ${JSON.stringify(guard)}`, '"wait" or "none"'),
      );
    }));
}

test("moving a part of a buffer is refused, and the buffer stays", () =>
  refused(async (pool, { here }) => {
    using buf = pool.alloc(8192);
    for (const part of [buf.bytes.subarray(1), buf.bytes.subarray(0, 8191)]) {
      await assert.rejects(
        here.send(part, { guard: "move" }),
        refusal("INVALID_ARGUMENT", "part of a buffer", '"move"', "pass the PoolBuffer"),
      );
    }
    assert.equal(buf.bytes.byteLength, 8192);
  }));

test("moving memory outside the pool is refused", () =>
  refused(async (_pool, { here }) => {
    await assert.rejects(
      here.send(new Uint8Array(8192), { guard: "move" }),
      refusal("INVALID_ARGUMENT", "outside the pool", '"move"', "pass the PoolBuffer"),
    );
  }));

// ---- ranges

test("a view past the end of a buffer cannot be made", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using buf = pool.alloc(5000); // on two pages, of which 8192 - 5000 bytes are nobody's
  assert.throws(() => new Uint8Array(buf.bytes.buffer, 0, 5001), RangeError);
  assert.throws(() => new DataView(buf.bytes.buffer).getUint8(5000), RangeError);
});

const NO_HANDLES: [unknown, string][] = [
  [{}, "{}"],
  [{ address: 0, byteLength: 4096 }, '"address":0'],
  [{ address: -4096, byteLength: 4096 }, "-4096"],
  [{ address: 4096.5, byteLength: 4096 }, "4096.5"],
  [{ address: 65536, byteLength: -1 }, '"byteLength":-1'],
  [{ address: 65536, byteLength: NaN }, '"byteLength":null'],
  [null, "null"],
];
for (const [handle, name] of NO_HANDLES) {
  test(`a view of the handle ${JSON.stringify(handle)} is refused`, () => {
    assert.throws(
      () => viewShared(handle as SharedHandle),
      refusal("INVALID_ARGUMENT", name, "PoolBuffer.share()"),
    );
  });
}

// ---- closed pools

test("a closed pool allocates nothing and counts nothing", async () => {
  const pool = Pool.create({ bytes: MIB });
  await pool.close();
  assert.throws(() => pool.alloc(4096), refusal("POOL_CLOSED", "Pool.create()"));
  assert.throws(() => pool.stats(), refusal("POOL_CLOSED", "Pool.create()"));
});

test("a pool can be closed twice", async () => {
  const pool = Pool.create({ bytes: MIB });
  await Promise.all([pool.close(), pool.close()]);
  await pool.close();
});

test("closing a pool detaches the views of its buffers", async () => {
  const pool = Pool.create({ bytes: MIB });
  const buf = pool.alloc(4096), part = buf.bytes.subarray(5);
  await pool.close();
  assert.deepEqual([buf.freed, buf.bytes.byteLength, part.byteLength], [true, 0, 0]);
});

test("a buffer of a closed pool can be neither shared nor freed", async () => {
  const pool = Pool.create({ bytes: MIB }), buf = pool.alloc(4096);
  await pool.close();
  assert.throws(() => buf.share(), refusal("POOL_CLOSED"));
  assert.throws(() => buf.free(), refusal("BUFFER_FREED"));
});

test("a pool is closed while a Worker writes to guarded pages of it, and the Worker lives", async (t) => {
  assert.deepEqual(await new Child(t, "closer", ["12"]).next(), { pools: 12 });
});

test("a channel whose pool is closed neither sends nor receives", async () => {
  const pool = Pool.create({ bytes: MIB });
  using ends = await pair(pool);
  const { here, there } = ends;
  await pool.close();
  await assert.rejects(here.send(new Uint8Array(10)), refusal("POOL_CLOSED"));
  await assert.rejects(there.recv(), refusal("POOL_CLOSED"));
});

test("connecting and listening with a closed pool is refused", async () => {
  const pool = Pool.create({ bytes: MIB }), address = freshAddress();
  await pool.close();
  await assert.rejects(listen(address, { pool }), refusal("POOL_CLOSED"));
  await assert.rejects(connect(address, { pool }), refusal("POOL_CLOSED"));
});

test("closing a pool waits for the operations in flight", async () => {
  const pool = Pool.create({ bytes: MIB });
  using ends = await pair(pool);
  const { here, there } = ends;
  const buf = pool.alloc(64 * KIB);
  const sent = here.send(buf, { guard: "cow" });
  const order: string[] = [];
  const closed = pool.close().then(() => order.push("closed"));
  await new Promise((resolve) => setTimeout(resolve, 20));
  const message = await there.recv();
  order.push("received");
  message!.release();
  await Promise.all([sent, closed]);
  assert.deepEqual(order, ["received", "closed"]);
});

// ---- the life of a buffer

test("buffers are apart: a write to one is not seen in another", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const bufs = [1, 4096, 5000, 100_000].map((bytes) => pool.alloc(bytes));
  for (const [i, buf] of bufs.entries()) buf.bytes.fill(i + 1);
  for (const [i, buf] of bufs.entries()) assert.ok(buf.bytes.every((byte) => byte === i + 1));
});

test("a buffer has the length that was asked for and the same view each time", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using buf = pool.alloc(5000);
  assert.deepEqual([buf.byteLength, buf.bytes.byteLength], [5000, 5000]);
  assert.equal(buf.bytes, buf.bytes);
  assert.equal(buf.pool, pool);
});

test("using frees a buffer at the end of its block", async () => {
  await using pool = Pool.create({ bytes: MIB });
  let outside;
  {
    using buf = pool.alloc(4096);
    outside = buf;
    assert.equal(pool.stats().bytesAvailable, MIB - 4096);
  }
  assert.equal(pool.stats().bytesAvailable, MIB);
  assert.equal(outside.freed, true);
});

test("using does not mind a buffer freed before the end of its block", async () => {
  await using pool = Pool.create({ bytes: MIB });
  {
    using buf = pool.alloc(4096);
    buf.free();
  }
  assert.equal(pool.stats().bytesAvailable, MIB);
});

test("await using closes a pool at the end of its block", async () => {
  let outside;
  {
    await using pool = Pool.create({ bytes: MIB });
    outside = pool;
  }
  assert.throws(() => outside.stats(), refusal("POOL_CLOSED"));
});

test("freeing detaches every view of the buffer, and does not touch its next owner", async () => {
  await using pool = Pool.create({ bytes: 4096 });
  const buf = pool.alloc(4096), view = buf.bytes, words = new Uint32Array(view.buffer);
  view.fill(1);
  buf.free();
  using next = pool.alloc(4096);
  next.bytes.fill(2);
  view[0] = 9;
  words[1] = 9;
  assert.deepEqual([view.length, words.length, view[0]], [0, 0, undefined]);
  assert.ok(next.bytes.every((byte) => byte === 2));
});

test("a buffer on pages that were guarded for the one before can be written by the kernel", async () => {
  await using pool = Pool.create({ bytes: 64 * KIB });
  using ends = await pair(pool);
  const { here, there } = ends;
  const buf = pool.alloc(64 * KIB);
  const sent = here.send(buf, { guard: "cow" });
  (await there.recv())!.release();
  await sent;
  buf.free();
  using next = pool.alloc(64 * KIB);
  assert.equal(readZeros(next.bytes), 64 * KIB);
});

test("bytes gives the kernel the permission back that an awaited send has left", async () => {
  await using pool = Pool.create({ bytes: 64 * KIB });
  using ends = await pair(pool);
  const { here, there } = ends;
  using buf = pool.alloc(64 * KIB);
  buf.bytes.fill(1);
  const sent = here.send(buf, { guard: "cow" });
  (await there.recv())!.release();
  await sent;
  assert.equal(readZeros(buf.bytes), 64 * KIB);
  assert.ok(buf.bytes.every((byte) => byte === 0));
  assert.equal(pool.stats().faults.writes, 0);
});

// Lets the kernel write to a view.
function readZeros(view: Uint8Array): number {
  const fd = openSync("/dev/zero", "r");
  try {
    return readSync(fd, view, 0, view.length, null);
  } finally {
    closeSync(fd);
  }
}

// ---- views of a buffer

const VIEWS: Record<string, (bytes: Uint8Array<ArrayBuffer>) => ArrayBufferView | ArrayBuffer> = {
  "a subarray": (bytes) => bytes.subarray(100, 20_000),
  "its ArrayBuffer": (bytes) => bytes.buffer,
  "a DataView": (bytes) => new DataView(bytes.buffer, 4093, 20_000),
  "a Float64Array": (bytes) => new Float64Array(bytes.buffer, 8, 1000),
  "a Buffer": (bytes) => Buffer.from(bytes.buffer, 5, 20_000),
};
for (const [name, make] of Object.entries(VIEWS)) {
  test(`${name} of a buffer is sent from its pages`, async () => {
    await using pool = Pool.create({ bytes: MIB });
    using ends = await pair(pool);
    const { here, there } = ends;
    using buf = pool.alloc(64 * KIB);
    buf.bytes.set(pattern(1, 64 * KIB));
    const view = make(buf.bytes), offset = ArrayBuffer.isView(view) ? view.byteOffset : 0;
    const sent = here.send(view, { guard: "cow" });
    using message = await there.recv();
    const expected = pattern(1, 64 * KIB).subarray(offset, offset + view.byteLength);
    assertBytes(message!.bytes, expected, "what was sent");
    message!.release();
    assert.deepEqual(await sent, { bytes: view.byteLength, guard: "cow", zeroCopy: true });
    assert.equal(pool.stats().bytesCopiedOut, 0);
  });
}

test("memory outside the pool is sent as a copy, and the result says so", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using ends = await pair(pool);
  const { here, there } = ends;
  const sent = here.send(new Uint8Array(64 * KIB), { guard: "cow" });
  (await there.recv())!.release();
  assert.deepEqual(await sent, { bytes: 64 * KIB, guard: "copy", zeroCopy: false });
  assert.equal(pool.stats().bytesCopiedOut, 64 * KIB);
});

test("a SharedArrayBuffer's bytes are sent as a copy", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using ends = await pair(pool);
  const { here, there } = ends;
  const bytes = new Uint8Array(new SharedArrayBuffer(1000)).fill(3);
  await here.send(bytes);
  using message = await there.recv();
  assertBytes(message!.bytes, new Uint8Array(1000).fill(3), "what was sent");
});

// ---- buffers that nobody holds any more

// In a function of their own, so that no local variable of a test keeps them.
function allocMany(pool: Pool, count: number): void {
  for (let i = 0; i < count; i++) pool.alloc(4096).bytes[0] = 1;
}

test("buffers that nobody holds come back to the pool", async () => {
  await using pool = Pool.create({ bytes: MIB });
  allocMany(pool, 200);
  assert.ok(await collected(() => pool.stats().bytesAvailable === MIB));
});

test("a view keeps its buffer from coming back", async () => {
  await using pool = Pool.create({ bytes: MIB });
  const views: Uint8Array[] = [];
  (() => views.push(pool.alloc(4096).bytes.subarray(5, 10)))();
  views[0]!.fill(7);
  allocMany(pool, 200);
  assert.ok(await collected(() => pool.stats().bytesAvailable >= MIB - 4096));
  for (let i = 0; i < 5; i++) await collect();
  assert.equal(pool.stats().bytesAvailable, MIB - 4096);
  assert.deepEqual([...views[0]!], [7, 7, 7, 7, 7]);
});

test("a buffer that nobody holds comes back after its send has completed, not before", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using ends = await pair(pool);
  const { here, there } = ends;
  const sent = (() => {
    const buf = pool.alloc(64 * KIB);
    buf.bytes.set(pattern(1, 64 * KIB));
    return here.send(buf, { guard: "cow" });
  })();
  for (let i = 0; i < 10; i++) await collect();
  assert.equal(pool.stats().bytesAvailable, MIB - 64 * KIB);
  const message = await there.recv();
  assertBytes(message!.bytes, pattern(1, 64 * KIB), "what was sent");
  message!.release();
  await sent;
  assert.ok(await collected(() => pool.stats().bytesAvailable === MIB));
});
