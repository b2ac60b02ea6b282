/**
 * The benchmarks: `deno task bench`.
 *
 *     PART …             only these parts; `--list` says which there are
 *     --quick            a short form, for a first look
 *     --runtimes LIST    deno,bun by default
 *     --json FILE        writes everything that was measured, round by round
 *     --list             says what the parts are and how long they take
 *
 * All that is compared is measured in turns in one run, and reported as medians and as ratios. A line with a target
 * ends in "ok" or "missed"; the exit status says only whether the measuring worked.
 *
 * @module
 */
import { writeFileSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "node:util";
import { machineFacts } from "../bench/machine.ts";
import { parts } from "../bench/parts.ts";
import type { Context, Part, Report, RuntimeName } from "../bench/results.ts";
import { table } from "../bench/stats.ts";
import { ensurePackages, run } from "./apt.ts";

const BUN = "1.4.5";

/** A runtime that programs can be run on. */
export interface Runtime {
  version: string;
  /** The words that run a program. */
  words: string[];
}

/**
 * Finds the runtimes of a list like "deno,bun": in MOAT_DENO and MOAT_BUN as the tests are told, else on PATH; Bun
 * also by `npx`.
 *
 * @throws {Error} if there is one that cannot be run
 */
export function findRuntimes(list: string): Partial<Record<RuntimeName, Runtime>> {
  const found: Partial<Record<RuntimeName, Runtime>> = {};
  for (const name of list.split(",")) {
    if (name !== "deno" && name !== "bun") {
      throw new Error(
        `there is no runtime "${name}"; give deno, bun, or both separated by a comma`,
      );
    }
    found[name] = find(name);
  }
  return found;
}

function find(name: RuntimeName): Runtime {
  const given = process.env[`MOAT_${name.toUpperCase()}`];
  const here = ("Bun" in globalThis ? "bun" : "deno") === name ? [process.execPath] : [name];
  const commands: string[][] = [given ? JSON.parse(given) as string[] : here];
  if (name === "bun") commands.push(["npx", "-y", `bun@${BUN}`]);
  const version = name === "deno" ? "Deno.version.deno" : "Bun.version";
  const ask = `import process from "node:process";` +
    `console.log(JSON.stringify([${version}, process.execPath]))`;
  for (const [first, ...words] of commands) {
    const question = name === "deno" ? ["eval", ask] : ["-e", ask];
    const { status, stdout } = run(first!, [...words, ...question]);
    if (status !== 0) continue;
    // The path, not what found it: starting npx takes longer than much of what is measured.
    const [said, path] = JSON.parse(stdout.trim().split("\n").at(-1)!) as [string, string];
    return { version: said, words: name === "deno" ? [path, "run", "-A", "--no-check"] : [path] };
  }
  throw new Error(
    name === "bun"
      ? `Bun is missing; install it with:\n  npm install -g bun@${BUN}`
      : "Deno is missing; install it with:\n  npm install -g deno",
  );
}

/** The parts of these names; all for none. */
export function chooseParts(names: readonly string[]): Part[] {
  const known = parts.map(({ name }) => name);
  const unknown = names.filter((name) => !known.includes(name));
  if (unknown.length > 0) {
    throw new Error(`there is no part "${unknown[0]}"; there are ${known.join(", ")}`);
  }
  return parts.filter(({ name }) => names.length === 0 || names.includes(name));
}

/**
 * Runs parts, one after the other, and adds to the report what they give. A part that cannot run does not keep the others
 * from it.
 *
 * @param done is called after each part
 */
export async function runParts(
  chosen: readonly Part[],
  context: Context,
  report: Report,
  done: (part: Part) => void = () => {},
): Promise<void> {
  for (const part of chosen) {
    const start = performance.now();
    try {
      ensurePackages([...part.packages]);
      const say = (line: string): void => context.say(`${part.name}: ${line}`);
      const results = await part.run({ ...context, say });
      report.results.push(...results);
      delete report.failed[part.name];
    } catch (error) {
      context.signal?.throwIfAborted();
      report.failed[part.name] = error instanceof Error ? error.message : String(error);
    }
    report.seconds[part.name] = Math.round((performance.now() - start) / 1000);
    done(part);
  }
}

/** A report with nothing in it yet. */
export function emptyReport(
  runtimes: Partial<Record<RuntimeName, Runtime>>,
  quick: boolean,
): Report {
  const versions = Object.entries(runtimes).map(([name, { version }]) => [name, version]);
  return {
    facts: { ...machineFacts(), ...Object.fromEntries(versions) },
    ...{ quick, date: new Date().toISOString(), seconds: {}, results: [], failed: {} },
  };
}

async function main(): Promise<boolean> {
  const { values: options, positionals } = parseArgs({
    args: process.argv.slice(2),
    allowPositionals: true,
    options: {
      quick: { type: "boolean", default: false },
      list: { type: "boolean", default: false },
      runtimes: { type: "string", default: "deno,bun" },
      json: { type: "string" },
    },
  });
  const chosen = chooseParts(positionals);
  if (options.list) {
    for (const { name, seconds, about, packages } of chosen) {
      const peers = packages.length > 0 ? ` (${packages.join(", ")})` : "";
      const time = `${seconds.quick} s quick, ${seconds.full} s`;
      console.log(`${name}: ${time}${peers}\n    ${about}`);
    }
    return true;
  }
  const { quick } = options, runtimes = findRuntimes(options.runtimes);
  const words = Object.entries(runtimes).map(([name, runtime]) => [name, runtime.words]);
  const report = emptyReport(runtimes, quick);
  console.log(table(Object.entries(report.facts).map(([name, fact]) => [`${name}:`, fact])));
  const say = (line: string): void => console.error(`  ${line}`);
  await runParts(chosen, { quick, runtimes: Object.fromEntries(words), say }, report, (part) => {
    console.log(`\n${part.title}\n${part.about}\n`);
    const failure = report.failed[part.name];
    const own = report.results.filter((result) => result.part === part.name);
    console.log(failure === undefined ? part.print(own) : `FAILED: ${failure}`);
    if (options.json !== undefined) writeFileSync(options.json, JSON.stringify(report, null, 1));
  });
  const seconds = Object.values(report.seconds).reduce((a, b) => a + b, 0);
  console.log(`\n${report.results.length} figures in ${seconds} s`);
  return Object.keys(report.failed).length === 0;
}

if (import.meta.main) {
  try {
    process.exit(await main() ? 0 : 1);
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
}
