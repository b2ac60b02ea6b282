/**
 * What a call into C costs, by the benchmarks of `ffi_bench.ts`.
 *
 * @module
 */
import { fileURLToPath } from "node:url";
import type { Context, Part, Result, RuntimeName } from "../results.ts";
import { digits } from "../stats.ts";
import { pivot } from "../support/collect.ts";
import { Running, runtimesOf } from "../support/processes.ts";

/** What both `deno bench --json` and `support/bench.ts` on Bun print. */
interface Printed {
  benches: {
    group: string;
    name: string;
    baseline: boolean;
    results: {
      ok?: Record<"n" | "min" | "max" | "avg" | "p75" | "p99", number> & { p50?: number };
      failed?: unknown;
    }[];
  }[];
}

/** The words that run a file of benchmarks and print JSON. */
function command(
  { runtimes }: Pick<Context, "runtimes">,
  runtime: RuntimeName,
  file: string,
): string[] {
  const words = runtimes[runtime]!;
  if (runtime === "bun") return [...words, file, "--json"];
  return [words[0]!, "bench", "-A", "--no-check", "--json", file];
}

/** Runs a file of benchmarks on a runtime. */
export async function benchFile(
  context: Pick<Context, "runtimes">,
  runtime: RuntimeName,
  name: string,
  part: string,
): Promise<Result[]> {
  const file = fileURLToPath(new URL(`../${name}`, import.meta.url));
  const running = new Running(command(context, runtime, file));
  const { benches }: Printed = JSON.parse(await running.text());
  const by = runtime === "deno" ? "deno bench -A" : "bun";
  return benches.map(({ group, name: series, baseline, results: [result] }) => {
    if (!result?.ok) throw new Error(`${name}, ${series}: ${JSON.stringify(result?.failed)}`);
    const { avg, n } = result.ok;
    return {
      ...{ part, series, runtime, at: { group, ...(baseline ? { baseline: "yes" } : {}) } },
      ...{ value: avg, unit: "ns", statistic: "mean", samples: n },
      how: `${by} bench/${name}`,
    };
  });
}

async function run(context: Context): Promise<Result[]> {
  const results: Result[] = [];
  for (const runtime of runtimesOf(context)) {
    context.say(runtime);
    results.push(...await benchFile(context, runtime, "ffi_bench.ts", "ffi"));
  }
  return results;
}

/** Calls into C. */
export const ffi: Part = {
  name: "ffi",
  title: "Calls into C",
  about:
    "What a verb costs before the device has anything to do, and what the steps of a guard cost.",
  packages: [],
  seconds: { quick: 60, full: 60 },
  run,
  print: (results) =>
    "ns a call\n" + pivot(
      results,
      ({ series }) => series,
      ({ runtime }) => runtime!,
      ({ value }) => digits(value),
    ),
};
