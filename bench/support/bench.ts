/**
 * Benchmarks in groups and with baselines, on Deno by `deno bench`, on Bun by mitata:
 *
 *     deno bench -A bench/guard_bench.ts          deno bench -A --json bench/
 *     bun bench/guard_bench.ts                    bun bench/guard_bench.ts --json
 *     deno bench -A --filter cow bench/           bun bench/guard_bench.ts --filter cow
 *
 * What a file opens stays open until the process ends: `deno bench` begins when the file has been evaluated.
 * With MOAT_BENCH=once everything is called once and nothing is measured: to see that it works.
 *
 * @module
 */
import process from "node:process";
import { parseArgs } from "node:util";

/** What is measured: one call. If it is to be awaited, it has to be an `async` function: `deno bench` goes by that. */
export type Measured = () => void | Promise<void>;

/** A group; one of its benchmarks is what the others are compared with. */
export interface Group {
  name: string;
  /** Adds a benchmark; the first of a group is its baseline. */
  bench(name: string, fn: Measured): void;
}

interface Registered {
  group: string;
  name: string;
  baseline: boolean;
  fn: Measured;
}

const registered: Registered[] = [];
const once = process.env["MOAT_BENCH"] === "once";
const onBun = "Bun" in globalThis;

/** Begins a group. */
export function group(name: string): Group {
  let first = true;
  return {
    name,
    bench(text: string, fn: Measured): void {
      const baseline = first;
      first = false;
      if (!onBun && !once) Deno.bench({ name: text, group: name, baseline, fn });
      registered.push({ group: name, name: text, baseline, fn });
    },
  };
}

/** Prints why something is not measured. On stderr, so that `--json` stays what it is. */
export function leaveOut(what: string, why: string): void {
  console.error(`not measured: ${what}: ${why}`);
}

async function callOnce(): Promise<never> {
  for (const { name, group, fn } of registered) {
    const result = fn();
    if (result && fn.constructor.name !== "AsyncFunction") {
      throw new Error(`${group}, ${name}: write it as an async function`);
    }
    await result;
  }
  const groups = new Set(registered.map(({ group }) => group)).size;
  console.log(`${registered.length} benchmarks in ${groups} groups called once`);
  process.exit(0);
}

/** To be called, and awaited, at the end of a file. On Deno `deno bench` does it. */
export async function run(): Promise<void> {
  if (once) return await callOnce();
  if (!onBun) return;
  const { values } = parseArgs({
    options: { json: { type: "boolean", default: false }, filter: { type: "string", default: "" } },
  });
  const wanted = registered.filter(({ name }) => name.includes(values.filter));
  const mitata = await import("mitata@1.0.34");
  for (const name of new Set(wanted.map(({ group }) => group))) {
    mitata.group(name, () => {
      // A summary says how many times faster or slower than the baseline the others are.
      mitata.summary(() => {
        for (const each of wanted.filter(({ group }) => group === name)) {
          mitata.bench(each.name, each.fn).baseline(each.baseline);
        }
      });
    });
  }
  const { benchmarks } = await mitata.run({
    throw: true,
    format: values.json ? "quiet" : "mitata",
    colors: process.stdout.isTTY ?? false,
  });
  if (values.json) {
    const benches = benchmarks.map((trial, i) => asDeno(wanted[i]!, trial));
    console.log(JSON.stringify({ benches }));
  }
  process.exit(0);
}

// In the form of `deno bench --json`; nanoseconds there, too.
function asDeno({ group, name, baseline }: Registered, trial: MitataTrial): unknown {
  const stats = trial.runs[0]!.stats!;
  const { min, max, avg, p25, p50, p75, p99, p999 } = stats;
  const n = stats.samples.length;
  return {
    ...{ group, name, baseline },
    results: [{ ok: { n, min, max, avg, p25, p50, p75, p99, p999 } }],
  };
}

/** As much of mitata's result as is used here. */
interface MitataTrial {
  runs: readonly {
    stats?:
      | Record<"min" | "max" | "avg" | "p25" | "p50" | "p75" | "p99" | "p999", number> & {
        samples: readonly number[];
      }
      | undefined;
  }[];
}
