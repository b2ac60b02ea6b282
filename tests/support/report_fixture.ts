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
    for (const [i, pair] of PAIRS.entries()) {
      const median = us * (1 + i * 0.12);
      const more = { quantiles: spread(median), samples: 40_000 };
      found.push(result("latency", "moat", pair, at, median, "us", more));
    }
    found.push(result("latency", "ucx_perftest", undefined, at, us * 0.6, "us"));
  }
  return found;
}

function others(): Result[] {
  const found: Result[] = [];
  for (const [i, pair] of PAIRS.entries()) {
    const at = { transport: "shm", bytes: 8 };
    found.push(result("rate", "moat", pair, at, 1.9e6 / (i + 1), "messages/s"));
  }
  found.push(
    result("rate", "ucx_perftest", undefined, { transport: "shm", bytes: 8 }, 4.1e6, "messages/s"),
  );
  for (const [i, runtime] of RUNTIMES.entries()) {
    for (const side of ["sender", "receiver"]) {
      const at = { transport: "shm", bytes: 4 * MIB, side };
      found.push(result("overlap", "moat", runtime, at, 0.97 - i * 0.02, "ratio"));
      found.push(
        result("overlap", "own sockets", runtime, { ...at, transport: "tcp" }, 0.1, "ratio"),
      );
    }
    for (const inFlight of [10, 100, 1000, 10_000, 100_000]) {
      const at = { transport: "shm", bytes: 8, inFlight };
      const ns = 900 + i * 200 + inFlight / 1000;
      found.push(result("inflight", "moat", runtime, at, ns, "ns"));
    }
    for (const what of ["resident", "beyond its ring"]) {
      const at = { transport: "shm", connections: 100, what };
      found.push(
        result("memory", "moat", runtime, at, what === "resident" ? 1400 : 90 + i * 20, "KiB"),
      );
    }
    for (
      const [call, ns] of [["no arguments", 3], ["three integers", 5], ["a buffer", 48]] as const
    ) {
      found.push(result("ffi", call, runtime, { group: "plain calls" }, ns * (1 + i), "ns"));
    }
    for (const transport of ["shm", "tcp"]) {
      for (const [n, network] of ["copied", "not copied"].entries()) {
        for (const [f, file] of ["copied", "not copied"].entries()) {
          const at = { transport, network, file }, series = `${network}, ${file}`;
          const rate = 1 + n * 0.5 + f * 0.7 + n * f - i * 0.1;
          found.push(
            result("interop", series, runtime, { ...at, what: "throughput" }, rate, "GB/s"),
          );
          found.push(
            result(
              "interop",
              series,
              runtime,
              { ...at, what: "processor time" },
              1 / rate,
              "s/GiB",
            ),
          );
        }
      }
    }
  }
  for (const bytes of [8, 64 * KIB, MIB]) {
    const at = { transport: "rdma", bytes, touched: "untouched", what: "throughput" };
    found.push(result("rdma", "moat", "deno", at, bytes / 4e6, "GB/s"));
    found.push(result("rdma", "perftest", undefined, at, bytes / 3.5e6, "GB/s"));
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
    },
    quick: true,
    date: "2000-01-01T00:00:00.000Z",
    seconds: { guards: 1, throughput: 1, latency: 1 },
    results: [...guards(), ...throughput(), ...latency(), ...others()],
    failed: {},
  };
}
