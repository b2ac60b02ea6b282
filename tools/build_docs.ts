/**
 * `deno task docs` writes the parts of docs/ that are made of tables in the code: between
 * `<!-- NAME: made by deno task docs -->` and `<!-- end -->`. With `--check` it only compares.
 *
 * @module
 */
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { systemCallTable } from "./docs/system_calls.ts";
import { errorSections } from "./docs/troubleshooting.ts";

const DOCS = fileURLToPath(new URL("../docs", import.meta.url));

const PARTS: Record<string, () => string> = {
  "error codes": errorSections,
  "system calls": systemCallTable,
};

/** A document with its parts made anew. Adds the names of those it has to `seen`. */
function rebuild(text: string, seen: Set<string>): string {
  const part = /^(<!-- (.+): made by deno task docs -->\n).*?^(<!-- end -->)$/gms;
  return text.replace(part, (_, begin: string, name: string, end: string) => {
    const make = PARTS[name];
    if (!make) throw new Error(`there is no part "${name}"; there are ${Object.keys(PARTS)}`);
    seen.add(name);
    return `${begin}\n${make()}\n${end}`;
  });
}

/** The text as `deno fmt` leaves it. */
function formatted(text: string): string {
  const args = ["fmt", "--ext", "md", "-"];
  const { status, stdout, stderr } = spawnSync(Deno.execPath(), args, {
    cwd: DOCS,
    input: text,
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`deno fmt failed: ${stderr}`);
  return stdout;
}

function main(args: string[]): number {
  const check = args.includes("--check");
  const unknown = args.find((arg) => arg !== "--check");
  if (unknown !== undefined) {
    console.error(`unknown argument ${unknown}; usage: deno task docs [--check]`);
    return 2;
  }
  const seen = new Set<string>();
  let stale = 0;
  for (const name of readdirSync(DOCS).filter((name) => name.endsWith(".md"))) {
    const file = join(DOCS, name), is = readFileSync(file, "utf8");
    const raw = rebuild(is, seen), should = raw === is ? is : formatted(raw);
    if (should === is) continue;
    stale++;
    if (check) console.error(`docs/${name} is not what the tables say: run deno task docs`);
    else {
      writeFileSync(file, should);
      console.log(`docs/${name}`);
    }
  }
  const missing = Object.keys(PARTS).filter((name) => !seen.has(name));
  for (const name of missing) console.error(`no file of docs/ has a place for "${name}"`);
  return missing.length > 0 || (check && stale > 0) ? 1 : 0;
}

if (import.meta.main) Deno.exit(main(Deno.args));
