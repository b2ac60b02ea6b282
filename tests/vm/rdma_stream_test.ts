import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Pool } from "../../mod.ts";
import { assertBytes, fill, pattern } from "../support/bytes.ts";
import { pair } from "../support/pair.ts";
import { http, pipeFile } from "../support/streams.ts";

const KIB = 1 << 10, AT = "rdma://10.9.0.1:0";

test("a real HTTP/1.1 request and response, by a client and a server made for sockets", () =>
  http(AT));

test("a file is piped through a channel into another", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "moat-stream-"));
  t.after(() => rmSync(directory, { recursive: true }));
  await pipeFile(AT, directory, 3 << 20);
});

test("bytes are read in pieces or whole, into memory of the pool and any other, to the end", async () => {
  await using pool = Pool.create({ bytes: 16 << 20 });
  const { here, there } = await pair(pool, AT);
  using buf = pool.alloc(300 * KIB), into = pool.alloc(300 * KIB);
  fill(buf.bytes, 1);
  const foreign = new Uint8Array(50_000),
    places = [into.bytes, foreign, into.bytes.subarray(3, 90)];
  for (const bytes of [1, 4000, 5000, 300 * KIB]) {
    const data = buf.bytes.slice(0, bytes), written = here.write(buf.bytes.subarray(0, bytes));
    const got = new Uint8Array(bytes);
    for (let at = 0, i = 0; at < bytes; i++) {
      const p = places[i % 3]!.subarray(0, bytes - at), n = await there.read(p);
      got.set(p.subarray(0, n!), at);
      at += n!;
    }
    assertBytes(got, data, `${bytes} bytes`);
    assert.equal(await written, bytes);
  }
  const last = here.write(pattern(2, 10));
  await here.closeWrite();
  assert.equal(await there.read(foreign), 10);
  assert.equal(await there.read(foreign), null);
  await there.write(pattern(3, 5));
  assert.equal(await here.read(foreign), 5);
  await Promise.all([last, here.close(), there.close()]);
  assert.equal(pool.stats().freeFrames, pool.stats().reserveFrames);
});
