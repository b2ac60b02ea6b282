/**
 * `tcp://` on the loopback interface against iperf3 and the runtimes' own sockets, with messages of 1 MiB, all in
 * turns in one run:
 *
 *     deno run -A bench/tcp_bench.ts [--rounds N] [--time MS] [--runtimes deno,bun]
 *
 * @module
 */
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { digits, median, ratio, table } from "./stats.ts";
import type { TransferPlan, TransferResult } from "./transfer.ts";

const MESSAGE = 1 << 20, IPERF_PORT = "18650";
const decoder = new TextDecoder();

/** What is measured. */
export interface TcpOptions {
  /** The commands that run a program, by the runtime's name. */
  runtimes: Readonly<Record<string, readonly string[]>>;
  rounds: number;
  /** Milliseconds of each part. */
  time: number;
}

/** GB/s (10^9 bytes), round by round. */
export interface TcpResult {
  runtime: string;
  untouched: number[];
  touched: number[];
  iperf3: number[];
  sockets: number[];
}

function program(name: string): string {
  return fileURLToPath(new URL(name, import.meta.url));
}

// Runs a server until its client has ended; returns what the client printed last.
async function both(
  server: readonly string[],
  client: (said: string) => readonly string[],
): Promise<string> {
  const child = spawn(server[0]!, server.slice(1), { stdio: ["ignore", "pipe", "inherit"] });
  try {
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const said = String((await lines.next()).value), [first, ...args] = client(said);
    const other = spawn(first!, args, { stdio: ["ignore", "pipe", "inherit"] });
    const pieces: Uint8Array[] = [];
    for await (const piece of other.stdout) pieces.push(piece as Uint8Array);
    return pieces.map((piece) => decoder.decode(piece)).join("").trim();
  } finally {
    child.kill("SIGKILL");
  }
}

async function iperf3(time: number): Promise<number> {
  const text = await both(
    ["iperf3", "-s", "-p", IPERF_PORT, "--forceflush"],
    () => [
      ...["iperf3", "-c", "127.0.0.1", "-p", IPERF_PORT, "-l", "1M", "-J"],
      ...["-t", String(Math.max(1, Math.round(time / 1000)))],
    ],
  );
  return JSON.parse(text).end.sum_received.bits_per_second / 8e9;
}

/** Measures all in turns. */
export async function tcp({ runtimes, rounds, time }: TcpOptions): Promise<TcpResult[]> {
  const results = Object.keys(runtimes).map((runtime): TcpResult => ({
    ...{ runtime, untouched: [], touched: [], iperf3: [], sockets: [] },
  }));
  const plan: TransferPlan = { bytes: MESSAGE, time, spin: 0 };
  for (let round = 0; round < rounds; round++) {
    const reference = await iperf3(time);
    for (const result of results) {
      const command = runtimes[result.runtime]!;
      const peer = [...command, program("peer.ts"), "tcp://127.0.0.1:0", "0", String(64 << 20)];
      const own: TransferResult = JSON.parse(
        await both(peer, (said) => [
          ...[...command, program("transfer.ts")],
          ...[said.replace("ready ", ""), JSON.stringify(plan)],
        ]),
      );
      const sockets = [...command, program("sockets.ts")];
      const plain = await both(
        [...sockets, "receive"],
        (port) => [...sockets, "send", port, String(time)],
      );
      result.untouched.push(own.untouched);
      result.touched.push(own.touched);
      result.iperf3.push(reference);
      result.sockets.push(Number(plain));
    }
  }
  return results;
}

/** The table. */
export function report(results: readonly TcpResult[]): string {
  return table([
    ["GB/s, 1 MiB", "untouched", "touched", "iperf3", "own sockets", "of iperf3", "of sockets"],
    ...results.map(({ runtime, untouched, touched, iperf3, sockets }) => [
      runtime,
      ...[untouched, touched, iperf3, sockets].map((each) => digits(median(each))),
      ...[iperf3, sockets].map((other) => `${digits(ratio(untouched, other))}x`),
    ]),
  ]);
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      rounds: { type: "string", default: "5" },
      time: { type: "string", default: "1000" },
      runtimes: { type: "string", default: "deno,bun" },
    },
  });
  const command = (name: string): string[] => {
    const words: string[] = JSON.parse(process.env[`MOAT_${name.toUpperCase()}`] ?? `["${name}"]`);
    return name === "deno" ? [...words, "run", "-A", "--no-check"] : words;
  };
  const names = values.runtimes.split(",");
  console.log(report(
    await tcp({
      runtimes: Object.fromEntries(names.map((name) => [name, command(name)])),
      ...{ rounds: Number(values.rounds), time: Number(values.time) },
    }),
  ));
}
