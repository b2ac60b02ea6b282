import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { here, other } from "../support/child.ts";
import { command, ROOT, run } from "../support/docs.ts";

const directory = mkdtempSync(join(tmpdir(), "moat-demo-test-"));
const file = join(directory, "file");
writeFileSync(file, randomBytes((3 << 20) + 1234)); // the last message is shorter
after(() => rmSync(directory, { recursive: true }));

test('the demo over rdma:// arrives intact with "cow" and corrupted with "none"', () => {
  const flags = here === "deno" ? ["run", "-A", "--no-check", "--no-lock"] : [];
  const words = [...command(here), ...flags, join(ROOT, "examples/demo.ts")];
  const options = ["--transport", "rdma", "--file", file, "--size", "256k", "--guard", "cow"];
  const said = run([...words, ...options, "--runtimes", `${here},${other()}`]);
  assert.match(said, /over rdma:\/\//);
  assert.match(said, /^cow +overwritten .* equal$/m);
  assert.match(said, /^none +overwritten .* differs, as expected$/m);
  assert.ok(said.endsWith("\ndemo: ok\n"), said);
});
