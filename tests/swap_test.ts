import assert from "node:assert/strict";
import { closeSync, openSync, readSync } from "node:fs";
import { test } from "node:test";
import { MoatError, Pool } from "../mod.ts";
import { coreOf } from "../lib/memory/pool.ts";
import { resolveData } from "../lib/memory/resolve.ts";
import { exchangeThreshold, moveBytes, type Moved } from "../lib/memory/swap.ts";
import { helper, QUERY } from "../ffi/helper.ts";
import { assertBytes, fill, pattern } from "./support/bytes.ts";
import { pair } from "./support/pair.ts";
import { fly } from "./support/vmsplice.ts";

const KIB = 1 << 10, MIB = 1 << 20, PAGE = 4096;

function refused(code: string, run: () => void, names: string): void {
  assert.throws(run, (error: unknown) => {
    assert.ok(error instanceof MoatError, String(error));
    assert.equal(error.code, code, error.message);
    assert.ok(error.message.includes(names), error.message);
    return true;
  });
}

for (const hugePages of [false, true]) {
  const pages = hugePages ? "huge pages" : "pages of 4 KiB";
  for (const size of [PAGE, 64 * KIB, 4 * MIB, 5 * MIB + 3 * PAGE, 100]) {
    test(`two buffers of ${size} bytes on ${pages} exchange their contents, and stay valid`, async () => {
      await using pool = Pool.create({ bytes: 16 * MIB, hugePages });
      using a = pool.alloc(size), b = pool.alloc(size);
      const { bytes: one } = a, two = b.bytes.subarray(1);
      fill(a.bytes, 1);
      fill(b.bytes, 2);
      const { bytesCopiedOut, bytesCopiedIn } = pool.stats();
      pool.swap(a, b);
      assertBytes(one, pattern(2, size), "the first, through a view made before");
      assertBytes(two, pattern(1, size).subarray(1), "the second, through a view made before");
      one[0] = 77;
      assert.equal(b.bytes[0], pattern(1, 1)[0], "they are apart");
      pool.swap(b, a);
      assertBytes(a.bytes, pattern(1, size), "the first, after another swap");
      assert.equal(b.bytes[0], 77);
      const stats = pool.stats();
      assert.equal(stats.swappedPages, 2 * Math.ceil(size / PAGE));
      assert.deepEqual([stats.bytesCopiedOut, stats.bytesCopiedIn], [
        bytesCopiedOut,
        bytesCopiedIn,
      ]);
    });
  }
}

test("parts of buffers are exchanged, also parts of one buffer; the rest stays", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using a = pool.alloc(64 * KIB), b = pool.alloc(64 * KIB);
  fill(a.bytes, 1);
  fill(b.bytes, 2);
  const before = [a.bytes.slice(), b.bytes.slice()] as const;
  pool.swap(a.bytes.subarray(4 * PAGE, 7 * PAGE), b.bytes.subarray(PAGE, 4 * PAGE));
  pool.swap(a.bytes.subarray(0, PAGE), a.bytes.subarray(15 * PAGE));
  const [x, y] = [before[0].slice(), before[1].slice()];
  x.set(before[1].subarray(PAGE, 4 * PAGE), 4 * PAGE);
  y.set(before[0].subarray(4 * PAGE, 7 * PAGE), PAGE);
  x.set(before[0].subarray(15 * PAGE), 0);
  x.set(before[0].subarray(0, PAGE), 15 * PAGE);
  assertBytes(a.bytes, x, "the first buffer");
  assertBytes(b.bytes, y, "the second buffer");
});

test("the page is the same before and after: what the device holds came along", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using a = pool.alloc(PAGE), b = pool.alloc(PAGE);
  a.bytes.fill(1);
  b.bytes.fill(2);
  pool.swap(a, b);
  using flight = fly(pool, b, "none"); // holds the page that was a's
  b.bytes[5] = 3;
  assert.equal(flight.land()[5], 3);
});

test("sends in flight and snapshots keep what they had, on either side", async () => {
  await using pool = Pool.create({ bytes: 4 * MIB });
  using a = pool.alloc(64 * KIB), b = pool.alloc(64 * KIB);
  fill(a.bytes, 1);
  fill(b.bytes, 2);
  using flight = fly(pool, a, "cow"), version = b.snapshot();
  a.bytes[7 * PAGE]! ^= 1; // in pieces
  const changed = a.bytes.slice();
  pool.swap(a, b);
  assertBytes(a.bytes, pattern(2, 64 * KIB), "the first");
  assertBytes(b.bytes, changed, "the second");
  fill(a.bytes, 3);
  fill(b.bytes, 4);
  pool.swap(b, a);
  assertBytes(flight.land(), pattern(1, 64 * KIB), "what was in flight");
  assertBytes(version.bytes, pattern(2, 64 * KIB), "the snapshot");
  assertBytes(a.bytes, pattern(4, 64 * KIB), "the first");
  version.release();
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames);
  assert.equal(helper().moat_query(QUERY.opsLive, 0), 0);
});

test("pages that a guard has closed, and that a swap brought, are open to system calls again", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using a = pool.alloc(64 * KIB), b = pool.alloc(64 * KIB);
  const fd = openSync(new URL(import.meta.url), "r");
  for (const [sender, other] of [[a, b], [b, a]] as const) {
    sender.snapshot().release();
    pool.swap(a, b);
    for (const buffer of [other, sender]) {
      assert.equal(readSync(fd, buffer.bytes, 0, 100, 0), 100); // a guarded page would be EFAULT
    }
  }
  closeSync(fd);
});

test("a swap is refused while an operation is in the way, and changes nothing", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using ends = await pair(pool);
  using a = pool.alloc(16 * KIB), b = pool.alloc(16 * KIB);
  a.bytes.fill(1);
  b.bytes.fill(2);
  for (const guard of ["wait", "none"] as const) {
    using flight = fly(pool, b.bytes.subarray(3 * PAGE), guard);
    refused("BUFFER_BUSY", () => pool.swap(a, b), "await");
    pool.swap(a.bytes.subarray(0, PAGE), b.bytes.subarray(0, PAGE)); // not these pages
    pool.swap(a.bytes.subarray(0, PAGE), b.bytes.subarray(0, PAGE));
    flight.land();
  }
  const stop = new AbortController();
  const received = ends.here.recv(a.bytes.subarray(PAGE, PAGE + 5), { signal: stop.signal });
  refused("BUFFER_BUSY", () => pool.swap(b, a), "await");
  stop.abort();
  await assert.rejects(received);
  assert.deepEqual([a.bytes[0], b.bytes[0]], [1, 2]);
  pool.swap(a, b);
  assert.deepEqual([a.bytes[0], b.bytes[0]], [2, 1]);
});

test("what cannot be swapped is refused with the reason", async () => {
  await using pool = Pool.create({ bytes: MIB }), other = Pool.create({ bytes: MIB });
  using a = pool.alloc(16 * KIB), b = pool.alloc(16 * KIB), far = other.alloc(16 * KIB);
  const part = a.bytes.subarray(0, PAGE);
  refused("INVALID_ARGUMENT", () => pool.swap(a, b.bytes.subarray(PAGE)), "12288");
  refused("INVALID_ARGUMENT", () => pool.swap(part, b.bytes.subarray(1, PAGE + 1)), "offset 1");
  refused("INVALID_ARGUMENT", () => pool.swap(part, b.bytes.subarray(0, 5)), "5 bytes");
  refused("INVALID_ARGUMENT", () => pool.swap(a, a), "overlap");
  refused(
    "INVALID_ARGUMENT",
    () => pool.swap(part, new Uint8Array(PAGE)),
    "not memory of the pool",
  );
  refused("INVALID_ARGUMENT", () => pool.swap(part, null as unknown as Uint8Array), "null");
  refused("FOREIGN_BUFFER", () => pool.swap(a, far), "another pool");
  const freed = pool.alloc(16 * KIB);
  freed.free();
  refused("BUFFER_FREED", () => pool.swap(a, freed), "freed");
});

test("what a swap costs does not depend on what the pages hold, and is less than copying", async () => {
  await using pool = Pool.create({ bytes: 80 * MIB });
  using a = pool.alloc(32 * MIB), b = pool.alloc(32 * MIB);
  a.bytes.fill(1);
  b.bytes.fill(2);
  const time = (run: () => void): number => {
    let least = Infinity;
    for (let i = 0; i < 7; i++) {
      const start = performance.now();
      run();
      least = Math.min(least, performance.now() - start);
    }
    return least;
  };
  const swap = time(() => pool.swap(a, b)), copy = time(() => a.bytes.set(b.bytes));
  assert.ok(swap < copy / 4, `a swap of 32 MiB took ${swap} ms, a copy ${copy} ms`);
});

// ---- emulated copy on input

interface Case {
  length: number;
  offset: number;
  /** How many bytes behind the source nobody needs. */
  behind: number;
  moved: Moved;
}

const BIG = 2 * MIB;
const CASES: Record<string, Case> = {
  "whole pages": { length: BIG, offset: 0, behind: 0, moved: { copied: 0, exchanged: BIG } },
  "whole pages and a short rest": {
    length: BIG + 100,
    offset: 0,
    behind: PAGE,
    moved: { copied: 100, exchanged: BIG },
  },
  "a rest of more than half a page": {
    length: BIG + 3000,
    offset: 0,
    behind: PAGE - 3000,
    moved: { copied: PAGE - 3000, exchanged: BIG + 3000 },
  },
  "such a rest, behind which is more to come": {
    length: BIG + 3000,
    offset: 0,
    behind: 0,
    moved: { copied: 3000, exchanged: BIG },
  },
  "a beginning of less than half a page": {
    length: BIG,
    offset: PAGE - 10,
    behind: PAGE,
    moved: { copied: 10 + 10, exchanged: BIG - 10 },
  },
  "a beginning of more than half a page": {
    length: BIG,
    offset: 1000,
    behind: PAGE,
    moved: { copied: 1000 + 1000, exchanged: BIG - 1000 },
  },
};

for (const [name, { length, offset, behind, moved }] of Object.entries(CASES)) {
  test(`moving bytes to ${name} exchanges what it can, and copies what it says`, async () => {
    await using pool = Pool.create({ bytes: 16 * MIB });
    const core = coreOf(pool);
    using to = pool.alloc(4 * MIB), from = pool.alloc(4 * MIB);
    fill(to.bytes, 1);
    fill(from.bytes, 2);
    const target = to.bytes.subarray(offset, offset + length);
    const source = from.bytes.subarray(offset, offset + length);
    const expected = to.bytes.slice(), rest = from.bytes.slice(offset + length + behind);
    expected.set(source, offset);
    const at = (view: Uint8Array) => resolveData(core, view, "a test").region!;
    const got = moveBytes(core, at(target), target, at(source), source, {
      before: offset,
      behind,
    });
    assertBytes(to.bytes, expected, "the target, and what is around it");
    assertBytes(from.bytes.subarray(offset + length + behind), rest, "what is still to come");
    if (exchangeThreshold(core) > BIG) return; // slower than copying here, so it copies
    assert.deepEqual(got, moved);
  });
}

test("moving bytes between other offsets in the page, or few, or over a guard, copies them", async () => {
  await using pool = Pool.create({ bytes: 16 * MIB });
  const core = coreOf(pool);
  using to = pool.alloc(4 * MIB), from = pool.alloc(4 * MIB);
  const at = (view: Uint8Array) => resolveData(core, view, "a test").region!;
  const move = (start: number, length: number): Moved => {
    fill(from.bytes, start + length);
    const target = to.bytes.subarray(start, start + length),
      source = from.bytes.subarray(0, length);
    const expected = source.slice();
    const got = moveBytes(core, at(target), target, at(source), source, { before: 0, behind: 0 });
    assertBytes(target, expected, `${length} bytes to offset ${start}`);
    return got;
  };
  assert.deepEqual(move(1, 2 * MIB), { copied: 2 * MIB, exchanged: 0 });
  assert.deepEqual(move(0, 100), { copied: 100, exchanged: 0 });
  using flight = fly(pool, to.bytes.subarray(0, PAGE), "none");
  assert.deepEqual(move(0, 2 * MIB), { copied: 2 * MIB, exchanged: 0 });
  flight.land();
});
