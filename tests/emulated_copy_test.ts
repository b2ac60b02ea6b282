import assert from "node:assert/strict";
import { test } from "node:test";
import { Pool } from "../mod.ts";
import { coreOf } from "../lib/memory/pool.ts";
import { exchangeThreshold } from "../lib/memory/swap.ts";
import { assertBytes, fill, pattern } from "./support/bytes.ts";
import { pair } from "./support/pair.ts";

const MIB = 1 << 20, PAGE = 4096, SIZE = 4 * MIB;

// What was copied and what was exchanged by reading a message of `SIZE` bytes to an offset of a buffer.
async function read(offset: number, length: number): Promise<{ copied: number; pages: number }> {
  await using pool = Pool.create({ bytes: 32 * MIB });
  using ends = await pair(pool, "tcp://127.0.0.1:0");
  using buf = pool.alloc(SIZE), place = pool.alloc(SIZE + 2 * PAGE);
  fill(buf.bytes, 1);
  fill(place.bytes, 2);
  const expected = place.bytes.slice(), source = buf.bytes.slice();
  const reading = ends.there.read(place.bytes.subarray(offset, offset + length));
  assertBytes(place.bytes, expected, "the place before the message has come");
  const { bytesCopiedIn, swappedPages } = pool.stats();
  const sent = ends.here.send(buf, { guard: "cow" });
  fill(buf.bytes, 3);
  const n = (await reading)!;
  await sent;
  const now = pool.stats();
  expected.set(source.subarray(0, n), offset);
  assertBytes(place.bytes, expected, "the place, and what is around it");
  let rest = SIZE - n;
  const tail = new Uint8Array(SIZE);
  while (rest > 0) {
    const at = SIZE - rest, got = (await ends.there.read(tail.subarray(at)))!;
    assertBytes(tail.subarray(at, at + got), source.subarray(at, at + got), "the rest");
    rest -= got;
  }
  assertBytes(buf.bytes, pattern(3, SIZE), "the sender's buffer");
  return {
    copied: now.bytesCopiedIn - bytesCopiedIn,
    pages: now.swappedPages - swappedPages,
  };
}

async function worthwhile(): Promise<boolean> {
  await using pool = Pool.create({ bytes: MIB });
  return exchangeThreshold(coreOf(pool)) <= 2 * MIB;
}

for (
  const [what, offset, length, copied, pages] of [
    ["a whole message", 0, SIZE, 0, SIZE / PAGE],
    ["the first half of a message", 0, SIZE / 2, 0, SIZE / 2 / PAGE],
    ["a part that ends in a page, with more to come", 0, SIZE / 2 + 5, 5, SIZE / 2 / PAGE],
    ["a message to an odd place", 100, SIZE, 200, SIZE / PAGE],
    ["a message to the end of a page", PAGE - 100, SIZE, 200, SIZE / PAGE],
  ] as const
) {
  test(`read() of ${what} exchanges ${pages} pages and copies ${copied} bytes`, async () => {
    const moved = await read(offset, length);
    if (await worthwhile()) assert.deepEqual(moved, { copied, pages });
    else assert.equal(moved.copied + moved.pages * PAGE >= length, true);
  });
}

test("a read into memory outside the pool, or of a few bytes, copies", async () => {
  await using pool = Pool.create({ bytes: 16 * MIB });
  using ends = await pair(pool, "tcp://127.0.0.1:0");
  using buf = pool.alloc(MIB);
  fill(buf.bytes, 1);
  const { swappedPages } = pool.stats();
  const foreign = new Uint8Array(MIB), sent = ends.here.send(buf, { guard: "cow" });
  for (let at = 0; at < MIB;) at += (await ends.there.read(foreign.subarray(at)))!;
  await sent;
  assertBytes(foreign, pattern(1, MIB), "foreign memory");
  using place = pool.alloc(PAGE);
  await ends.here.send(buf.bytes.subarray(0, PAGE));
  for (let at = 0; at < PAGE;) at += (await ends.there.read(place.bytes.subarray(at)))!;
  assertBytes(place.bytes, pattern(1, MIB).subarray(0, PAGE), "a page");
  assert.equal(pool.stats().swappedPages, swappedPages);
});
