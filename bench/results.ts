/**
 * What the benchmarks give: single figures that say what they are and how they were measured.
 *
 * The parts, and where a reader of {@linkcode Result}s finds what they measured. `transport` is "shm", "tcp" or "rdma".
 *
 *     part        series                                 at                                       unit
 *     ffi         the call                               group                                    ns
 *     guards      none copy cow wait auto                bytes touched holding                    us
 *     throughput  moat, own sockets, ucx_perftest, …     transport bytes touched                  GB/s
 *     latency     moat, "moat, spinning", …              transport bytes                          us, half a round trip
 *     rate        moat, own sockets, ucx_perftest        transport bytes                          messages/s
 *     overlap     moat, own sockets                      transport bytes side end                 ratio
 *     inflight    moat, processor                        transport bytes inFlight operation       ns
 *     memory      moat                                   transport connections side what          KiB
 *     interop     "copied, not copied": network, file    transport network file what              GB/s, s/GiB, …
 *     rdma        moat, ib_read_bw, …                    transport bytes what                     GB/s, us, KiB
 *
 * `touched` is "untouched", "byte" (one byte rewritten after send() returned) or "rewritten" (all of them); for
 * throughput "untouched" (neither side looks at the data) or "touched" (the sender writes and the receiver reads
 * every byte). `holding` is how many messages the receiver holds before it releases the first. `side` is "sender" or
 * "receiver" and `end` is "await", "touch" or "stream"; of memory it is "client" or "server". `operation` is "send" or "recv".
 *
 * @module
 */

/** One measured figure. */
export interface Result {
  /** The part of the benchmarks it belongs to, and so its chart. */
  part: string;
  /** The line of the chart: what was measured, e.g. `cow`, `copy`, `ucx_perftest`. */
  series: string;
  /** The runtime, or both as sender-receiver: "deno", "bun", "deno-bun". Absent for a peer in C. */
  runtime?: string;
  /** Where on the chart: e.g. `{ bytes: 4096, transport: "shm", touched: "rewritten" }`. */
  at: Record<string, string | number>;
  value: number;
  /** GB/s (10^9 bytes), us, ns, ratio, KiB, messages/s … */
  unit: string;
  /** Where a distribution was measured: in the same unit. */
  quantiles?: Quantiles;
  /** What `value` is of the samples: "median", "mean", "best". */
  statistic?: string;
  /** How many samples there were. */
  samples?: number;
  /** Round by round: what is compared was measured in the same rounds, in turns. */
  rounds?: number[];
  /** The command or method that gave it, one line that a reader can repeat. */
  how: string;
}

/** A distribution. */
export interface Quantiles {
  min: number;
  p25: number;
  p50: number;
  p75: number;
  p99: number;
  p999?: number;
  max: number;
}

/** The runtimes that programs run on. */
export type RuntimeName = "deno" | "bun";

/** What a part is given to run with. */
export interface Context {
  /** A short form, for a first look and for the report. */
  quick: boolean;
  /** The words that run a program, the program's path to follow: `["/usr/bin/deno", "run", "-A"]`. */
  runtimes: Partial<Record<RuntimeName, string[]>>;
  /** Is told what is going on. */
  say(line: string): void;
  signal?: AbortSignal;
}

/** A part of the benchmarks: what is measured together, in turns, in one run. */
export interface Part {
  name: string;
  /** For the head of its table or chart. */
  title: string;
  /** What it shows, one sentence. */
  about: string;
  /** Debian packages that its peers are in. */
  packages: readonly string[];
  /** Seconds that it takes, roughly: the short form and the whole. */
  seconds: { quick: number; full: number };
  run(context: Context): Promise<Result[]>;
  /** The results as a table of text. */
  print(results: readonly Result[]): string;
}

/** What {@linkcode Result}s are written to files as. */
export interface Report {
  /** What machine and which versions. */
  facts: Record<string, string>;
  quick: boolean;
  /** When it was begun, ISO 8601. */
  date: string;
  /** Seconds that each part took. */
  seconds: Record<string, number>;
  results: Result[];
  /** Parts that could not run, and why. */
  failed: Record<string, string>;
}

/** The quantiles of samples, in any order; `p999` from 1,000 of them on. */
export function quantiles(samples: readonly number[]): Quantiles {
  if (samples.length === 0) throw new Error("there are no quantiles of no samples");
  const sorted = Float64Array.from(samples).sort();
  const at = (part: number): number =>
    sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))]!;
  return {
    ...{ min: sorted[0]!, p25: at(0.25), p50: at(0.5), p75: at(0.75), p99: at(0.99) },
    ...(sorted.length >= 1000 ? { p999: at(0.999) } : {}),
    max: sorted.at(-1)!,
  };
}

/** What is wrong with a result, for a part that is being written: an empty list if nothing is. */
export function faults(result: Result): string[] {
  const found: string[] = [];
  const texts = { part: result.part, series: result.series, unit: result.unit, how: result.how };
  for (const [name, text] of Object.entries(texts)) {
    if (typeof text !== "string" || text.trim() === "") found.push(`${name} is empty`);
  }
  // Nothing that is measured here can be negative; a share, a growth and what is copied can be none.
  const least = ["ratio", "KiB", "copies"].includes(result.unit) ? 0 : Number.MIN_VALUE;
  const all = [["value", result.value], ...Object.entries(result.quantiles ?? {})] as const;
  for (const [name, value] of all) {
    if (!Number.isFinite(value) || value < least) found.push(`${name} is ${value}`);
  }
  if (result.unit === "ratio" && result.value > 1) found.push(`a share of ${result.value}`);
  for (const [name, value] of Object.entries(result.at)) {
    if (value === "" || Number.isNaN(value)) found.push(`at.${name} is ${value}`);
  }
  return found.map((what) => `${result.part}, ${result.series}: ${what}`);
}
