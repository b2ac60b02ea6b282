import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { here } from "./support/child.ts";
import { command, readme, ROOT, run, testPrograms } from "./support/readme.ts";

testPrograms(
  "ts",
  2,
  (source) => source.replaceAll(/"shm:\/\/([\w-]+)"/g, `"shm://$1-${process.pid}"`), // others may run it just now
);

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

test("every task that the README names is one of deno.json's, with and without npx", () => {
  const { tasks } = JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8"));
  const named = [...readme.matchAll(/\b(?:deno|npx -y deno@[\d.]+) task (\w+)/g)];
  assert.ok(named.length >= 4);
  for (const [text, task] of named) assert.ok(task! in tasks, text);
});

test("every file that the README links to is there", () => {
  const links = [...readme.matchAll(/\]\(([^)]+)\)/g)].map((match) => match[1]!);
  for (const link of links.filter((link) => !/^(https:|#)/.test(link))) {
    assert.ok(existsSync(join(ROOT, link)), link);
  }
});

test("the README names the oldest versions that the library accepts", async () => {
  const { OLDEST } = await import("../ffi/runtime.ts");
  assert.ok(readme.includes(`Deno ${OLDEST.deno} or newer, Bun ${OLDEST.bun} or newer`));
});
