/**
 * What is measured where the device is: `rdma.ts PLAN` prints a JSON line for each {@linkcode Result}, and lines that
 * begin with `say` of what it does.
 *
 * Throughput is compared with `ib_read_bw` (large messages travel by RDMA READ) and `ib_send_bw`, half round trips with
 * `ib_send_lat`, all in turns.
 *
 * @module
 */
import process from "node:process";
import { benchFile } from "../parts/ffi.ts";
import { memoryResults } from "../parts/memory.ts";
import { rdmaBandwidth, rdmaLatency } from "../peers/perftest.ts";
import type { Context, Result } from "../results.ts";
import { sizeName } from "../stats.ts";
import { Rounds } from "../support/collect.ts";
import {
  addressFor,
  measureWithPeer,
  programOn,
  runtimesOf,
  serverAndClient,
} from "../support/processes.ts";
import type { LatencyResult, TransferPlan, TransferResult } from "./transfer.ts";

/** What is to be done. */
export interface RdmaPlan {
  runtimes: Context["runtimes"];
  quick: boolean;
  /** What device it is, for who reads the results. */
  where: string;
}

const KIB = 1 << 10, MIB = 1 << 20, SMALL = 8;
const plan: RdmaPlan = JSON.parse(process.argv[2]!);
const { quick, where } = plan, context: Pick<Context, "runtimes" | "signal"> = plan;
const host = process.env["MOAT_RDMA_ADDRESS"] ?? process.env["MOAT_VM_ADDRESS"] ?? "127.0.0.1";
const settings = { transport: "rdma", host, bytes: 16 * MIB };
const time = quick ? 500 : 1000, CONNECTIONS = 64;

function say(text: string): void {
  console.log(`say ${text}`);
}

async function throughput(rounds: Rounds, bytes: number, round: number): Promise<void> {
  const figure = (series: string, what: string, how: string): Omit<Result, "value"> => ({
    ...{ part: "rdma", series, at: { transport: "rdma", bytes, what }, unit: "GB/s" },
    how: `${how}, ${where}`,
  });
  const which = `${sizeName(bytes)}, round ${round + 1}`;
  for (const program of ["ib_read_bw", "ib_send_bw"] as const) {
    say(`${which}, ${program}`);
    const { speed, how } = await rdmaBandwidth(program, host, bytes);
    rounds.add(figure(program, "untouched", how), speed / 1000);
  }
  for (const runtime of runtimesOf(context)) {
    say(`${which}, ${runtime}`);
    const transfer: TransferPlan = { what: "throughput", bytes, time, spin: 0 };
    const pair = [runtime, runtime] as const;
    const [result] = await measureWithPeer<TransferResult>(
      context,
      pair,
      "transfer",
      transfer,
      settings,
    );
    const how = `bench/programs/transfer.ts over rdma://, ${time} ms of ${sizeName(bytes)}`;
    for (const what of ["untouched", "touched"] as const) {
      rounds.add({ ...figure("moat", what, how), runtime }, result![what]!);
    }
  }
}

async function latency(): Promise<void> {
  const at = { transport: "rdma", bytes: SMALL, what: "latency" };
  const figure = { part: "rdma", at, unit: "us", statistic: "median" };
  const { typical, how } = await rdmaLatency(host, SMALL);
  const peer: Result = {
    ...figure,
    series: "ib_send_lat",
    value: typical,
    how: `${how}, ${where}`,
  };
  console.log(JSON.stringify(peer));
  for (const runtime of runtimesOf(context)) {
    const spin = 10_000, transfer: TransferPlan = { what: "latency", bytes: SMALL, time, spin };
    const pair = [runtime, runtime] as const, spinning = { ...settings, spin };
    const [line] = await measureWithPeer<LatencyResult>(
      context,
      pair,
      "transfer",
      transfer,
      spinning,
    );
    const result: Result = {
      ...figure,
      ...{ series: "moat", runtime, value: line!.typical!, quantiles: line!.us },
      ...{ samples: line!.samples },
      how:
        `bench/programs/transfer.ts over rdma://, half of each round trip for ${time} ms; both sides ` +
        `look for a message for up to ${spin} us; ${where}`,
    };
    console.log(JSON.stringify(result));
  }
}

async function memory(): Promise<void> {
  for (const runtime of runtimesOf(context)) {
    const program = (role: string, address: string): string[] =>
      programOn(context, runtime, "memory", [role, address, String(CONNECTIONS)]);
    const lines = await serverAndClient(
      context,
      program("serve", addressFor("rdma", host)),
      (said) => program("connect", said.replace("ready ", "")),
    );
    for (const result of memoryResults("rdma", runtime, "rdma", JSON.parse(lines[0]!))) {
      console.log(JSON.stringify({ ...result, how: `${result.how}, ${where}` }));
    }
  }
}

/** What each verb costs, by `verbs_bench.ts`. */
async function verbs(): Promise<void> {
  for (const runtime of runtimesOf(context)) {
    for (const result of await benchFile(context, runtime, "verbs_bench.ts", "rdma")) {
      const { at, how } = result, what = String(at["group"]);
      console.log(JSON.stringify({
        ...result,
        at: { transport: "rdma", what: `${what}: ${result.series}` },
        series: "moat",
        how: `${how}, ${where}`,
      }));
    }
  }
}

const rounds = new Rounds(), sizes = quick ? [64 * KIB, MIB] : [16 * KIB, 64 * KIB, MIB];
for (let round = 0; round < (quick ? 1 : 3); round++) {
  for (const bytes of sizes) {
    await throughput(rounds, bytes, round);
  }
}
for (const result of rounds.results()) console.log(JSON.stringify(result));
say("latency");
await latency();
say(`${CONNECTIONS} connections`);
await memory();
say("verbs");
await verbs();
