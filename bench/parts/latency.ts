/**
 * Latency of small messages, and how many of them a second.
 *
 * @module
 */
import { fiPingpong } from "../peers/fi.ts";
import { ucxBandwidth, ucxLatency } from "../peers/ucx.ts";
import type { LatencyResult, RateResult, TransferPlan } from "../programs/transfer.ts";
import type { Context, Part, Quantiles, Result } from "../results.ts";
import { table } from "../stats.ts";
import { find, pivot, Rounds, target } from "../support/collect.ts";
import {
  measureSockets,
  measureWithPeer,
  pairName,
  pairsOf,
  runtimesOf,
} from "../support/processes.ts";

const BYTES = 8;
const TRANSPORTS = ["shm", "tcp"] as const;
const SOCKETS = { shm: "unix", tcp: "tcp" } as const;
/** Microseconds that recv() looks for a message before it sleeps, and what that is called. */
const SPINS = [[0, "moat"], [100, "moat, spinning"]] as const;

async function runLatency(context: Context): Promise<Result[]> {
  const results: Result[] = [], time = context.quick ? 500 : 2000, seconds = time / 1000;
  const add = (
    series: string,
    runtime: string | undefined,
    transport: string,
    value: number,
    how: string,
    more: Partial<Result>,
  ): void => {
    results.push({
      ...{ part: "latency", series, at: { transport, bytes: BYTES }, value, unit: "us", how },
      ...(runtime === undefined ? {} : { runtime }),
      ...more,
    });
  };
  const measured = ({ typical, us, samples }: LatencyResult): [number, Partial<Result>] => {
    const statistic = typical === undefined ? "median" : "median of batches";
    return [typical ?? us.p50, { statistic, quantiles: us, samples }];
  };
  for (const transport of TRANSPORTS) {
    context.say(`${transport}://`);
    const plan: TransferPlan = { what: "latency", bytes: BYTES, time, spin: 0 };
    const each = `half of a round trip, one at a time, for ${time} ms`;
    for (const pair of pairsOf(context)) {
      for (const [spin, series] of SPINS) {
        const settings = { transport, spin };
        const mine = { ...plan, spin };
        const [line] = await measureWithPeer<LatencyResult>(
          context,
          pair,
          "transfer",
          mine,
          settings,
        );
        const [value, more] = measured(line!);
        const how =
          `bench/programs/transfer.ts over ${transport}://, ${each}: the median of batches of 500, ` +
          `and quantiles of single ones; ` +
          (spin > 0 ? `both sides look for a message for up to ${spin} us` : "spin: 0");
        add(series, pairName(pair), transport, value, how, more);
      }
    }
    for (const runtime of runtimesOf(context)) {
      const kind = SOCKETS[transport];
      const [line] = await measureSockets<LatencyResult>(context, runtime, kind, plan);
      const [value, more] = measured(line!);
      const name = runtime === "deno" ? "Deno.connect" : "Bun.connect";
      const how = `bench/programs/sockets.ts with ${name} (${kind}), ${each}`;
      add("own sockets", runtime, transport, value, how, more);
    }
    const ucx = await ucxLatency(transport, BYTES, seconds);
    add("ucx_perftest", undefined, transport, ucx.typical, ucx.how, { statistic: "median" });
    const count = Math.round((transport === "shm" ? 5e5 : 1e4) * seconds);
    const fi = await fiPingpong(transport, BYTES, count);
    add("fi_pingpong", undefined, transport, fi.us, fi.how, { statistic: "mean" });
  }
  return results;
}

function printLatency(results: readonly Result[]): string {
  const names: (keyof Quantiles)[] = ["min", "p25", "p50", "p75", "p99", "p999", "max"];
  const rows = results.map(({ series, runtime, at, value, quantiles, statistic }) => [
    `${at["transport"]} ${series}${runtime ? ` ${runtime}` : ""}`,
    value.toFixed(2),
    ...(quantiles ? names.map((name) => quantiles[name]?.toFixed(2) ?? "") : names.map(() => "")),
    quantiles || statistic !== "mean" ? "" : "a mean",
  ]);
  const lines: string[] = [];
  for (const { runtime, value } of results.filter(({ series }) => series === "moat, spinning")) {
    const at = { transport: "shm" }, ucx = find(results, "ucx_perftest", undefined, at);
    const ours = find(results, "moat, spinning", runtime, at);
    if (!ucx || ours?.value !== value) continue;
    const name = `${runtime}, shm://, 8 B, spinning, as many times ucx_perftest`;
    lines.push(target(name, value / ucx.value, true, 3));
  }
  return [table([["us, half a round trip", "typical", ...names, ""], ...rows]), ...lines].join(
    "\n",
  );
}

async function runRate(context: Context): Promise<Result[]> {
  const rounds = new Rounds(), time = context.quick ? 300 : 1000;
  const plan: TransferPlan = { what: "rate", bytes: BYTES, time, spin: 0 };
  const unit = "messages/s", part = "rate";
  for (let turn = 0; turn < (context.quick ? 2 : 3); turn++) {
    for (const transport of TRANSPORTS) {
      context.say(`${transport}://, round ${turn + 1}`);
      const at = { transport, bytes: BYTES };
      for (const pair of pairsOf(context)) {
        const settings = { transport };
        const [line] = await measureWithPeer<RateResult>(context, pair, "transfer", plan, settings);
        const how =
          `bench/programs/transfer.ts over ${transport}://: send() of 256 messages, then ` +
          `await, for ${time} ms, until the receiver has the last`;
        const figure = { part, series: "moat", runtime: pairName(pair), at, unit, how };
        rounds.add(figure, line!.rate);
      }
      for (const runtime of runtimesOf(context)) {
        const kind = SOCKETS[transport];
        const [line] = await measureSockets<RateResult>(context, runtime, kind, plan);
        const how = `bench/programs/sockets.ts (${kind}): a write and a read for each message`;
        rounds.add({ part, series: "own sockets", runtime, at, unit, how }, line!.rate);
      }
      const ucx = await ucxBandwidth(transport, BYTES, time / 1000);
      rounds.add({ part, series: "ucx_perftest", at, unit, how: ucx.how }, ucx.rate);
    }
  }
  return rounds.results();
}

/** Latency. */
export const latency: Part = {
  name: "latency",
  title: "Latency of 8 bytes",
  about: "Half of a round trip of a small message, as a distribution: with receivers that sleep " +
    "until they are woken, and with receivers that look for some time first.",
  packages: ["ucx-utils", "libfabric-bin"],
  seconds: { quick: 30, full: 80 },
  run: runLatency,
  print: printLatency,
};

/** Message rate. */
export const rate: Part = {
  name: "rate",
  title: "Message rate",
  about: "How many messages of 8 bytes go from one process to another in a second.",
  packages: ["ucx-utils"],
  seconds: { quick: 30, full: 90 },
  run: runRate,
  print: (results) =>
    "messages a second\n" + pivot(
      results,
      ({ at }) => String(at["transport"]),
      ({ series, runtime }) => runtime ? `${series} ${runtime}` : series,
    ),
};
