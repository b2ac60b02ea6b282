/**
 * The transport over verbs against perftest, rdma-core's own benchmark, on the device that is there:
 *
 *     deno run -A bench/rdma.ts [--address IP] [--rounds N] [--runtimes deno,bun]
 *     deno task vm -- deno run -A bench/rdma.ts        on soft-RoCE
 *
 * Throughput against `ib_read_bw` (messages travel by RDMA READ), half round trips of 8 bytes against
 * `ib_send_lat`. Both are measured in turns; ratios are medians of the rounds' ratios.
 *
 * @module
 */
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { digits, median, ratio, sizeName, table } from "./stats.ts";
import type { LatencyResult, TransferPlan, TransferResult } from "./transfer.ts";

const KIB = 1 << 10, MIB = 1 << 20, LATENCY = 8;
const SIZES = [16 * KIB, 64 * KIB, MIB];
const PORT = 7480, PERFTEST_PORT = "18600";

const { values: options } = parseArgs({
  options: {
    address: { type: "string", default: Deno.env.get("MOAT_VM_ADDRESS") ?? "127.0.0.1" },
    rounds: { type: "string", default: "3" },
    runtimes: { type: "string", default: "deno,bun" },
  },
});
const address = options.address;

function command(runtime: string): string[] {
  if (runtime === "deno") return [Deno.execPath(), "run", "-A", "--no-check"];
  return JSON.parse(Deno.env.get("MOAT_BUN") ?? '["bun"]') as string[];
}

function program(name: string): string {
  return fileURLToPath(new URL(name, import.meta.url));
}

async function output(words: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(words[0]!, { args: words.slice(1) })
    .output();
  const decoder = new TextDecoder();
  if (!success) throw new Error(`${words.join(" ")}: ${decoder.decode(stderr)}`);
  return decoder.decode(stdout);
}

/** The columns of the last line of numbers that one of perftest's programs prints. */
async function perftest(name: string, args: string[]): Promise<number[]> {
  const words = [name, "-F", "-R", "-p", PERFTEST_PORT, ...args];
  const server = new Deno.Command(words[0]!, {
    args: words.slice(1),
    stdout: "null",
    stderr: "null",
  }).spawn();
  try {
    for (let tries = 0;; tries++) {
      try {
        const text = await output([...words, address]);
        const line = text.split("\n").filter((each) => /^\s*\d+\s+\d+\s+[\d.]+/.test(each)).at(-1);
        return line!.trim().split(/\s+/).map(Number);
      } catch (error) { // it may not listen yet
        if (tries === 20) throw error;
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
    }
  } finally {
    try {
      server.kill("SIGKILL");
    } catch {
      // It has ended by itself.
    }
    await server.status;
  }
}

/** MB/s (10^6 bytes) of reads of so many bytes. */
async function readBandwidth(bytes: number): Promise<number> {
  const count = Math.max(20, Math.min(1000, (32 * MIB) / bytes));
  const columns = await perftest("ib_read_bw", ["-s", String(bytes), "-n", String(count)]);
  return columns[3]! * MIB / 1e6; // its "MB/sec" are 2^20 bytes; the average
}

/** Microseconds: the typical half round trip. */
async function sendLatency(): Promise<number> {
  return (await perftest("ib_send_lat", ["-s", String(LATENCY), "-n", "2000"]))[4]!;
}

async function ours<T>(runtime: string, plan: TransferPlan): Promise<T> {
  const [first, ...words] = command(runtime), to = `rdma://${address}:${PORT}`;
  const peer = new Deno.Command(first!, {
    args: [...words, program("peer.ts"), to, String(plan.spin), String(64 * MIB)],
    stdout: "piped",
  }).spawn();
  try {
    await peer.stdout.getReader().read(); // "ready"
    const text = await output([
      ...command(runtime),
      program("transfer.ts"),
      to,
      JSON.stringify(plan),
    ]);
    return JSON.parse(text) as T;
  } finally {
    peer.kill("SIGKILL");
    await peer.status;
  }
}

const rounds = Number(options.rounds), time = 1000;
const rows: string[][] = [["", "perftest", "untouched", "ratio", "touched", "ratio"]];
for (const runtime of options.runtimes.split(",")) {
  for (const bytes of SIZES) {
    const c: number[] = [], untouched: number[] = [], touched: number[] = [];
    for (let round = 0; round < rounds; round++) {
      c.push(await readBandwidth(bytes));
      const result = await ours<TransferResult>(runtime, { bytes, time, spin: 0 });
      untouched.push(result.untouched * 1000);
      touched.push(result.touched * 1000);
    }
    const cells = [untouched, touched].flatMap((own) => [
      `${digits(median(own))} MB/s`,
      `${digits(ratio(own, c))}x`,
    ]);
    rows.push([`${runtime} ${sizeName(bytes)}`, `${digits(median(c))} MB/s`, ...cells]);
  }
  const c: number[] = [], own: number[] = [];
  for (let round = 0; round < rounds; round++) {
    c.push(await sendLatency());
    own.push((await ours<LatencyResult>(runtime, { bytes: LATENCY, time, spin: 10_000 })).us);
  }
  const cells = [`${digits(median(own))} us`, `${digits(ratio(own, c))}x`];
  rows.push([`${runtime} ${LATENCY} B`, `${digits(median(c))} us`, ...cells, "", ""]);
}
console.log(table(rows));
