/**
 * The benchmarks: `deno task bench`.
 *
 *     --quick            a short form, for a first look
 *     --only TEXT        only the parts with TEXT in their names: guards, holding, throughput, latency, tcp,
 *                        interop
 *     --runtimes LIST    deno,bun by default
 *     --json FILE        writes everything that was measured, round by round
 *
 * All that is compared is measured in turns in one run, and reported as medians and as ratios. A line
 * with a target ends in "ok" or "missed"; the exit status says only whether the measuring worked.
 *
 * @module
 */
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { ColumnResult, GuardPlan, GuardResult, Use } from "../bench/guards.ts";
import { interop, type InteropResult, report as interopReport } from "../bench/interop_bench.ts";
import { machineFacts } from "../bench/machine.ts";
import { READING } from "../bench/peer.ts";
import { digits, median, ratio, sizeName, table } from "../bench/stats.ts";
import { report as tcpReport, tcp, type TcpResult } from "../bench/tcp_bench.ts";
import type { LatencyResult, TransferPlan, TransferResult } from "../bench/transfer.ts";
import { UCX_TLS, ucxBandwidth, ucxLatency } from "../bench/ucx.ts";
import { ensurePackages, run } from "./apt.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const KIB = 1 << 10, MIB = 1 << 20;

type Name = "deno" | "bun";
interface Runtime {
  name: Name;
  version: string;
  command: string[];
}

interface Check {
  name: string;
  value: number;
  target: string;
  ok: boolean;
}
const checks: Check[] = [];

function check(name: string, value: number, atMost: boolean, target: number, where = ""): void {
  const ok = atMost ? value <= target : value >= target;
  const wanted = `${atMost ? "at most" : "at least"} ${target}x`;
  checks.push({ name, value, target: wanted, ok });
  const what = `${digits(value)}x${where}, target ${wanted}`;
  console.log(`  ${ok ? "ok    " : "missed"}  ${name}: ${what}`);
}

// ---- processes

function runtimes(list: string): Runtime[] {
  return list.split(",").map((name) => {
    if (name === "deno") {
      return { name, version: Deno.version.deno, command: [Deno.execPath(), "run", "-A"] };
    }
    if (name !== "bun") throw new Error(`no such runtime: ${name}`);
    // MOAT_BUN is how the tests are told, too; npx has the path of the one it fetched.
    const ask = "console.log(JSON.stringify([Bun.version, process.execPath]))";
    const given: string[] = JSON.parse(Deno.env.get("MOAT_BUN") ?? '["bun"]');
    for (const command of [given, ["npx", "-y", "bun@1.4.5"]]) {
      const { status, stdout } = run(command[0]!, [...command.slice(1), "-e", ask]);
      if (status !== 0) continue;
      const [version, path] = JSON.parse(stdout.trim().split("\n").at(-1)!) as [string, string];
      return { name, version, command: [path] };
    }
    throw new Error("Bun is missing; install it with:\n  npm install -g bun@1.4.5");
  });
}

function spawn({ command }: Runtime, program: string, args: string[]): Deno.ChildProcess {
  return new Deno.Command(command[0]!, {
    args: [...command.slice(1), `bench/${program}.ts`, ...args],
    cwd: ROOT,
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
}

let addresses = 0;

/** Runs a sending program against a peer; hands over each JSON line that it prints. */
async function runPair<T>(
  [from, to]: readonly [Runtime, Runtime],
  program: string,
  plan: unknown,
  { spin = 0, seen = () => {} }: { spin?: number; seen?: (line: T) => void } = {},
): Promise<T[]> {
  const address = `shm://bench-${Deno.pid}-${addresses++}`;
  const peer = spawn(to, "peer", [address, String(spin)]);
  const said = peer.stdout.pipeThrough(new TextDecoderStream()).getReader();
  const lines: T[] = [];
  try {
    if (!(await said.read()).value?.startsWith("ready")) throw new Error("the peer did not start");
    const sender = spawn(from, program, [address, JSON.stringify(plan)]);
    let text = "";
    for await (const piece of sender.stdout.pipeThrough(new TextDecoderStream())) {
      const complete = (text + piece).split("\n");
      text = complete.pop()!;
      for (const line of complete) {
        lines.push(JSON.parse(line));
        seen(lines.at(-1)!);
      }
    }
    if (!(await sender.status).success) throw new Error(`bench/${program}.ts failed`);
  } finally {
    peer.kill("SIGKILL");
    await peer.status;
    await said.cancel();
  }
  return lines;
}

// ---- guards

const USES: readonly Use[] = ["untouched", "byte", "whole"];
const SAID: Record<Use, string> = {
  untouched: "untouched",
  byte: "one byte rewritten",
  whole: "rewritten",
};

function column(result: GuardResult, guard: string, use: Use): ColumnResult | undefined {
  return result.columns.find((each) => each.guard === guard && each.use === use);
}

function printGuards(results: GuardResult[]): void {
  const head = results[0]!.columns.map(({ guard, use }) => [guard, use] as const);
  console.log(table([
    ["", ...head.map(([guard]) => guard)],
    ["us a message", ...head.map(([, use]) => use)],
    ...results.map(({ bytes, buffers, inFlight, columns }) => [
      `${sizeName(bytes)} (${buffers}, ${inFlight})`,
      ...columns.map(({ us }) => digits(median(us))),
    ]),
  ]));
}

function checkGuards(name: string, results: GuardResult[]): void {
  for (const use of USES) {
    // A copy does not mind what becomes of the buffer: a byte more or less in it costs nothing.
    const worst = results.map((result) => {
      const safe = [
        column(result, "copy", use) ?? column(result, "copy", "untouched")!,
        column(result, "cow", use)!,
        ...(use === "whole" ? [column(result, "wait", use) ?? []].flat() : []),
      ];
      const best = safe.reduce((a, b) => median(a.us) <= median(b.us) ? a : b);
      const value = ratio(column(result, "auto", use)!.us, best.us);
      return { value, where: ` ${best.guard} at ${sizeName(result.bytes)}` };
    }).reduce((a, b) => a.value >= b.value ? a : b);
    const what = `${name}, auto, ${SAID[use]}, against the best safe guard, worst size`;
    check(what, worst.value, true, 1.1, worst.where);
  }
}

function checkGuardsAtOnce(name: string, results: GuardResult[]): void {
  const at = (bytes: number): GuardResult => results.find((result) => result.bytes === bytes)!;
  const us = (bytes: number, guard: string, use: Use): number[] =>
    column(at(bytes), guard, use)!.us;
  check(
    `${name}, 1 MiB, cow untouched against none`,
    ratio(us(MIB, "cow", "untouched"), us(MIB, "none", "untouched")),
    true,
    1.15,
  );
  const copy = us(4 * MIB, "copy", "whole");
  const best = Math.min(
    ...["cow", "wait"].map((guard) => ratio(us(4 * MIB, guard, "whole"), copy)),
  );
  check(`${name}, 4 MiB rewritten, the better of cow and wait against copy`, best, true, 0.5);
}

async function guards(runtime: Runtime, hold: number, quick: boolean): Promise<GuardResult[]> {
  const all = [4, 16, 64, 256, 1024, 4096, 16384, 65536].map((kib) => kib * KIB);
  const plan: GuardPlan = {
    sizes: hold > 0 ? [64 * KIB, MIB, 4 * MIB] : all,
    hold,
    rounds: quick ? 5 : 9,
    turn: quick ? 5 : 20,
  };
  console.log(
    `\n${runtime.name} ${runtime.version}, ` +
      (hold > 0
        ? `the receiver releases a message when ${hold} others have come (so a rewrite meets it in flight;` +
          ` "wait" would wait for itself)`
        : "the receiver releases each message at once") +
      "\n(in brackets: buffers that take turns, and how many of them are in flight)",
  );
  const results = await runPair<GuardResult>([runtime, runtime], "guards", plan);
  printGuards(results);
  checkGuards(`${runtime.name}${hold > 0 ? ", holding" : ""}`, results);
  if (hold === 0) checkGuardsAtOnce(runtime.name, results);
  return results;
}

// ---- throughput and latency

type Pair = readonly [Runtime, Runtime];

function pairs(of: Runtime[]): Pair[] {
  const [a, b] = of;
  return [...of.map((each) => [each, each] as const), ...(a && b ? [[a, b] as const] : [])];
}
function pairName([from, to]: Pair): string {
  return `${from.name} to ${to.name}`;
}

interface Compared<T> {
  bytes: number;
  pair: string;
  ours: T[];
  ucx: number[];
}

/** Ours, UCX, ours, UCX, ours; one UCX run serves every pair of runtimes. */
async function compare<T>(
  of: Pair[],
  bytes: number,
  quick: boolean,
  ours: (pair: Pair) => Promise<T[]>,
  theirs: () => Promise<number>,
): Promise<Compared<T>[]> {
  const results = of.map((pair) => ({ bytes, pair: pairName(pair), ours: [] as T[] }));
  const ucx: number[] = [];
  for (let turn = 0; turn < (quick ? 2 : 3); turn++) {
    if (turn > 0) ucx.push(await theirs());
    for (const [i, pair] of of.entries()) results[i]!.ours.push(...await ours(pair));
  }
  return results.map((result) => ({ ...result, ucx }));
}

async function throughput(of: Pair[], quick: boolean): Promise<Compared<TransferResult>[]> {
  const names = [...new Set(of.map(([, to]) => to.name))];
  console.log(
    `\nThroughput, two processes, against ucx_perftest -t tag_bw with UCX_TLS=${UCX_TLS}, in GB/s.` +
      `\nTouched: the sender writes every byte with fill(), the receiver reads every byte with` +
      names.map((name) => `\n  ${name}: ${READING[name]}`).join(""),
  );
  const results: Compared<TransferResult>[] = [];
  for (const bytes of [64 * KIB, MIB, 4 * MIB, 16 * MIB]) {
    const plan: TransferPlan = { bytes, time: quick ? 150 : 400, spin: 0 };
    results.push(
      ...await compare(
        of,
        bytes,
        quick,
        (pair) => runPair<TransferResult>(pair, "transfer", plan),
        () => ucxBandwidth(bytes, quick ? 0.3 : 1),
      ),
    );
  }
  const summary = results.map(({ bytes, pair, ours, ucx }) => ({
    bytes,
    pair,
    untouched: median(ours.map((each) => each.untouched)),
    touched: median(ours.map((each) => each.touched)),
    ucx: median(ucx),
  }));
  console.log(table([
    ["", "", "untouched", "touched", "ucx"],
    ...summary.map(({ bytes, pair, untouched, touched, ucx }) => [
      sizeName(bytes),
      pair,
      digits(untouched),
      digits(touched),
      digits(ucx),
    ]),
  ]));
  for (const { bytes, pair, untouched, touched, ucx } of summary) {
    if (bytes !== MIB) continue;
    check(`${pair}, 1 MiB untouched against ucx tag_bw`, untouched / ucx, false, 3);
    check(`${pair}, 1 MiB touched against ucx tag_bw`, touched / ucx, false, 1.3);
  }
  return results;
}

async function latency(of: Pair[], quick: boolean): Promise<Compared<LatencyResult>[]> {
  const plan: TransferPlan = { bytes: 8, time: quick ? 300 : 1000, spin: 100 };
  console.log(
    `\nLatency, 8 bytes, half a round trip in us; recv() spins for up to ${plan.spin} us on both sides`,
  );
  const results = await compare(
    of,
    8,
    quick,
    (pair) => runPair<LatencyResult>(pair, "transfer", plan, { spin: plan.spin }),
    () => ucxLatency(quick ? 0.3 : 1),
  );
  const summary = results.map(({ pair, ours, ucx }) => ({
    pair,
    ours: median(ours.map(({ us }) => us)),
    ucx: median(ucx),
  }));
  console.log(table([
    ["", "moat", "ucx tag_lat"],
    ...summary.map(({ pair, ours, ucx }) => [pair, ours.toFixed(3), ucx.toFixed(3)]),
  ]));
  for (const { pair, ours, ucx } of summary) {
    check(`${pair}, 8 B latency against ucx tag_lat`, ours / ucx, true, 3);
  }
  return results;
}

// ---- TCP, and files

function commandsOf(of: Runtime[]): Record<string, string[]> {
  return Object.fromEntries(of.map(({ name, command }) => [name, command]));
}

async function sockets(of: Runtime[], quick: boolean): Promise<TcpResult[]> {
  console.log("\ntcp:// on the loopback interface, against iperf3 and the runtime's own sockets");
  const rounds = quick ? 2 : 5, time = quick ? 500 : 1000;
  const results = await tcp({ runtimes: commandsOf(of), rounds, time });
  console.log(tcpReport(results));
  for (const { runtime, untouched, iperf3, sockets } of results) {
    check(`${runtime}, tcp:// 1 MiB against iperf3`, ratio(untouched, iperf3), false, 1);
    const wanted = runtime === "bun" ? 2 : 1;
    check(`${runtime}, tcp:// 1 MiB against its sockets`, ratio(untouched, sockets), false, wanted);
  }
  return results;
}

async function files(of: Runtime[], quick: boolean): Promise<InteropResult[]> {
  console.log(
    "\nA file server and its client, with and without copies in the network and in file I/O;\n" +
      "direct: parts of the file that went past the page cache at the server and at the client",
  );
  const results = await interop({
    transports: ["shm", "tcp"],
    runtimes: commandsOf(of),
    bytes: (quick ? 128 : 1024) * MIB,
    rounds: quick ? 1 : 3,
    host: "127.0.0.1",
    directory: ROOT,
  });
  console.log(interopReport(results));
  return results;
}

async function main(): Promise<void> {
  const { values: options } = parseArgs({
    args: Deno.args,
    options: {
      quick: { type: "boolean", default: false },
      only: { type: "string", default: "" },
      runtimes: { type: "string", default: "deno,bun" },
      json: { type: "string" },
    },
  });
  const start = performance.now(), { quick } = options;
  const wanted = (part: string): boolean => part.includes(options.only);
  const of = runtimes(options.runtimes);
  if (wanted("throughput") || wanted("latency")) ensurePackages(["ucx-utils"]);
  if (wanted("tcp")) ensurePackages(["iperf3"]);

  const facts = {
    ...machineFacts(),
    ...Object.fromEntries(of.map(({ name, version }) => [name, version])),
  };
  console.log(table(Object.entries(facts).map(([name, fact]) => [`${name}:`, fact])));
  const results: Record<string, unknown> = {};
  for (const runtime of of) {
    const { name } = runtime;
    if (wanted("guards")) results[`guards ${name}`] = await guards(runtime, 0, quick);
    if (wanted("holding")) results[`holding ${name}`] = await guards(runtime, 8, quick);
  }
  if (wanted("throughput")) results["throughput"] = await throughput(pairs(of), quick);
  if (wanted("latency")) results["latency"] = await latency(pairs(of), quick);
  if (wanted("tcp")) results["tcp"] = await sockets(of, quick);
  if (wanted("interop")) results["interop"] = await files(of, quick);

  const met = checks.filter(({ ok }) => ok).length;
  const seconds = ((performance.now() - start) / 1000).toFixed(0);
  console.log(`\n${met} of ${checks.length} targets met; ${seconds} s`);
  if (options.json !== undefined) {
    Deno.writeTextFileSync(options.json, JSON.stringify({ facts, checks, results }, null, 1));
  }
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
