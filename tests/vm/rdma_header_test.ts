import assert from "node:assert/strict";
import { test } from "node:test";
import { connect, listen, Pool } from "../../mod.ts";
import { assertBytes, fill, pattern } from "../support/bytes.ts";
import { pair } from "../support/pair.ts";

const KIB = 1 << 10, MIB = 1 << 20, AT = "rdma://10.9.0.1:0";

test("messages with headers arrive whole and in order, in every way they can be received", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  using ends = await pair(pool, AT);
  const { here, there } = ends;
  const sizes = [0, 1, 4071, 4072, 4096, 40 * KIB, MIB], headers = [1, 24, 1024];
  const kinds = sizes.flatMap((size) => headers.map((header) => ({ size, header })));
  const flying = kinds.map(({ size, header }, i) => {
    if (size === 0) return here.send(new Uint8Array(0), { header: pattern(i, header) });
    const buf = pool.alloc(size);
    fill(buf.bytes, i + 50);
    const sent = here.send(buf, { header: pattern(i, header) });
    buf.bytes.fill(0);
    buf.free();
    return sent;
  });
  using into = pool.alloc(MIB);
  for (const [i, { size, header }] of kinds.entries()) {
    const got = i % 2 ? await there.recv() : await there.recv(into);
    assertBytes(got!.header, pattern(i, header), `header ${i}`);
    const bytes = typeof got!.bytes === "number" ? into.bytes.subarray(0, got!.bytes) : got!.bytes;
    assertBytes(bytes, pattern(i + 50, size), `message ${i}`);
    if ("release" in got!) got.release();
  }
  await Promise.all(flying);
  await Promise.all([here.close(), there.close()]);
  assert.equal(pool.stats().freeFrames, pool.stats().reserveFrames);
});

test("data with a header is read from its pages by the device, and no byte of it copied", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  using ends = await pair(pool, AT);
  const { here, there } = ends;
  using buf = pool.alloc(MIB);
  fill(buf.bytes, 1);
  const before = pool.stats(), sent = here.send(buf, { guard: "cow", header: pattern(2, 24) });
  buf.bytes.fill(0);
  using message = await there.recv();
  assertBytes(message!.header, pattern(2, 24), "header");
  assertBytes(message!.bytes, pattern(1, MIB), "data");
  assert.equal(message!.copied, false);
  assert.equal((await sent).zeroCopy, true);
  const { bytesCopiedIn, bytesCopiedOut } = pool.stats();
  assert.equal(bytesCopiedIn, before.bytesCopiedIn);
  assert.equal(bytesCopiedOut, before.bytesCopiedOut);
});

test("over the raw protocol the header is the start of the message", async () => {
  await using pool = Pool.create({ bytes: 8 * MIB });
  const raw = { pool, protocol: "raw" } as const;
  await using listener = await listen(AT, raw);
  const [here, there] = await Promise.all([listener.accept(), connect(listener.address, raw)]);
  using buf = pool.alloc(40 * KIB), into = pool.alloc(64 * KIB);
  for (const [i, size] of [1, 5000, 40 * KIB].entries()) {
    fill(buf.bytes, i);
    const got = there.recv(into);
    await here.send(buf.bytes.subarray(0, size), { guard: "cow", header: pattern(i + 9, 24) });
    assert.equal((await got)!.bytes, 24 + size);
    assert.equal((await got)!.header.length, 0);
    assertBytes(into.bytes.subarray(0, 24), pattern(i + 9, 24), "header");
    assertBytes(into.bytes.subarray(24, 24 + size), buf.bytes.subarray(0, size), "data");
  }
  here.abort();
  there.abort();
});
