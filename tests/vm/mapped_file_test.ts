import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { Pool } from "../../mod.ts";
import { assertBytes, fill, pattern } from "../support/bytes.ts";
import { pair } from "../support/pair.ts";

// A device knows the pool's own pages only, so a mapped file's travel through those.
const MIB = 1 << 20, ADDRESS = "rdma://10.9.0.1:0";
const directory = mkdtempSync(join(tmpdir(), "moat-mapped-"));
after(() => rmSync(directory, { recursive: true }));

test("a mapped file is sent and received over rdma:// through pool pages, and the results say so", async () => {
  await using pool = Pool.create({ bytes: 8 * MIB });
  using ends = await pair(pool, ADDRESS);
  for (const size of [100, 100_000, 2 * MIB + 5]) {
    const path = join(directory, String(size));
    writeFileSync(path, pattern(1, size));
    await using mapped = pool.map(path, { write: true });
    const sent = ends.here.send(mapped, { guard: "cow" });
    fill(mapped.bytes, 2);
    {
      using message = await ends.there.recv();
      assertBytes(message!.bytes, pattern(1, size), "what arrived");
    }
    const { bytes, guard, zeroCopy } = await sent;
    assert.deepEqual({ bytes, guard, zeroCopy }, { bytes: size, guard: "copy", zeroCopy: false });

    const got = ends.there.recv(mapped);
    await ends.here.send(pattern(3, size));
    const { bytes: received, copied } = (await got)!;
    assert.deepEqual([received, copied], [size, true]);
    assertBytes(readFileSync(path), pattern(3, size), "the file");
  }
});
