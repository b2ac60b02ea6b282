/**
 * What an operation costs by how many are in flight.
 *
 * @module
 */
import type { InFlightPlan, InFlightResult } from "../programs/inflight.ts";
import type { Context, Part, Result } from "../results.ts";
import { quantiles } from "../results.ts";
import { median, sizeName } from "../stats.ts";
import { find, pivot, target } from "../support/collect.ts";
import { measureWithPeer, runtimesOf } from "../support/processes.ts";

const NUMBERS = [10, 100, 1000, 10_000, 100_000];
/** The operation, its bytes, and its guard. */
const KINDS = [
  ["send", 64, "auto"],
  ["send", 4 << 10, "cow"],
  ["send", 64 << 10, "cow"],
  ["recv", 64, "auto"],
] as const;
const GUARDED: Record<typeof KINDS[number][2], string> = {
  auto: "copied into the ring, or queued as a copy when that is full",
  cow: 'guard "cow"',
};

async function run(context: Context): Promise<Result[]> {
  const results: Result[] = [];
  for (const runtime of runtimesOf(context)) {
    for (const [what, bytes, guard] of KINDS) {
      context.say(`${runtime}, ${what}() of ${sizeName(bytes)}`);
      const plan: InFlightPlan = {
        ...{ what, bytes, guard, inFlight: NUMBERS, rounds: context.quick ? 3 : 7 },
        atLeast: context.quick ? 20_000 : 50_000,
      };
      const pair = [runtime, runtime] as const, settings = { transport: "shm" };
      const lines = await measureWithPeer<InFlightResult>(
        context,
        pair,
        "inflight",
        plan,
        settings,
      );
      for (const { inFlight, ns, cpu, buffers } of lines) {
        const figure = { part: "inflight", runtime, unit: "ns", statistic: "median" };
        const at = { transport: "shm", bytes, inFlight, operation: what };
        const guarded = what === "recv" ? 'guard "none"' : GUARDED[guard];
        const how =
          `bench/programs/inflight.ts over shm://: ${what}() of ${sizeName(bytes)} (${guarded}), ` +
          `${inFlight} in flight in ${buffers} buffers; the oldest is awaited before the next is begun; `;
        const clock = "the clock's time for one", own = "the processor's time in this process";
        for (
          const [series, values, time] of [["moat", ns, clock], ["processor", cpu, own]] as const
        ) {
          results.push({
            ...figure,
            ...{ series, at, value: median(values), samples: values.length, rounds: values },
            quantiles: quantiles(values),
            how: how + time,
          });
        }
      }
    }
  }
  return results;
}

function targets(results: readonly Result[]): string[] {
  const lines: string[] = [];
  for (const runtime of new Set(results.map((each) => each.runtime!))) {
    for (const [operation, bytes] of KINDS) {
      const at = (inFlight: number): Result | undefined =>
        find(results, "moat", runtime, { operation, bytes, inFlight });
      const few = at(10), many = at(100_000);
      if (!few || !many) continue;
      const name = `${runtime}, ${operation}() of ${
        sizeName(bytes)
      }: 100,000 in flight, as many times 10`;
      lines.push(target(name, many.value / few.value, true, 1.25));
    }
  }
  return lines;
}

/** Operations in flight. */
export const inflight: Part = {
  name: "inflight",
  title: "Operations in flight",
  about: "What an operation costs, from its call to its promise, when so many are kept in flight.",
  packages: [],
  seconds: { quick: 60, full: 180 },
  run,
  print: (results) =>
    [
      "ns an operation",
      pivot(
        results,
        ({ at, runtime, series }) =>
          `${runtime} ${at["operation"]}() ${sizeName(at["bytes"] as number)}` +
          (series === "moat" ? "" : `, ${series}`),
        ({ at }) => String(at["inFlight"]),
        ({ value }) => value.toFixed(0),
      ),
      ...targets(results),
    ].join("\n"),
};
