/**
 * Running what the README and the examples show.
 *
 * @module
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { here, other } from "./child.ts";

/** The checkout. */
export const ROOT: string = fileURLToPath(new URL("../..", import.meta.url));
/** The README's text. */
export const readme: string = readFileSync(join(ROOT, "README.md"), "utf8");

/** The words of the command that is a runtime. */
export function command(runtime: "deno" | "bun"): string[] {
  const given = process.env[`MOAT_${runtime.toUpperCase()}`];
  return given ? JSON.parse(given) as string[] : [process.execPath];
}

/** Runs a command, which must succeed, and returns what it printed. */
export function run(words: string[]): string {
  const env = { ...process.env };
  // Where the other runtime is not known, nobody is to go and get it.
  if (other() === here) env[here === "deno" ? "MOAT_BUN" : "MOAT_DENO"] = '["false"]';
  const { status, signal, stdout, stderr } = spawnSync(words[0]!, words.slice(1), {
    cwd: ROOT,
    env,
    encoding: "utf8",
    timeout: 120_000,
  });
  assert.equal(signal ?? status, 0, `${words.join(" ")}\n${stdout}${stderr}`);
  return stdout;
}

/**
 * Declares a test for each program of the README in a fence marked with `info`: it runs, with the permissions
 * that the README says, and prints what its comments promise.
 */
export function testPrograms(info: string, least: number, adapt: (source: string) => string): void {
  const directory = mkdtempSync(join(tmpdir(), "moat-readme-test-"));
  after(() => rmSync(directory, { recursive: true }));
  const fence = new RegExp(`^\`\`\`${info}\\n(.*?)^\`\`\`$`, "gms");
  const blocks = [...readme.matchAll(fence)].map((match) => match[1]!);

  test(`the README has programs marked ${info}`, () => assert.ok(blocks.length >= least));

  blocks.forEach((block, index) => {
    test(`program ${index + 1} of the README marked ${info} runs, and prints what it says`, () => {
      assert.match(block, /from "jsr:@moat\/rdma/, "it imports the library by its public name");
      const source = adapt(block)
        .replaceAll('"/tmp/', `"${directory}/`) // the other runtime's test runs at the same time
        .replaceAll('"jsr:@moat/rdma"', JSON.stringify(join(ROOT, "mod.ts")))
        .replaceAll('"jsr:@moat/rdma/verbs"', JSON.stringify(join(ROOT, "lib/verbs/mod.ts")));
      const file = join(directory, `program${index + 1}.ts`);
      writeFileSync(file, source);
      const permissions = block.includes('"node:fs"')
        ? ["--allow-ffi", "--allow-read"]
        : ["--allow-ffi"];
      const flags = here === "deno" ? ["run", "--no-prompt", "--no-lock", ...permissions] : [];
      const printed = run([...command(here), ...flags, file]).trim().split("\n");
      const promised = [...block.matchAll(/\/\/ prints (\w+(?: \w+)*)/g)].map((match) => match[1]);
      assert.ok(promised.length > 0, "it says what it prints");
      assert.deepEqual(printed, promised);
    });
  });
}
