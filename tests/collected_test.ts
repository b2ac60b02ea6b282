// What is given to native code by its address is there until it has been used, though the garbage collector takes
// whatever nothing refers to, all the time.
import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { command, here } from "./support/child.ts";
import { start } from "./support/program.ts";

const ALWAYS = {
  BUN_JSC_slowPathAllocsBetweenGCs: "10",
  DENO_V8_FLAGS: "--gc-interval=50",
};

test("names of sockets and packets are right while everything is collected at once", async () => {
  const program = fileURLToPath(new URL("programs/collected.ts", import.meta.url));
  const times = here === "bun" ? "600" : "3000";
  const { status, stdout, stderr } = await start([...command(here), program, times], ALWAYS).ended;
  assert.equal(status, 0, stderr);
  const { port, ...wrong } = JSON.parse(stdout);
  assert.ok(port > 0);
  assert.deepEqual(wrong, { names: 0, packets: 0 });
});
