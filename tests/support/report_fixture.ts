/**
 * A report that nobody measured, for the tests of the page: results of every part, of the shape that the benchmarks
 * give, with figures from formulas.
 *
 * @module
 */
import type { Quantiles, Report, Result } from "../../bench/results.ts";

const KIB = 1 << 10, MIB = 1 << 20;
const HOW = "made up by tests/support/report_fixture.ts: nothing was measured";

type Place = Record<string, string | number>;

function result(
  part: string,
  series: string,
  runtime: string | undefined,
  at: Place,
  value: number,
  unit: string,
  more: Partial<Result> = {},
): Result {
  return {
    ...{ part, series, at, value, unit, statistic: "median", samples: 9, how: HOW },
    ...(runtime === undefined ? {} : { runtime }),
    ...more,
  };
}

const RUNTIMES = ["deno", "bun"];
const PAIRS = ["deno", "bun", "deno-bun"];

function guards(): Result[] {
  const found: Result[] = [];
  for (const [r, runtime] of RUNTIMES.entries()) {
    for (const kib of [4, 16, 64, 256, 1024, 4096, 16384, 65536]) {
      const bytes = kib * KIB, pages = kib / 4;
      const add = (series: string, touched: string, us: number): void => {
        const at = { transport: "shm", bytes, touched, holding: 0 };
        found.push(result("guards", series, runtime, at, us * (1 + r * 0.2), "us"));
      };
      for (const touched of ["untouched", "byte", "rewritten"]) {
        const write = touched === "rewritten" ? pages * 0.12 : 0;
        const copy = 1 + pages * 0.35 + write, none = 1.4 + write;
        const fault = touched === "untouched" ? 0 : touched === "byte" ? 1.5 : pages * 0.2;
        const cow = none + 1.2 + pages * 0.002 + fault;
        add("none", touched, none);
        add("copy", touched, copy);
        add("cow", touched, cow);
        add("wait", touched, cow * 1.1);
        add("auto", touched, Math.min(cow, copy) * 1.03);
      }
    }
  }
  return found;
}

function throughput(): Result[] {
  const found: Result[] = [];
  for (const kib of [64, 1024, 4096, 16384]) {
    const bytes = kib * KIB;
    for (const [i, pair] of PAIRS.entries()) {
      for (
        const [touched, rate] of [["untouched", 40 + 30 * Math.log2(kib / 32)], [
          "touched",
          9 - i,
        ]] as const
      ) {
        found.push(
          result("throughput", "moat", pair, { transport: "shm", bytes, touched }, rate, "GB/s"),
        );
      }
    }
    const peers = { ucx_perftest: 11, fi_pingpong: 7.5 };
    for (const [peer, rate] of Object.entries(peers)) {
      const at = { transport: "shm", bytes, touched: "untouched" };
      found.push(result("throughput", peer, undefined, at, rate, "GB/s", { statistic: "mean" }));
    }
  }
  const at = { transport: "tcp", bytes: MIB, touched: "untouched" };
  for (const [i, runtime] of RUNTIMES.entries()) {
    found.push(result("throughput", "moat", runtime, at, 5.4 - i / 3, "GB/s"));
    found.push(result("throughput", "own sockets", runtime, at, 3.1 - i, "GB/s"));
  }
  found.push(result("throughput", "iperf3", undefined, at, 4.4, "GB/s"));
  return found;
}

function spread(median: number): Quantiles {
  return {
    ...{ min: median * 0.9, p25: median * 0.97, p50: median, p75: median * 1.06 },
    ...{ p99: median * 2.1, p999: median * 5, max: median * 60 },
  };
}

function latency(): Result[] {
  const found: Result[] = [];
  for (const [transport, us] of [["shm", 1.1], ["tcp", 21]] as const) {
    const at = { transport, bytes: 8 };
    for (const [series, factor] of [["moat", 12], ["moat, spinning", 1]] as const) {
      for (const [i, pair] of PAIRS.entries()) {
        const median = us * factor * (1 + i * 0.12);
        const more = { quantiles: spread(median), samples: 40_000 };
        found.push(result("latency", series, pair, at, median, "us", more));
      }
    }
    found.push(result("latency", "ucx_perftest", undefined, at, us * 0.6, "us"));
    const rates = { moat: 1.9e6, "own sockets": 2e5 };
    for (const [series, rate] of Object.entries(rates)) {
      found.push(result("rate", series, "deno", at, rate / us, "messages/s"));
    }
    found.push(result("rate", "ucx_perftest", undefined, at, 4.1e6 / us, "messages/s"));
  }
  return found;
}

function overlap(runtime: string, less: number): Result[] {
  return ["sender", "receiver"].flatMap((side) =>
    ["await", "touch"].flatMap((end) =>
      [64 * KIB, MIB, 4 * MIB].flatMap((bytes) => {
        const at = { transport: "shm", bytes, side, end };
        const own = 0.97 - less - 1000 / bytes;
        return [
          result("overlap", "moat", runtime, at, own, "ratio"),
          result("overlap", "own sockets", runtime, at, 0, "ratio"),
        ];
      })
    )
  );
}

function inflight(runtime: string, more: number): Result[] {
  return ([["send", 64], ["recv", 64]] as const).flatMap(([operation, bytes]) =>
    [10, 100, 1000, 10_000, 100_000].flatMap((inFlight) => {
      const at = { transport: "shm", bytes, inFlight, operation },
        ns = 900 + more + inFlight / 1000;
      return [
        result("inflight", "moat", runtime, at, ns, "ns"),
        result("inflight", "processor", runtime, at, ns * 0.8, "ns"),
      ];
    })
  );
}

function memory(runtime: string, more: number): Result[] {
  return ["client", "server"].flatMap((side) =>
    Object.entries({ "beyond its ring": 90, resident: 1400, ring: 1310, heap: 0 })
      .map(([what, kib]) => {
        const at = { transport: "shm", connections: 1000, side, what };
        return result("memory", "moat", runtime, at, kib + more, "KiB");
      })
  );
}

function interop(runtime: string, less: number): Result[] {
  const found: Result[] = [];
  for (const transport of ["shm", "tcp"]) {
    for (const [n, network] of ["copied", "not copied"].entries()) {
      for (const [f, file] of ["copied", "not copied"].entries()) {
        const add = (what: string, value: number, unit: string): void => {
          const at = { transport, network, file, what };
          found.push(result("interop", `${network}, ${file}`, runtime, at, value, unit));
        };
        const rate = 1 + n * 0.5 + f * 0.7 + n * f - less;
        add("throughput", rate, "GB/s");
        add("both", 1 / rate, "s/GiB");
        add("copies", 4 - 2 * n - 2 * f, "copies");
      }
    }
  }
  return found;
}

function others(): Result[] {
  const found: Result[] = [];
  for (const [i, runtime] of RUNTIMES.entries()) {
    found.push(...overlap(runtime, i / 50), ...inflight(runtime, i * 200));
    found.push(...memory(runtime, i * 20), ...interop(runtime, i / 10));
    const calls = { "no arguments": 3, "three integers": 5, "a buffer": 48 };
    for (const [call, ns] of Object.entries(calls)) {
      found.push(result("ffi", call, runtime, { group: "plain calls" }, ns * (1 + i), "ns"));
    }
  }
  for (const bytes of [8, 64 * KIB, MIB]) {
    const at = { transport: "rdma", bytes, what: "throughput" };
    found.push(result("rdma", "moat", "deno", at, bytes / 4e6, "GB/s"));
    found.push(result("rdma", "ib_read_bw", undefined, at, bytes / 3.5e6, "GB/s"));
  }
  return found;
}

/** The report. */
export function reportFixture(): Report {
  return {
    facts: {
      moat: "0.0.0",
      commit: "none: a fixture",
      cpu: "no processor: these figures are a test's, not measured",
      cores: "0",
      kernel: "none",
      "busy with other work": "guards 99 %",
    },
    quick: true,
    date: "2000-01-01T00:00:00.000Z",
    seconds: { guards: 1, throughput: 1, latency: 1 },
    results: [...guards(), ...throughput(), ...latency(), ...others()],
    failed: {},
  };
}
