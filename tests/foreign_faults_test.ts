import assert from "node:assert/strict";
import { test } from "node:test";
import { Child, type Exit, here } from "./support/child.ts";

type Test = { after(fn: () => void): void };

function run(t: Test, name: string, mode: "moat" | "bare"): Promise<Exit> {
  return new Child(t, "fault", [name, mode]).exit;
}

// What must be the same with Moat: everything but addresses, times and the like.
function outcome({ code, signal, stdout, stderr }: Exit): unknown {
  const crash = /(panic|Segmentation fault at address \w+)/.exec(stderr)?.[0];
  return { code, signal, stdout, crash };
}

for (const name of ["null", "wasm", "overflow"]) {
  test(`a fault that is not Moat's behaves as without it: ${name}`, async (t) => {
    const bare = await run(t, name, "bare"), moat = await run(t, name, "moat");
    assert.deepEqual(outcome(moat), outcome(bare), moat.stderr);
    if (name === "null") {
      assert.ok(moat.signal !== null || moat.code !== 0);
      assert.equal(moat.stdout.trim(), '"before"');
    } else assert.equal(moat.code, 0);
  });
}

test("WebAssembly traps are RangeErrors of WebAssembly, every one", async (t) => {
  const child = new Child(t, "fault", ["wasm", "moat"]);
  assert.deepEqual(await child.next(), { trapped: 10_000, sum: 0 });
});

test("a sent SIGSEGV does what it does without Moat, and the guard holds if the process lives", async (t) => {
  const bare = await run(t, "sent", "bare"), moat = await run(t, "sent", "moat");
  assert.deepEqual(outcome(moat), outcome(bare), moat.stderr);
  if (here === "deno") assert.equal(moat.stdout.trim(), '"alive"');
});

test("a listener for SIGSEGV is noticed: the guard holds, and a warning says so", async (t) => {
  const child = new Child(t, "fault", ["listener", "moat"]);
  const expected = here === "deno"
    ? { refused: true, warned: "" }
    : { refused: false, warned: "MoatWarning" };
  assert.deepEqual(await child.next(), expected);
});
