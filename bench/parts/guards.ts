/**
 * Guards by size: where copying and guarding cross over.
 *
 * @module
 */
import type { ColumnResult, GuardPlan, GuardResult, Use } from "../programs/guards.ts";
import type { Context, Part, Result } from "../results.ts";
import { quantiles } from "../results.ts";
import { digits, median, ratio, sizeName } from "../stats.ts";
import { find, pivot, target } from "../support/collect.ts";
import { measureWithPeer, runtimesOf } from "../support/processes.ts";

const KIB = 1 << 10, MIB = 1 << 20;
/** How the uses are called in results. */
const TOUCHED: Record<Use, string> = { untouched: "untouched", byte: "byte", whole: "rewritten" };
const HOLDING = [0, 8];

function plan(holding: number, quick: boolean): GuardPlan {
  const all = [4, 16, 64, 256, 1024, 4096, 16384, 65536].map((kib) => kib * KIB);
  return {
    sizes: holding > 0 ? [64 * KIB, MIB, 4 * MIB] : all,
    hold: holding,
    rounds: quick ? 5 : 9,
    turn: quick ? 5 : 20,
  };
}

function result(
  runtime: string,
  holding: number,
  { bytes, buffers, inFlight }: GuardResult,
  { guard, use, us }: ColumnResult,
): Result {
  const released = holding === 0 ? "at once" : `when ${holding} others have come`;
  return {
    ...{ part: "guards", series: guard, runtime },
    at: { bytes, touched: TOUCHED[use], holding },
    ...{ value: median(us), unit: "us", statistic: "median", samples: us.length, rounds: us },
    quantiles: quantiles(us),
    how:
      `bench/programs/guards.ts over shm://: from send() to its promise, ${inFlight} of ${buffers} ` +
      `buffers in flight; the receiver releases ${released}`,
  };
}

async function run(context: Context): Promise<Result[]> {
  const results: Result[] = [];
  for (const runtime of runtimesOf(context)) {
    for (const holding of HOLDING) {
      context.say(`${runtime}, ${holding === 0 ? "released at once" : `holding ${holding}`}`);
      const lines = await measureWithPeer<GuardResult>(
        context,
        [runtime, runtime],
        "guards",
        plan(holding, context.quick),
        { transport: "shm", bytes: MIB },
      );
      for (const line of lines) {
        results.push(...line.columns.map((each) => result(runtime, holding, line, each)));
      }
    }
  }
  return results;
}

/** How "auto" does against the best of the guards that are safe, at the size where it does worst. */
function auto(results: readonly Result[], runtime: string, holding: number): string[] {
  const sizes = [...new Set(results.map(({ at }) => at["bytes"] as number))];
  return ["untouched", "byte", "rewritten"].flatMap((touched) => {
    const rounds = (guard: string, bytes: number, use = touched): number[] | undefined =>
      find(results, guard, runtime, { bytes, touched: use, holding })?.rounds;
    const against = sizes.flatMap((bytes) => {
      // A copy does not mind what becomes of the buffer: a byte more or less in it costs nothing.
      const safe = {
        copy: rounds("copy", bytes) ?? rounds("copy", bytes, "untouched"),
        cow: rounds("cow", bytes),
        wait: rounds("wait", bytes),
      };
      const own = rounds("auto", bytes);
      const others = Object.entries(safe).filter(([, us]) => us) as [string, number[]][];
      if (!own || others.length === 0) return [];
      const [name, us] = others.reduce((a, b) => median(a[1]) <= median(b[1]) ? a : b);
      return { value: ratio(own, us), where: ` (${name} at ${sizeName(bytes)})` };
    });
    if (against.length === 0) return [];
    const worst = against.reduce((a, b) => a.value >= b.value ? a : b);
    const what = `${runtime}${
      holding ? ", holding" : ""
    }, auto, ${touched}, as many times the best safe guard`;
    return target(`${what}${worst.where}`, worst.value, true, 1.1);
  });
}

/** What guards cost where the receiver releases at once. */
function costs(results: readonly Result[], runtime: string): string[] {
  const us = (bytes: number, guard: string, touched: string): number[] | undefined =>
    find(results, guard, runtime, { bytes, touched, holding: 0 })?.rounds;
  const lines: string[] = [];
  const cow = us(MIB, "cow", "untouched"), none = us(MIB, "none", "untouched");
  if (cow && none) {
    const name = `${runtime}, 1 MiB, cow untouched, as many times none`;
    lines.push(target(name, ratio(cow, none), true, 1.15));
  }
  const copy = us(4 * MIB, "copy", "rewritten");
  const guarded = ["cow", "wait"].map((guard) => us(4 * MIB, guard, "rewritten"));
  if (copy && guarded[0] && guarded[1]) {
    const best = Math.min(...guarded.map((each) => ratio(each!, copy)));
    const name = `${runtime}, 4 MiB rewritten, the better of cow and wait, as many times copy`;
    lines.push(target(name, best, true, 0.5));
  }
  return lines;
}

function print(results: readonly Result[]): string {
  const lines: string[] = [];
  for (const runtime of new Set(results.map((each) => each.runtime!))) {
    for (const holding of HOLDING) {
      const mine = results.filter((each) =>
        each.runtime === runtime && each.at["holding"] === holding
      );
      if (mine.length === 0) continue;
      lines.push(
        `${runtime}, us a message; the receiver releases a message ` +
          (holding === 0
            ? "at once"
            : `when ${holding} others have come (a rewrite meets it in flight)`),
        pivot(
          mine,
          ({ at }) => sizeName(at["bytes"] as number),
          ({ series, at }) => `${series} ${at["touched"]}`,
          ({ value }) => digits(value),
        ),
        ...auto(mine, runtime, holding),
        ...(holding === 0 ? costs(mine, runtime) : []),
        "",
      );
    }
  }
  return lines.join("\n").trimEnd();
}

/** Guards by size. */
export const guards: Part = {
  name: "guards",
  title: "Guards by size",
  about: "What a message costs with each guard, by its size and by what becomes of the buffer in " +
    "flight: where copying and guarding cross over.",
  packages: [],
  seconds: { quick: 90, full: 300 },
  run,
  print,
};
