import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createReadStream, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, before, test } from "node:test";
import { pipeline } from "node:stream/promises";
import type { Usage } from "./programs/pipeline.ts";
import { pattern } from "./support/bytes.ts";
import { Child, freshAddress, here, other, share } from "./support/child.ts";

const MIB = 1 << 20;
const SOAK = process.env["MOAT_SOAK"] === "1";
const BYTES = (SOAK ? 1024 : 384) * MIB;
const directory = mkdtempSync(join(tmpdir(), "moat-pipeline-"));
const source = join(directory, "source");
after(() => rmSync(directory, { recursive: true }));

async function sha256(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash);
  return hash.digest("hex");
}

// The plain way is Deno.open and Deno.connect wherever they are known, whatever runtime this is.
const PLAIN = here === "deno" || other() === "deno" ? "deno" : here;

type Scope = { after(fn: () => void): void };

// Sends the file from one process to another; returns what each took.
async function run(t: Scope, kind: "" | "plain-", address: string): Promise<[Usage, Usage]> {
  const target = join(directory, `${kind}target`);
  const runtime = kind === "" ? here : PLAIN;
  const sender = new Child(t, "pipeline", [`${kind}send`, address, source], runtime);
  const at = String(await sender.next());
  const receiver = new Child(t, "pipeline", [`${kind}store`, at, target], runtime);
  const usages = await Promise.all([sender.next<Usage>(), receiver.next<Usage>()]);
  for (const child of [sender, receiver]) assert.equal((await child.exit).code, 0);
  assert.equal(await sha256(target), expected, "the file at the other end");
  rmSync(target);
  return usages;
}

let expected: string;
before(async () => {
  for (let i = 0; i < BYTES / (8 * MIB); i++) {
    writeFileSync(source, pattern(i + 1, 8 * MIB), { flag: "a" });
  }
  expected = await sha256(source);
});

// What the plain way takes depends on what the page cache just holds, by a factor of three; and what is done once in
// a process counts for more the shorter the file is. So the short form asks for less, and of its best round.
const MOST = SOAK ? 0.5 : 0.8, ROUNDS = 3;
const cost = ([sender, receiver]: [Usage, Usage]): number => sender.cpu + receiver.cpu;

for (const transport of share(["shm", "tcp"])) {
  test(`a mapped file sent over ${transport}:// and stored from the pages it comes in arrives, for ${MOST} of the processor's time at most`, async (t) => {
    const address = transport === "shm" ? freshAddress() : "tcp://127.0.0.1:0";
    const scope = { after: (fn: () => void) => t.after(fn) }, ratios: number[] = [];
    while (ratios.length < ROUNDS && (SOAK || !(ratios.at(-1)! <= MOST))) {
      const plain = cost(await run(scope, "plain-", "0")), usages = await run(scope, "", address);
      for (const { peak } of usages) {
        assert.ok(peak < 128 * MIB, `${peak} bytes resident besides the pools`);
      }
      ratios.push(cost(usages) / plain);
    }
    const shown = ratios.map((ratio) => ratio.toFixed(2)).join(", ");
    t.diagnostic?.(`of what Deno.open and Deno.connect take: ${shown}`);
    const counted = SOAK ? ratios.sort((a, b) => a - b)[1]! : Math.min(...ratios);
    assert.ok(counted <= MOST, `${shown} of what the plain way takes`);
  });
}
