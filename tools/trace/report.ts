/**
 * A trace for people.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import { relative } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import type { Trace, TracedLine, TracedThread } from "./gather.ts";

/** Adds the text of each line whose file can be read. */
export function addSources(trace: Trace): void {
  for (const line of trace.lines) {
    const [, file, number] = line.line.match(/^(.*):(\d+):\d+$/) ?? [];
    if (file === undefined) continue;
    try {
      const path = file.startsWith("file:") ? fileURLToPath(file) : file;
      const text = readFileSync(path, "utf8").split("\n")[Number(number) - 1]?.trim();
      if (text) line.source = text;
    } catch {
      // It is on the network, or gone.
    }
  }
}

/** The report. `top` lines of the program at most. */
export function report(trace: Trace, top: number): string {
  const { lines, threads } = trace;
  if (threads.length === 0) {
    return "trace: nothing was traced: no pool was made, or only by programs that were started without this " +
      "environment, or that import a Moat without tracing\n";
  }
  return [
    heading(trace),
    "",
    ...(lines.length > 0 ? [...table(lines.slice(0, top)), ...more(lines.length - top)] : []),
    ...verdicts(trace),
    ...losses(trace),
  ].join("\n") + "\n";
}

function heading({ lines, threads }: Trace): string {
  const processes = new Set(threads.map(({ pid }) => pid)).size;
  const where = `${count(processes, "process", "processes")}, ${count(threads.length, "thread")}`;
  if (lines.length === 0) return `trace: no buffer was touched in flight (${where} with a pool)`;
  return `trace: ${count(lines.length, "line")} of code whose buffers were touched in flight ` +
    `(${where} with a pool)`;
}

const COLUMNS = [
  "waited ms",
  "longest",
  "median",
  "reads",
  "writes",
  "waits",
  "private",
  "restored",
  "gave up",
  "pages",
];

function table(lines: TracedLine[]): string[] {
  const rows = lines.map((line) => {
    const { outcomes, reads, writes } = line;
    const waits = outcomes.waited + outcomes.timeout + outcomes.deadlock;
    const times = waits > 0
      ? [milliseconds(line.waitedMs), milliseconds(line.longestMs), milliseconds(line.medianMs)]
      : ["-", "-", "-"];
    const counts = [reads, writes, outcomes.waited, outcomes.private, outcomes.restored];
    return [
      ...times,
      ...[...counts, outcomes.timeout + outcomes.deadlock, line.privatePages].map(String),
    ];
  });
  const widths = COLUMNS.map((name, i) =>
    Math.max(name.length, ...rows.map((row) => row[i]!.length))
  );
  const aligned = (row: string[]): string =>
    row.map((cell, i) => cell.padStart(widths[i]!)).join("  ");
  return [
    `${aligned(COLUMNS)}  posted by`,
    ...lines.flatMap((line, i) => {
      const first = `${aligned(rows[i]!)}  ${what(line)} at ${short(line.line)}`;
      return line.source ? [first, `    ${line.source}`] : [first];
    }),
    "",
  ];
}

function more(left: number): string[] {
  return left > 0 ? [`and ${count(left, "line")} more: --top ${left + 10}, or --json`, ""] : [];
}

// What the threads that waited most waited for, and what to do about it.
function verdicts(trace: Trace): string[] {
  const waiting = trace.threads.filter(({ waitedMs }) => waitedMs > 0)
    .sort((a, b) => b.waitedMs - a.waitedMs);
  const shown = waiting.slice(0, 3).map((thread) => verdict(trace, thread));
  const none = trace.lines.length > 0 ? ["No access waited: guards serialise nothing here."] : [];
  const elsewhere = trace.lines.reduce((ms, line) => ms + line.elsewhereMs, 0);
  const others = elsewhere > 0
    ? [`${milliseconds(elsewhere)} ms were waited by other threads that share buffers.`]
    : [];
  const copies = trace.lines.filter(({ privatePages }) => privatePages >= MANY_PAGES)
    .sort((a, b) => b.privatePages - a.privatePages).slice(0, 1)
    .map((line) =>
      `${line.privatePages} pages were copied because they were written to in flight, most of what was ` +
      `${PAST[line.operation]} at ${
        short(line.line)
      }: write to another buffer in turn, or use the guard "copy" ` +
      "if it is rewritten every time."
    );
  return [...(shown.length > 0 || others.length > 0 ? shown : none), ...others, ...copies];
}

const MANY_PAGES = 256;

function verdict({ lines }: Trace, thread: TracedThread): string {
  const { pid, tid, program, ms, waitedMs } = thread;
  const share = (line: TracedLine): number =>
    line.threads.find((each) => each.pid === pid && each.tid === tid)?.waitedMs ?? 0;
  const most = lines.reduce((a, b) => share(b) > share(a) ? b : a);
  const name = program ? short(program) : "the program",
    percent = Math.round(100 * share(most) / waitedMs);
  const who = pid === tid
    ? `${name} (process ${pid})`
    : `thread ${tid} of ${name} (process ${pid})`;
  return `${who}: ${milliseconds(waitedMs)} ms of ${
    milliseconds(ms)
  } ms were spent waiting at guards, ` +
    `${percent} % of it for the ${NOUN[most.operation]} posted at ${short(most.line)}.\n` +
    `    ${advice(most)}`;
}

const NOUN: Record<TracedLine["operation"], string> = {
  recv: "receive",
  read: "read",
  send: "send",
  write: "write",
  snapshot: "snapshot",
  unknown: "operation",
};
const PAST: Record<TracedLine["operation"], string> = {
  recv: "received",
  read: "read",
  send: "sent",
  write: "written",
  snapshot: "kept by the snapshot",
  unknown: "in flight",
};

function advice({ operation, guard, outcomes }: TracedLine): string {
  if (outcomes.deadlock > 0) {
    return "Only the waiting thread itself could have ended it: await it first, or put the other end into another " +
      "Worker or process.";
  }
  if (operation === "recv" || operation === "read") {
    return "Post it earlier, into a second buffer, or touch its buffer later.";
  }
  if (guard === "wait") {
    return 'Use the guard "cow" or "copy", or write to another buffer meanwhile.';
  }
  return "No frame was left for private pages: give Pool.create() a larger reserve, or write to another buffer " +
    "meanwhile.";
}

function losses({ lost }: Trace): string[] {
  if (lost === 0) return [];
  return [
    `${
      count(lost, "fault")
    } more happened, which are not in this table: a pool keeps the last 1024 until its event ` +
    "loop comes round.",
  ];
}

function what({ operation, guard }: TracedLine): string {
  return guard && operation !== "snapshot" ? `${operation} (${guard})` : operation;
}

function short(place: string): string {
  if (place === "") return "no line of the program (a callback of the runtime)";
  const path = place.startsWith("file:") ? fileURLToPath(place) : place,
    near = relative(process.cwd(), path);
  return path.startsWith("/") && !near.startsWith("..") ? near : path;
}

function milliseconds(ms: number): string {
  return ms.toFixed(ms < 0.1 ? 3 : ms < 100 ? 1 : 0);
}

function count(n: number, one: string, many = `${one}s`): string {
  return `${n} ${n === 1 ? one : many}`;
}
