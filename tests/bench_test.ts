import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import process from "node:process";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { parts } from "../bench/parts.ts";
import { interop } from "../bench/parts/interop.ts";
import { memoryResults } from "../bench/parts/memory.ts";
import type { GuardPlan, GuardResult } from "../bench/programs/guards.ts";
import type { InFlightPlan, InFlightResult } from "../bench/programs/inflight.ts";
import type { MemoryResult } from "../bench/programs/memory.ts";
import type { OverlapPlan, OverlapResult } from "../bench/programs/overlap.ts";
import type {
  LatencyResult,
  RateResult,
  TransferPlan,
  TransferResult,
} from "../bench/programs/transfer.ts";
import { type Context, faults, type Part, quantiles, type Result } from "../bench/results.ts";
import { Rounds } from "../bench/support/collect.ts";
import { overlap } from "../bench/support/overlap.ts";
import {
  addressFor,
  measureSockets,
  measureWithPeer,
  programOn,
  serverAndClient,
} from "../bench/support/processes.ts";
import { chooseParts, emptyReport, findRuntimes, runParts } from "../tools/bench.ts";
import { command, here } from "./support/child.ts";

const BENCH = fileURLToPath(new URL("../bench/", import.meta.url));
const words = here === "deno" ? [...command("deno"), "--no-check"] : command("bun");
const context: Context = { quick: true, runtimes: { [here]: words }, say: () => {} };
const pair = [here, here] as const;

interface Output {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** Runs a command to its end. Others may run at the same time. */
function run(command: string[], env: Record<string, string> = {}): Promise<Output> {
  const child = spawn(command[0]!, command.slice(1), {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "", stderr = "";
  child.stdout.on("data", (piece) => stdout += piece);
  child.stderr.on("data", (piece) => stderr += piece);
  return new Promise((resolve) => {
    child.on("close", (status) => resolve({ status, stdout, stderr }));
  });
}

describe("files of benchmarks", () => {
  const files = readdirSync(BENCH).filter((name) => name.endsWith("_bench.ts"));

  test("each loads, and each of its benchmarks can be called", async () => {
    assert.equal(files.length, 5);
    for (const file of files) {
      const { status, stdout, stderr } = await run([...words, BENCH + file], {
        MOAT_BENCH: "once",
      });
      assert.equal(status, 0, `${file}: ${stderr}`);
      const [, benchmarks] = /^(\d+) benchmarks in \d+ groups called once$/m.exec(stdout) ?? [];
      const device = !/not measured: verbs/.test(stderr);
      if (file !== "verbs_bench.ts" || device) assert.ok(Number(benchmarks) >= 10, stdout);
      else assert.equal(benchmarks, "0", stdout);
    }
  });

  test("what is measured comes with its group, and with what it is compared with", async () => {
    const file = `${BENCH}ffi_bench.ts`, filter = ["--filter", "now()"];
    const words = here === "deno"
      ? [command("deno")[0]!, "bench", "-A", "--no-check", "--json", ...filter, file]
      : [...command("bun"), file, "--json", ...filter];
    const { stdout, stderr } = await run(words);
    assert.notEqual(stdout, "", stderr);
    const { benches } = JSON.parse(stdout);
    assert.equal(benches.length, 1);
    const { group, baseline, results: [{ ok }] } = benches[0];
    assert.deepEqual([group, baseline], ["a call", true]);
    assert.ok(ok.avg > 0 && ok.avg < 1e6 && ok.min <= ok.avg && ok.avg <= ok.max, stdout);
  });
});

describe("results", () => {
  const right: Result = {
    ...{ part: "test", series: "moat", at: { bytes: 1 }, value: 1, unit: "us", how: "by hand" },
  };

  test("one that says all is right; what is missing or cannot be is told", () => {
    assert.deepEqual(faults(right), []);
    const wrong: [Partial<Result>, RegExp][] = [
      [{ value: NaN }, /value is NaN/],
      [{ value: 0 }, /value is 0/],
      [{ value: -1, unit: "KiB" }, /value is -1/],
      [{ how: " " }, /how is empty/],
      [{ value: 1.5, unit: "ratio" }, /share of 1.5/],
      [{ at: { bytes: NaN } }, /at.bytes is NaN/],
      [{ quantiles: { ...quantiles([1]), p99: Infinity } }, /p99 is Infinity/],
    ];
    for (const [change, told] of wrong) {
      assert.match(faults({ ...right, ...change }).join("; "), told);
    }
  });

  test("quantiles are of all samples, in any order", () => {
    const samples = Array.from({ length: 1001 }, (_, i) => (i * 8) % 1001);
    assert.deepEqual(quantiles(samples), {
      ...{ min: 0, p25: 250, p50: 500, p75: 750, p99: 990, p999: 999, max: 1000 },
    });
    assert.equal(quantiles([1, 2]).p999, undefined);
    assert.throws(() => quantiles([]), /no samples/);
  });

  test("rounds of one figure make one result, with their median", () => {
    const rounds = new Rounds(), { value: _, ...figure } = right;
    for (const value of [3, 1, 2]) rounds.add(figure, value);
    rounds.add({ ...figure, runtime: "bun" }, 5);
    const [one, other] = rounds.results();
    assert.deepEqual([one!.value, one!.samples, one!.rounds], [2, 3, [3, 1, 2]]);
    assert.deepEqual([other!.value, other!.runtime], [5, "bun"]);
  });

  test("an overlap is 1 if both take no longer than the computation, 0 if one follows the other", () => {
    const times = (both: number): number =>
      // In each round as much as in the others, however fast the machine just is.
      overlap({
        transfer: [100, 300, 100],
        compute: [100, 300, 110],
        both: [both, 3 * both, 0],
      });
    assert.deepEqual([times(100), times(150), times(200), times(400), times(90)], [
      1,
      0.5,
      0,
      0,
      1,
    ]);
  });
});

describe("programs", () => {
  const peer = { transport: "shm", bytes: 4 << 20 };
  const transfer: TransferPlan = { what: "throughput", bytes: 64 << 10, time: 10, spin: 0 };
  const positive = (...values: (number | undefined)[]): void => {
    for (const value of values) assert.ok(Number.isFinite(value) && value! > 0, String(values));
  };

  test("throughput, latency and rate over a channel and over sockets", async () => {
    for (const what of ["throughput", "latency", "rate"] as const) {
      const plan = { ...transfer, what, bytes: what === "throughput" ? transfer.bytes : 8 };
      type Line = TransferResult & LatencyResult & RateResult;
      const lines = [
        ...await measureWithPeer<Line>(context, pair, "transfer", plan, peer),
        ...await measureSockets<Line>(context, here, "unix", plan),
      ];
      assert.equal(lines.length, 2);
      for (const line of lines) {
        if (what === "throughput") positive(line.touched, line.untouched);
        else if (what === "latency") positive(line.us.min, line.us.p50, line.us.max, line.samples);
        else positive(line.rate);
      }
    }
  });

  test("overlap of both sides, by both ends", async () => {
    const plan: OverlapPlan = { sizes: [64 << 10], rounds: 1 };
    const lines = [
      ...await measureWithPeer<OverlapResult>(context, pair, "overlap", plan, peer),
      ...await measureSockets<OverlapResult>(context, here, "tcp", { what: "overlap", ...plan }),
    ];
    assert.deepEqual(lines.map(({ side, end }) => `${side} ${end}`), [
      ...["sender await", "sender touch", "sender stream"],
      ...["receiver await", "receiver touch", "receiver stream"],
      ...["sender await", "receiver await"],
    ]);
    for (const { transfer, compute, both } of lines) positive(...transfer, ...compute, ...both);
  });

  test("operations in flight, sends and receives", async () => {
    for (const what of ["send", "recv"] as const) {
      const plan: InFlightPlan = {
        ...{ what, bytes: 64, guard: "cow", inFlight: [10, 2000], rounds: 1, atLeast: 500 },
      };
      const lines = await measureWithPeer<InFlightResult>(context, pair, "inflight", plan, peer);
      assert.deepEqual(lines.map(({ inFlight }) => inFlight), [10, 2000]);
      for (const { ns } of lines) positive(...ns);
    }
  });

  test("guards", async () => {
    const plan: GuardPlan = { sizes: [4096], hold: 0, rounds: 1, turn: 1 };
    const [line] = await measureWithPeer<GuardResult>(context, pair, "guards", plan, peer);
    assert.equal(line!.columns.length, 10);
    for (const { us } of line!.columns) positive(...us);
  });

  test("memory of connections", async () => {
    const count = 20, args = (role: string, at: string): string[] => [role, at, String(count)];
    const lines = await serverAndClient(
      context,
      programOn(context, here, "memory", args("serve", addressFor("shm"))),
      (said) => programOn(context, here, "memory", args("connect", said.replace("ready ", ""))),
    );
    const result: MemoryResult = JSON.parse(lines[0]!);
    assert.equal(result.connections, count);
    positive(result.client.ring, result.server.ring);
    const results = memoryResults("memory", here, "shm", result);
    assert.deepEqual(results.flatMap(faults), []);
    assert.equal(results.length, 10);
  });
});

describe("parts", () => {
  const part = (name: string, run: Part["run"]): Part => ({
    ...{ name, title: name, about: name, packages: [], seconds: { quick: 1, full: 1 } },
    run,
    print: () => name,
  });

  test("each says what it is; one that is not there is told with those that are", () => {
    const names = parts.map(({ name }) => name);
    assert.equal(new Set(names).size, names.length);
    for (const { name, title, about, seconds } of parts) {
      assert.ok(title && about && seconds.quick > 0 && seconds.full >= seconds.quick, name);
    }
    assert.deepEqual(chooseParts(["rate", "ffi"]).map(({ name }) => name), ["ffi", "rate"]);
    assert.throws(() => chooseParts(["speed"]), /no part "speed"; there are ffi, .*rdma/);
    assert.throws(() => findRuntimes("node"), /no runtime "node"/);
  });

  test("what a part prints has what it measured, and nothing is needed for it", () => {
    for (const part of parts) assert.equal(typeof part.print([]), "string", part.name);
    const result: Result = {
      ...{ part: "interop", series: "copied, copied", runtime: "bun", value: 1.25, unit: "s/GiB" },
      at: { transport: "shm", network: "copied", file: "copied", what: "both" },
      how: "by hand",
    };
    assert.match(interop.print([result]), /shm bun: copied, copied +1\.25/);
  });

  test("one that fails is told in the report, and does not keep the others from it", async () => {
    const report = emptyReport({}, true);
    const good: Result = { part: "b", series: "x", at: {}, value: 1, unit: "us", how: "by hand" };
    const seen: string[] = [];
    await runParts(
      [
        part("a", () => Promise.reject(new Error("no device"))),
        part("b", () => Promise.resolve([good])),
      ],
      context,
      report,
      ({ name }) => seen.push(name),
    );
    assert.deepEqual([seen, report.failed, report.results], [
      ["a", "b"],
      { a: "no device" },
      [good],
    ]);
  });

  test("one that is told to stop does", async () => {
    const stop = new AbortController();
    stop.abort(new Error("enough"));
    const report = emptyReport({}, true), stopped = { ...context, signal: stop.signal };
    await assert.rejects(runParts(chooseParts(["rate"]), stopped, report), /enough/);
  });
});
