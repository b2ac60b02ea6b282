import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { here } from "./support/child.ts";
import { command, documents, ROOT, run } from "./support/docs.ts";

const readme = documents[0]!.text;

for (const name of readdirSync(join(ROOT, "examples")).filter((name) => name.endsWith(".ts"))) {
  const text = readFileSync(join(ROOT, "examples", name), "utf8"), header = text.split("*/")[0]!;
  const lines = [...header.matchAll(/^ \* {5}((deno|bun) .*)$/gm)];

  test(`examples/${name} says how to run it`, () => assert.ok(lines.length > 0, header));

  for (const [, line, runtime] of lines) {
    if (runtime !== here) continue; // tested when the tests run on that runtime
    if (text.includes("/verbs/") || line!.includes("task vm")) continue; // tested in tests/vm
    test(`examples/${name} runs as it says: ${line}`, () => {
      run([...command(here), ...line!.split(" ").slice(1)]);
    });
  }
}

test("the set-up takes two commands, with Deno and with Node alone", () => {
  const setUp = documents[0]!.blocks.filter(({ words }) => words.join() === "sh").slice(0, 2)
    .map(({ text }) => text.trim().split("\n"));
  const [own, node] = setUp as [string[], string[]];
  assert.deepEqual(own, ["deno task demo", "deno task test"]);
  assert.deepEqual(node, own.map((line) => line.replace("deno", "npx -y deno@2.9.6")));
});

test("the README names the oldest versions that the library accepts", async () => {
  const { OLDEST } = await import("../ffi/runtime.ts");
  assert.ok(readme.includes(`Deno ${OLDEST.deno} or newer, Bun ${OLDEST.bun} or newer`));
});
