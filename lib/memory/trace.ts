/**
 * Tracing a whole program, every thread and child process of it: what `deno task trace` switches on.
 *
 * The switch is the environment variable `MOAT_TRACE`, the path of a file to which lines of JSON are appended.
 * An environment is what Workers, child processes, and every copy of the library have in common, wherever it was
 * imported from. It is read by getenv(3) and the file is written by write(2), when the first pool is made: so
 * nothing is asked for besides the permission that a pool needs anyway, to use foreign functions. Without
 * the variable, that one look is all it costs.
 *
 * What is added up for each line of the program is appended at most every 20 ms, and when the thread ends. A
 * thread that is killed takes what came after that along.
 *
 * @module
 */
import process from "node:process";
import { setTimeout } from "node:timers";
import { helper } from "../../ffi/helper.ts";
import { C, cString, environment, libc } from "../../ffi/libc.ts";
import { runtime } from "../../ffi/runtime.ts";
import type { Operation, PoolCore } from "./core.ts";
import type { FaultListener } from "./fault_log.ts";
import type { Fault, FaultOutcome, OperationKind } from "./faults.ts";

const PAUSE_MS = 20;

/** A line of the file. Every one says whose it is; numbers are of what came since the last for the same site. */
export type TraceLine =
  & { v: 1; pid: number; tid: number }
  & (TraceStart | TraceSite | TraceCount | TraceEnd);

/** A thread made its first pool. */
export interface TraceStart {
  t: "start";
  runtime: "deno" | "bun";
  /** The program, as it was given to the runtime. */
  program: string;
}

/** A line of the program that started an operation whose buffer was touched in flight. */
export interface TraceSite {
  t: "site";
  /** Its number in this thread. */
  site: number;
  /** `file:line:column`; empty if the program is not on the stack. */
  line: string;
  operation: OperationKind | "unknown";
  guard: string;
  stack: string;
}

/** What came of the accesses to buffers of a site. */
export interface TraceCount {
  t: "count";
  site: number;
  reads: number;
  writes: number;
  outcomes: Partial<Record<FaultOutcome, number>>;
  /** Pages that became private. */
  pages: number;
  /** Nanoseconds that accesses waited, those that gave up included; the longest; and those of other threads. */
  waited: number;
  longest: number;
  elsewhere: number;
  /** Waits by their length: `[i]` counts those of 2^(i/4) to 2^((i+1)/4) nanoseconds. */
  lengths: Record<number, number>;
}

/** How far the thread has come. The last of these counts. */
export interface TraceEnd {
  t: "end";
  /** Milliseconds since it made its first pool. */
  ms: number;
  /** Faults whose records were overwritten before they were read. */
  lost: number;
}

type Count = Omit<TraceCount, "t" | "site">;

/** Adds up the faults of this thread's pools. */
export class Tracer implements FaultListener {
  readonly #fd: number;
  readonly #tid = helper().moat_thread_id();
  readonly #from = performance.now();
  readonly #sites = new Map<string, number>();
  readonly #counts = new Map<number, Count>();
  readonly #pools = new Set<PoolCore>();
  #lines: string[] = [];
  #lost = 0;
  #last = -Infinity;
  #timer = false;

  constructor(path: string) {
    this.#fd = libc().open(cString(path), O_WRONLY | O_APPEND | O_CREAT | C.O_CLOEXEC, 0o600);
    if (this.#fd < 0) return; // whoever set the variable finds no file; the program is not to suffer
    this.#say({ t: "start", runtime: runtime().name, program: programName() });
    const flush = (): void => {
      for (const pool of this.#pools) pool.tellFaults();
      this.#flush();
    };
    process.on("exit", flush);
    globalThis.addEventListener?.("unload", flush); // Deno.exit() is no "exit" of process
    this.#flush();
  }

  /** Has the last faults of a pool, too, though nobody closes it. */
  add(pool: PoolCore): void {
    this.#pools.add(pool);
    pool.onClose(() => this.#pools.delete(pool));
  }

  fault(fault: Fault, operation: Operation | undefined): void {
    const site = this.#site(operation),
      count = this.#countOf(site),
      { nanoseconds, outcome } = fault;
    count[fault.access === "read" ? "reads" : "writes"]++;
    count.outcomes[outcome] = (count.outcomes[outcome] ?? 0) + 1;
    if (outcome === "private") count.pages += fault.pages;
    if (outcome === "waited" || outcome === "timeout" || outcome === "deadlock") {
      count.waited += nanoseconds;
      count.longest = Math.max(count.longest, nanoseconds);
      if (fault.thread !== this.#tid) count.elsewhere += nanoseconds;
      const bucket = Math.floor(Math.log2(Math.max(1, nanoseconds)) * 4);
      count.lengths[bucket] = (count.lengths[bucket] ?? 0) + 1;
    }
    this.#soon();
  }

  lost(count: number): void {
    this.#lost += count;
    this.#soon();
  }

  #site(operation: Operation | undefined): number {
    const line = operation?.stack?.line ?? "", kind = operation?.kind ?? "unknown";
    const guard = operation?.guard ?? "", key = `${kind} ${guard} ${line}`;
    let site = this.#sites.get(key);
    if (site === undefined) {
      this.#sites.set(key, site = this.#sites.size);
      const stack = operation?.stack?.stack ?? "";
      this.#say({ t: "site", site, line, operation: kind, guard, stack });
    }
    return site;
  }

  #countOf(site: number): Count {
    let count = this.#counts.get(site);
    if (!count) {
      const waits = { waited: 0, longest: 0, elsewhere: 0, lengths: {} };
      count = { reads: 0, writes: 0, outcomes: {}, pages: 0, ...waits };
      this.#counts.set(site, count);
    }
    return count;
  }

  #say(what: TraceStart | TraceSite | TraceCount | TraceEnd): void {
    const line: TraceLine = { v: 1, pid: process.pid, tid: this.#tid, ...what };
    this.#lines.push(JSON.stringify(line) + "\n");
  }

  #soon(): void {
    if (this.#timer) return;
    const left = this.#last + PAUSE_MS - performance.now();
    if (left <= 0) return this.#flush();
    this.#timer = true;
    setTimeout(() => {
      this.#timer = false;
      this.#flush();
    }, left).unref();
  }

  #flush(): void {
    for (const [site, count] of this.#counts) this.#say({ t: "count", site, ...count });
    this.#counts.clear();
    this.#say({ t: "end", ms: performance.now() - this.#from, lost: this.#lost });
    // One write to a file opened for appending: lines of other threads and processes do not get into it.
    const bytes = new TextEncoder().encode(this.#lines.join(""));
    this.#lines = [];
    this.#last = performance.now();
    if (this.#fd >= 0) libc().write(this.#fd, bytes, bytes.byteLength);
  }
}

const O_WRONLY = 1, O_CREAT = 0o100, O_APPEND = 0o2000;

function programName(): string {
  try {
    return process.argv[1] ?? "";
  } catch { // Deno may ask for a permission that is not given
    return "";
  }
}

let found: { tracer: Tracer | undefined } | undefined;

/** The tracer of this thread, if the environment asks for one. */
export function tracer(): Tracer | undefined {
  if (!found) {
    const path = environment("MOAT_TRACE");
    found = { tracer: path ? new Tracer(path) : undefined };
  }
  return found.tracer;
}
