import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readdirSync } from "node:fs";
import process from "node:process";
import { test } from "node:test";
import { share } from "../support/child.ts";
import { type Channel, connect, listen, Pool } from "../../mod.ts";
import { helper, QUERY } from "../../ffi/helper.ts";
import { assertBytes, pattern } from "../support/bytes.ts";

const AT = "rdma://10.9.0.1:0";

// How many objects of a kind there are but for the kernel's own. (Listed by thread, not by process.)
function count(kind: string): number {
  const listed = execFileSync("rdma", ["resource", "show", kind], { encoding: "utf8" });
  return listed.split("\n").filter((line) => / pid \d+ /.test(line)).length;
}

// What the kernel's RDMA subsystem and this process hold.
function resources(pool: Pool): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const kind of ["qp", "cq", "mr", "pd", "cm_id"]) counts[kind] = count(kind);
  counts["descriptors"] = readdirSync("/proc/self/fd").length;
  counts["operations"] = helper().moat_query(QUERY.opsLive, 0);
  counts["frames"] = pool.stats().freeFrames;
  counts["bytes"] = pool.stats().bytesAvailable;
  return counts;
}

// Deterministic, so that a failure can be seen again.
function shuffle<T>(items: T[], seed: number): T[] {
  let x = seed;
  for (let i = items.length - 1; i > 0; i--) {
    x = (x * 1103515245 + 12345) & 0x7fffffff;
    const j = x % (i + 1);
    [items[i], items[j]] = [items[j]!, items[i]!];
  }
  return items;
}

// Opens connections on one pool, uses each, and closes their ends in any order: some by close(), some by abort().
async function round(pool: Pool, connections: number, seed: number): Promise<void> {
  const listener = await listen(AT, { pool });
  const ends: Channel[] = [];
  for (let i = 0; i < connections; i++) {
    const [here, there] = await Promise.all([
      listener.accept(),
      connect(listener.address, { pool }),
    ]);
    const size = i % 2 === 0 ? 100 : 10_000;
    const sent = here.send(pattern(i, size), { guard: "copy" });
    using message = await there.recv();
    assertBytes(message!.bytes, pattern(i, size), `message ${i}`);
    message!.release();
    await sent;
    ends.push(here, there);
  }
  await listener.close();
  await Promise.all(
    shuffle(ends, seed).map(async (end, i) => {
      if (i % 5 === 4) end.abort();
      await end.close();
    }),
  );
}

async function settled(pool: Pool, wanted: Record<string, number>): Promise<void> {
  // An aborted channel gives its things back in its own time, and the kernel frees some later.
  for (let i = 0; i < 100; i++) {
    try {
      assert.deepEqual(resources(pool), wanted);
      return;
    } catch (error) {
      if (i === 99) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

const soak = process.env["MOAT_SOAK"] === "1";
const sizes = soak ? [[200, 20]] as const : [[10, 3], [100, 1]] as const;
for (const [connections, rounds] of share([...sizes])) {
  test(`${connections} connections on one pool, opened and closed in any order ${rounds} times, leave nothing`, async () => {
    await using pool = Pool.create({ bytes: 16 << 20 });
    await round(pool, 2, 1); // libraries, the registration of the pool, the doorbell
    await new Promise((resolve) => setTimeout(resolve, 500));
    const before = resources(pool);
    assert.deepEqual(
      [before["qp"], before["mr"]],
      [0, 1],
      "queue pairs, and the pool's registration",
    );
    for (let i = 0; i < rounds; i++) await round(pool, connections, i + 7);
    await settled(pool, before);
  });
}

test("a closed pool takes its registration along", async () => {
  const pool = Pool.create({ bytes: 1 << 20 });
  await round(pool, 1, 1);
  assert.equal(count("mr"), 1, "regions while the pool is open");
  await pool.close();
  assert.deepEqual([count("mr"), count("qp"), count("cq")], [0, 0, 0]);
});
