import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

function run(command: string, args: string[]): string[] {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: "utf8" });
  assert.equal(status, 0, stderr);
  return stdout.trimEnd().split("\n");
}

test("devinfo.ts prints what ibv_devinfo -v prints, field by field", () => {
  const example = fileURLToPath(new URL("../../examples/devinfo.ts", import.meta.url));
  const ours = run(process.execPath, "Bun" in globalThis ? [example] : ["run", "-A", example]);
  const theirs = run("ibv_devinfo", ["-v"]);
  assert.ok(theirs.length > 90, `${theirs.length} lines of ibv_devinfo`);
  assert.deepEqual(ours, theirs);
});
