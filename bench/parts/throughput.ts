/**
 * Throughput by transport and size, against each peer.
 *
 * @module
 */
import { fiPingpong } from "../peers/fi.ts";
import { iperf3 } from "../peers/iperf3.ts";
import { ucxBandwidth } from "../peers/ucx.ts";
import { READING } from "../programs/peer.ts";
import type { TransferPlan, TransferResult } from "../programs/transfer.ts";
import type { Context, Part, Result } from "../results.ts";
import { ratio, sizeName } from "../stats.ts";
import { type Figure, find, pivot, Rounds, target } from "../support/collect.ts";
import {
  measureSockets,
  measureWithPeer,
  pairName,
  pairsOf,
  runtimesOf,
} from "../support/processes.ts";

const KIB = 1 << 10, MIB = 1 << 20;
const SIZES = [64 * KIB, MIB, 4 * MIB, 16 * MIB];
const TRANSPORTS = ["shm", "tcp"] as const;
const SOCKETS = { shm: "unix", tcp: "tcp" } as const;

type Make = (series: string, touched: string, how: string, runtime?: string) => Figure;

/** All of one transport and size, each once. */
async function round(
  context: Context,
  rounds: Rounds,
  transport: typeof TRANSPORTS[number],
  bytes: number,
): Promise<void> {
  const time = context.quick ? 150 : 400, seconds = time / 1000;
  const plan: TransferPlan = { what: "throughput", bytes, time, spin: 0 };
  const figure: Make = (series, touched, how, runtime) => ({
    ...{ part: "throughput", series, at: { transport, bytes, touched }, unit: "GB/s", how },
    ...(runtime === undefined ? {} : { runtime }),
  });
  const both = (series: string, runtime: string, result: TransferResult, how: string): void => {
    for (const touched of ["untouched", "touched"] as const) {
      rounds.add(figure(series, touched, how, runtime), result[touched]!);
    }
  };
  const length = `${time} ms of messages of ${sizeName(bytes)}`;
  for (const pair of pairsOf(context)) {
    const [result] = await measureWithPeer<TransferResult>(context, pair, "transfer", plan, {
      transport,
    });
    const reading = READING[pair[1]];
    const how = `bench/programs/transfer.ts over ${transport}://, ${length} after a warm-up; ` +
      `touched: written by fill(), read by ${reading}`;
    both("moat", pairName(pair), result!, how);
  }
  const kind = SOCKETS[transport];
  for (const runtime of runtimesOf(context)) {
    const [result] = await measureSockets<TransferResult>(context, runtime, kind, plan);
    const name = runtime === "deno" ? "Deno.connect" : "Bun.connect";
    const how = `bench/programs/sockets.ts with ${name} (${kind}), ${length} after a warm-up`;
    both("own sockets", runtime, result!, how);
  }
  const ucx = await ucxBandwidth(transport, bytes, seconds);
  rounds.add(figure("ucx_perftest", "untouched", ucx.how), ucx.rate * bytes / 1e9);
  // About 10 and 1 GB/s decide how many messages a run is.
  const count = Math.max(10, Math.round((transport === "shm" ? 10e9 : 1e9) * seconds / 2 / bytes));
  const fi = await fiPingpong(transport, bytes, Math.min(count, 1000));
  rounds.add(figure("fi_pingpong", "untouched", `${fi.how}: one message at a time`), fi.speed);
  if (transport === "tcp") {
    const { speed, how } = await iperf3(bytes, 1, context.signal);
    rounds.add(figure("iperf3", "untouched", how), speed);
  }
}

async function run(context: Context): Promise<Result[]> {
  const rounds = new Rounds();
  for (const transport of TRANSPORTS) {
    for (const bytes of SIZES) {
      for (let turn = 0; turn < (context.quick ? 2 : 3); turn++) {
        context.say(`${transport}://, ${sizeName(bytes)}, round ${turn + 1}`);
        await round(context, rounds, transport, bytes);
      }
    }
  }
  return rounds.results();
}

function targets(results: readonly Result[]): string[] {
  const lines: string[] = [];
  const compare = (
    transport: string,
    runtime: string,
    touched: string,
    peer: string,
    wanted: number,
    own = peer === "own sockets" ? runtime : undefined,
  ): void => {
    const ours = find(results, "moat", runtime, { transport, bytes: MIB, touched });
    const other = find(results, peer, own, { transport, bytes: MIB, touched: "untouched" });
    if (!ours || !other) return;
    const name = `${runtime}, ${transport}://, 1 MiB ${touched}, as many times ${peer}`;
    lines.push(target(name, ratio(ours.rounds!, other.rounds!), false, wanted));
  };
  for (const runtime of new Set(results.flatMap((each) => each.runtime ?? []))) {
    compare("shm", runtime, "untouched", "ucx_perftest", 3);
    compare("shm", runtime, "touched", "ucx_perftest", 1.3);
    compare("tcp", runtime, "untouched", "iperf3", 1);
    compare("tcp", runtime, "untouched", "own sockets", runtime === "bun" ? 2 : 1);
  }
  return lines;
}

/** Throughput. */
export const throughput: Part = {
  name: "throughput",
  title: "Throughput by transport and size",
  about:
    "How fast messages go from one process to another, untouched and with every byte written " +
    "and read, beside UCX, libfabric, iperf3 and the runtimes' own sockets.",
  packages: ["ucx-utils", "libfabric-bin", "iperf3"],
  seconds: { quick: 120, full: 300 },
  run,
  print: (results) =>
    [
      "GB/s (10^9 bytes)",
      pivot(
        results,
        ({ at }) => `${at["transport"]} ${sizeName(at["bytes"] as number)} ${at["touched"]}`,
        ({ series, runtime }) => runtime ? `${series} ${runtime}` : series,
      ),
      ...targets(results),
    ].join("\n"),
};
