import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { here, other } from "./support/child.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const readme = readFileSync(join(ROOT, "README.md"), "utf8");
const directory = mkdtempSync(join(tmpdir(), "moat-readme-test-"));
after(() => rmSync(directory, { recursive: true }));

function command(runtime: "deno" | "bun"): string[] {
  const given = process.env[`MOAT_${runtime.toUpperCase()}`];
  return given ? JSON.parse(given) as string[] : [process.execPath];
}

function run(words: string[]): string {
  const env = { ...process.env };
  // Where the other runtime is not known, nobody is to go and get it.
  if (other() === here) env[here === "deno" ? "MOAT_BUN" : "MOAT_DENO"] = '["false"]';
  const { status, signal, stdout, stderr } = spawnSync(words[0]!, words.slice(1), {
    cwd: ROOT,
    env,
    encoding: "utf8",
    timeout: 60_000,
  });
  assert.equal(signal ?? status, 0, `${words.join(" ")}\n${stdout}${stderr}`);
  return stdout;
}

const blocks = [...readme.matchAll(/^```ts\n(.*?)^```$/gms)].map((match) => match[1]!);

test("the README has programs", () => assert.ok(blocks.length >= 2));

blocks.forEach((block, index) => {
  test(`program ${index + 1} of the README runs, and prints what it says`, () => {
    const specifier = JSON.stringify(join(ROOT, "mod.ts"));
    assert.ok(block.includes('from "jsr:@moat/rdma"'), "it imports the library by its public name");
    const source = block.replaceAll('"jsr:@moat/rdma"', specifier)
      .replaceAll(/"shm:\/\/([\w-]+)"/g, `"shm://$1-${process.pid}"`); // others may run it just now
    const file = join(directory, `program${index + 1}.ts`);
    writeFileSync(file, source);
    // The permissions are those that the README says.
    const permissions = block.includes('"node:fs"')
      ? ["--allow-ffi", "--allow-read"]
      : ["--allow-ffi"];
    const flags = here === "deno" ? ["run", "--no-prompt", "--no-lock", ...permissions] : [];
    const printed = run([...command(here), ...flags, file]).trim().split("\n");
    const promised = [...block.matchAll(/\/\/ prints (\w+)/g)].map((match) => match[1]);
    assert.ok(promised.length > 0, "it says what it prints");
    assert.deepEqual(printed, promised);
  });
});

for (const name of readdirSync(join(ROOT, "examples")).filter((name) => name.endsWith(".ts"))) {
  const header = readFileSync(join(ROOT, "examples", name), "utf8").split("*/")[0]!;
  const lines = [...header.matchAll(/^ \* {5}((deno|bun) .*)$/gm)];

  test(`examples/${name} says how to run it`, () => assert.ok(lines.length > 0, header));

  for (const [, line, runtime] of lines) {
    if (runtime !== here) continue; // tested when the tests run on that runtime
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
  for (const link of links.filter((link) => !link.startsWith("https:"))) {
    assert.ok(existsSync(join(ROOT, link)), link);
  }
});

test("the README names the oldest versions that the library accepts", async () => {
  const { OLDEST } = await import("../ffi/runtime.ts");
  assert.ok(readme.includes(`Deno ${OLDEST.deno} or newer, Bun ${OLDEST.bun} or newer`));
});
