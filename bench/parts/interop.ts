/**
 * Brustoloni's experiment of 1999: a file server and a client, with and without copying in the network, with and
 * without copying in file I/O.
 *
 *     deno run -A bench/interop_bench.ts [--transports shm,tcp] [--runtimes deno,bun] [--bytes N] [--host IP]
 *     deno task vm -- deno run -A bench/interop_bench.ts --transports rdma --host 10.0.0.1 --bytes 67108864
 *
 * @module
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { InteropPlan, InteropUsage } from "./interop.ts";
import { digits, median, table } from "./stats.ts";

const PROGRAM = fileURLToPath(new URL("interop.ts", import.meta.url));
const GIB = 1 << 30;

/** What is measured. */
export interface InteropOptions {
  transports: readonly string[];
  /** The commands that run a program, by the runtime's name. */
  runtimes: Readonly<Record<string, readonly string[]>>;
  /** Of the file. */
  bytes: number;
  rounds: number;
  /** Where to listen, for transports with addresses. */
  host: string;
  /** Where the files are put: a directory on a disk. */
  directory: string;
}

/** One way of doing it, round by round. */
export interface InteropResult {
  transport: string;
  runtime: string;
  copyNetwork: boolean;
  copyFile: boolean;
  /** GB/s (10^9 bytes) over both, from the first byte read to the last byte written. */
  throughput: number[];
  /** Seconds of the processor per GiB: of the server, and of the client. */
  serverCpu: number[];
  clientCpu: number[];
  /** Parts of the file that went past the page cache, at the server and at the client. */
  direct: [number, number];
  /** Bytes that our own code copied for each byte of the file, in both processes. */
  copies: number;
}

interface Program {
  line<T>(): Promise<T>;
  end(): Promise<void>;
}

function start(command: readonly string[], args: string[]): Program {
  const [program, ...words] = [...command, PROGRAM, ...args] as [string, ...string[]];
  const child = spawn(program, words, { stdio: ["ignore", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const exit = new Promise<void>((resolve, reject) =>
    child.on(
      "close",
      (status) => status === 0 ? resolve() : reject(new Error(`interop.ts ended with ${status}`)),
    )
  );
  exit.catch(() => {});
  return {
    async line<T>(): Promise<T> {
      const { value } = await lines.next();
      if (value === undefined) await exit;
      return JSON.parse(value!) as T;
    },
    end: () => exit,
  };
}

async function sha256(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash);
  return hash.digest("hex");
}

let addresses = 0;

async function once(
  transport: string,
  command: readonly string[],
  host: string,
  plan: InteropPlan,
): Promise<[InteropUsage, InteropUsage]> {
  const at = transport === "shm"
    ? `shm://interop-${process.pid}-${addresses++}`
    : `${transport}://${host}:0`;
  const server = start(command, ["serve", at, JSON.stringify(plan)]);
  const { ready } = await server.line<{ ready: string }>();
  const client = start(command, ["fetch", ready, JSON.stringify(plan)]);
  const usages = await Promise.all([server.line<InteropUsage>(), client.line<InteropUsage>()]);
  await Promise.all([server.end(), client.end()]);
  return usages;
}

const WAYS = [[true, true], [true, false], [false, true], [false, false]] as const;

/** Measures every way in turns, round after round, and checks that the file arrives. */
export async function interop(options: InteropOptions): Promise<InteropResult[]> {
  const { bytes, host } = options;
  const directory = mkdtempSync(join(options.directory, ".interop-"));
  const source = join(directory, "source"), target = join(directory, "target");
  try {
    const piece = new Uint8Array(1 << 20).map((_, i) => i * 2654435761 >>> 13);
    for (let at = 0; at < bytes; at += piece.length) {
      new DataView(piece.buffer).setUint32(0, at);
      writeFileSync(source, piece.subarray(0, Math.min(piece.length, bytes - at)), { flag: "a" });
    }
    const expected = await sha256(source), results: InteropResult[] = [];
    for (const transport of options.transports) {
      for (const [runtime, command] of Object.entries(options.runtimes)) {
        const mine = WAYS.map(([copyNetwork, copyFile]): InteropResult => ({
          ...{ transport, runtime, copyNetwork, copyFile, throughput: [], serverCpu: [] },
          ...{ clientCpu: [], direct: [0, 0], copies: 0 },
        }));
        for (let round = 0; round < options.rounds; round++) {
          for (const result of mine) {
            const { copyFile, copyNetwork } = result;
            const plan: InteropPlan = {
              ...{ source, target, bytes, message: 1 << 20, depth: 8, copyFile, copyNetwork },
            };
            const [server, client] = await once(transport, command, host, plan);
            if (round === 0 && await sha256(target) !== expected) {
              throw new Error(`${transport}, ${runtime}: what arrived is not what was sent`);
            }
            result.throughput.push(
              bytes / Math.max(server.milliseconds, client.milliseconds) / 1e6,
            );
            result.serverCpu.push(server.cpu / 1e6 * GIB / bytes);
            result.clientCpu.push(client.cpu / 1e6 * GIB / bytes);
            result.direct = [server.direct / bytes, client.direct / bytes];
            result.copies = (server.copied + client.copied) / bytes;
          }
        }
        results.push(...mine);
      }
    }
    return results;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** The table, and what it says of the paper's claim. */
export function report(results: readonly InteropResult[]): string {
  const cost = ({ serverCpu, clientCpu }: InteropResult): number =>
    median(serverCpu.map((seconds, i) => seconds + clientCpu[i]!));
  const said = (copy: boolean): string => copy ? "copied" : "not copied";
  const lines = [table([
    ["", "network", "file", "GB/s", "server s/GiB", "client s/GiB", "direct", "own copies"],
    ...results.map((result) => [
      `${result.transport}, ${result.runtime}`,
      said(result.copyNetwork),
      said(result.copyFile),
      digits(median(result.throughput)),
      digits(median(result.serverCpu)),
      digits(median(result.clientCpu)),
      result.direct.map((part) => `${Math.round(part * 100)} %`).join(" "),
      digits(result.copies),
    ]),
  ])];
  for (let i = 0; i < results.length; i += WAYS.length) {
    const [both, network, file, neither] = results.slice(i, i + WAYS.length) as [
      ...[InteropResult, InteropResult, InteropResult, InteropResult],
    ];
    const saved = (result: InteropResult): number => cost(both) - cost(result);
    const [alone, other, together] = [saved(network), saved(file), saved(neither)];
    const most = together >= Math.max(alone, other);
    lines.push(
      `${both.transport}, ${both.runtime}: of ${
        digits(cost(both))
      } s/GiB, not copying in the file saves ` +
        `${digits(alone)}, in the network ${digits(other)}, in both ${digits(together)}: ` +
        (most ? "the greatest benefit is in both" : "both is not the best") +
        (together >= alone + other ? ", more than the sum" : ", less than the sum"),
    );
  }
  return lines.join("\n");
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      transports: { type: "string", default: "shm,tcp" },
      runtimes: { type: "string", default: "Bun" in globalThis ? "bun" : "deno" },
      bytes: { type: "string", default: String(GIB) },
      rounds: { type: "string", default: "3" },
      host: { type: "string", default: "127.0.0.1" },
      directory: { type: "string", default: dirname(dirname(PROGRAM)) },
    },
  });
  const command = (name: string): string[] => {
    const given = process.env[`MOAT_${name.toUpperCase()}`];
    const here = "Bun" in globalThis ? "bun" : "deno";
    const words = given ? JSON.parse(given) : name === here ? [process.execPath] : [name];
    return name === "deno" ? [...words, "run", "-A"] : words;
  };
  console.log(`${availableParallelism()} processors, a file of ${values.bytes} bytes`);
  const results = await interop({
    transports: values.transports.split(","),
    runtimes: Object.fromEntries(values.runtimes.split(",").map((name) => [name, command(name)])),
    ...{ bytes: Number(values.bytes), rounds: Number(values.rounds) },
    ...{ host: values.host, directory: values.directory },
  });
  console.log(report(results));
}
