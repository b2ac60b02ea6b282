import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { Usage } from "../programs/pipeline.ts";
import { assertBytes, pattern } from "../support/bytes.ts";
import { Child } from "../support/child.ts";

test("a mapped file sent over rdma:// and stored from the pages it comes in arrives", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "moat-pipeline-"));
  t.after(() => rmSync(directory, { recursive: true }));
  const source = join(directory, "source"), target = join(directory, "target");
  const contents = pattern(1, (12 << 20) + 4097);
  writeFileSync(source, contents);
  const scope = { after: (fn: () => void) => t.after(fn) };
  const sender = new Child(scope, "pipeline", ["send", "rdma://10.9.0.1:0", source]);
  const receiver = new Child(scope, "pipeline", ["store", await sender.next<string>(), target]);
  await Promise.all([sender.next<Usage>(), receiver.next<Usage>()]);
  for (const child of [sender, receiver]) assert.equal((await child.exit).code, 0);
  assertBytes(readFileSync(target), contents, "the file at the other end");
});
