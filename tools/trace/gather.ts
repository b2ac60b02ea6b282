/**
 * What a traced program wrote (lib/memory/trace.ts), added up.
 *
 * @module
 */
import type { FaultOutcome } from "../../lib/memory/faults.ts";
import type { TraceLine, TraceSite } from "../../lib/memory/trace.ts";

/** A thread that made a pool. */
export interface TracedThread {
  pid: number;
  /** The kernel's id of the thread, which is the process's for its first. */
  tid: number;
  runtime: string;
  program: string;
  /** Milliseconds from its first pool to its end. */
  ms: number;
  /** Faults of its pools that were counted, but not known any more. */
  lost: number;
  /** Milliseconds that it waited at guards itself. */
  waitedMs: number;
}

/** A line of the program, and what came of the buffers that it sent, received, wrote or read. */
export interface TracedLine {
  /** `file:line:column` of the call that started the operation; empty if no line of the program was on the stack. */
  line: string;
  /** The text of the line, if its file could be read. */
  source?: string;
  operation: TraceSite["operation"];
  guard: string;
  /** The whole stack of one such call. */
  stack: string;
  reads: number;
  writes: number;
  outcomes: Record<FaultOutcome, number>;
  privatePages: number;
  waitedMs: number;
  longestMs: number;
  /** Half of the waits took less than this, to a tenth. */
  medianMs: number;
  /** Of {@linkcode waitedMs}, what was waited in threads whose pool it is not. */
  elsewhereMs: number;
  /** The threads whose pools these buffers are of, and how long each waited itself. */
  threads: { pid: number; tid: number; waitedMs: number }[];
}

/** What a run was like. */
export interface Trace {
  /** The most expensive first. */
  lines: TracedLine[];
  threads: TracedThread[];
  lost: number;
  waitedMs: number;
}

interface Sum extends TracedLine {
  lengths: Map<number, number>;
}

/** Adds up what was written. The last line may be cut off, where a process was killed. */
export function gather(text: string): Trace {
  const threads = new Map<string, TracedThread>(), sites = new Map<string, TraceSite>();
  const sums = new Map<string, Sum>();
  for (const each of text.split("\n").slice(0, -1)) {
    const line = JSON.parse(each) as TraceLine;
    if (line.v !== 1) throw new Error(`a copy of the library writes traces of version ${line.v}`);
    const { pid, tid } = line, thread = `${pid}/${tid}`;
    if (line.t === "start") {
      const { runtime, program } = line;
      threads.set(thread, { pid, tid, runtime, program, ms: 0, lost: 0, waitedMs: 0 });
    } else if (line.t === "end") {
      Object.assign(threads.get(thread)!, { ms: line.ms, lost: line.lost });
    } else if (line.t === "site") {
      sites.set(`${thread}/${line.site}`, line);
    } else {
      const { line: where, operation, guard, stack } = sites.get(`${thread}/${line.site}`)!;
      const key = JSON.stringify([where, operation, guard]);
      const sum = sums.get(key) ?? nothing(where, operation, guard, stack);
      sums.set(key, sum);
      sum.reads += line.reads;
      sum.writes += line.writes;
      for (const [outcome, n] of Object.entries(line.outcomes)) {
        sum.outcomes[outcome as FaultOutcome] += n;
      }
      sum.privatePages += line.pages;
      sum.waitedMs += line.waited / 1e6;
      sum.longestMs = Math.max(sum.longestMs, line.longest / 1e6);
      sum.elsewhereMs += line.elsewhere / 1e6;
      for (const [length, n] of Object.entries(line.lengths)) {
        sum.lengths.set(Number(length), (sum.lengths.get(Number(length)) ?? 0) + n);
      }
      const own = (line.waited - line.elsewhere) / 1e6;
      threads.get(thread)!.waitedMs += own;
      const before = sum.threads.find((each) => each.pid === pid && each.tid === tid);
      if (before) before.waitedMs += own;
      else sum.threads.push({ pid, tid, waitedMs: own });
    }
  }
  const lines = [...sums.values()].map(({ lengths, ...line }) => ({
    ...line,
    medianMs: Math.min(line.longestMs, median(lengths)),
  }));
  lines.sort((a, b) =>
    b.waitedMs - a.waitedMs || b.privatePages - a.privatePages ||
    b.reads + b.writes - a.reads - a.writes
  );
  const all = [...threads.values()];
  return {
    lines,
    threads: all,
    lost: all.reduce((n, { lost }) => n + lost, 0),
    waitedMs: lines.reduce((ms, { waitedMs }) => ms + waitedMs, 0),
  };
}

function nothing(
  line: string,
  operation: TraceSite["operation"],
  guard: string,
  stack: string,
): Sum {
  return {
    line,
    operation,
    guard,
    stack,
    reads: 0,
    writes: 0,
    outcomes: { restored: 0, private: 0, waited: 0, timeout: 0, deadlock: 0 },
    privatePages: 0,
    waitedMs: 0,
    longestMs: 0,
    medianMs: 0,
    elsewhereMs: 0,
    threads: [],
    lengths: new Map(),
  };
}

// The middle of the quarter of a power of two in which the middle wait is.
function median(lengths: Map<number, number>): number {
  const all = [...lengths.values()].reduce((a, b) => a + b, 0);
  let left = all / 2;
  for (const [length, n] of [...lengths].sort(([a], [b]) => a - b)) {
    left -= n;
    if (left <= 0) return 2 ** ((length + 0.5) / 4) / 1e6;
  }
  return 0;
}
