/**
 * Measures everything and writes it as one page: `deno task report`.
 *
 *     --only PART        only this part; may be given several times
 *     --full             the full form of the benchmarks; the quick one takes less than 20 minutes on 2 cores
 *     --fresh            measure again what has been measured already
 *     --out DIRECTORY    where to write, instead of report
 *     --parts MODULE     the parts that this module exports, instead of bench/parts.ts
 *     --help             this text
 *
 * It writes index.html, which needs no other file; report.json, the figures; and a file for each part, as
 * soon as the part has ended. A run that was interrupted goes on where it was when it is started again: what was
 * measured with the same code on the same machine is taken over. The exit status is 1 if a part failed, and 130
 * after an interruption.
 *
 * @module
 */
import { resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { readFileSync } from "node:fs";
import type { Part } from "../bench/results.ts";
import { bundle } from "./report/bundle.ts";
import { setting } from "./report/machine.ts";
import { page } from "./report/page.ts";
import { Progress } from "./report/progress.ts";
import { runParts } from "./report/run.ts";
import { Store } from "./report/store.ts";

const PARTS = fileURLToPath(new URL("../bench/parts.ts", import.meta.url));

/** The text at the top of this file. */
function help(): string {
  const source = readFileSync(fileURLToPath(import.meta.url), "utf8");
  return source.slice(0, source.indexOf("\n * @module")).replace(/^\/?\*+ ?|^ \* ?/gm, "").trim();
}

function choose(parts: readonly Part[], names: readonly string[]): readonly Part[] {
  for (const name of names) {
    if (parts.some((part) => part.name === name)) continue;
    const known = parts.map((part) => part.name).join(", ");
    throw new Error(`there is no part "${name}"; the parts are: ${known}`);
  }
  return names.length === 0 ? parts : parts.filter(({ name }) => names.includes(name));
}

async function main(): Promise<number> {
  const { values: options } = parseArgs({
    args: Deno.args,
    options: {
      only: { type: "string", multiple: true, default: [] },
      full: { type: "boolean", default: false },
      fresh: { type: "boolean", default: false },
      out: { type: "string", default: "report" },
      parts: { type: "string", default: PARTS },
      help: { type: "boolean", default: false },
    },
  });
  if (options.help) {
    console.log(help());
    return 0;
  }
  const module = resolve(options.parts);
  const { parts }: { parts: readonly Part[] } = await import(pathToFileURL(module).href);
  const chosen = choose(parts, options.only);
  const { facts, origin, runtimes } = setting(!options.full);
  const store = new Store(resolve(options.out), origin);

  const finished = (part: Part): boolean => {
    const outcome = store.read(part.name);
    return outcome !== undefined && outcome.error === undefined;
  };
  const left = options.fresh ? chosen : chosen.filter((part) => !finished(part));
  const taken = chosen.length - left.length;
  if (taken > 0) console.log(`${taken} of ${chosen.length} parts have been measured before`);

  // Before anything is measured: whoever cannot make the page should not wait for the figures.
  const script = await bundle();
  const write = (): string => {
    const report = store.report(parts, facts);
    store.writeFile("report.json", JSON.stringify(report, null, 1));
    return store.writeFile("index.html", page({ report, parts, bundle: script }));
  };

  const interruption = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(name, () => interruption.abort(new Error(name)));
  }
  const progress = new Progress(
    left,
    !options.full,
    (text) => Deno.stdout.writeSync(new TextEncoder().encode(text)),
    Deno.stdout.isTerminal() ? Deno.consoleSize().columns : undefined,
  );
  try {
    await runParts(left, store, {
      ...{ module, quick: !options.full, runtimes, progress, signal: interruption.signal },
      finished: () => void write(),
    });
  } catch (error) {
    progress.stop();
    if (!interruption.signal.aborted) throw error;
    console.error("interrupted; the same command goes on from here");
    return 130;
  }
  const path = write();
  const failed = chosen.filter((part) => store.read(part.name)?.error !== undefined);
  if (failed.length > 0) console.log(`failed: ${failed.map(({ name }) => name).join(", ")}`);
  console.log(`the report is ${path}`);
  return failed.length > 0 ? 1 : 0;
}

try {
  Deno.exit(await main());
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
