import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { type Fault, MoatError, Pool, type PoolBuffer } from "../mod.ts";
import type { Trace, TracedLine } from "../tools/trace/gather.ts";
import { report } from "../tools/trace/report.ts";
import { Child, command, here, other } from "./support/child.ts";
import { pair } from "./support/pair.ts";

const PAGE = 4096, MIB = 1 << 20;
const PROGRAM = fileURLToPath(new URL("programs/traced.ts", import.meta.url));
const TEST = fileURLToPath(import.meta.url);
const TOOL = fileURLToPath(new URL("../tools/trace.ts", import.meta.url));
const directory = mkdtempSync(join(tmpdir(), "moat-trace-test-"));
after(() => rmSync(directory, { recursive: true }));

interface Ran {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** Runs the tool. */
function tool(args: string[], env: Record<string, string> = {}): Promise<Ran> {
  const [program, ...words] = command(here) as [string, ...string[]];
  const child = spawn(program, [...words, TOOL, ...args], { env: { ...process.env, ...env } });
  let stdout = "", stderr = "";
  child.stdout.on("data", (chunk) => stdout += chunk);
  child.stderr.on("data", (chunk) => stderr += chunk);
  return new Promise((resolve) =>
    child.on("close", (status) => resolve({ status, stdout, stderr }))
  );
}

let runs = 0;
/** Traces a mode of the program. */
async function trace(mode: string, ...args: string[]): Promise<Ran & { trace: Trace }> {
  const json = join(directory, `${runs++}.json`);
  const ran = await tool(["--json", json, PROGRAM, mode, ...args]);
  return { ...ran, trace: JSON.parse(readFileSync(json, "utf8")) };
}

const sourceOf = (file: string): string[] => readFileSync(file, "utf8").split("\n");
/** The number of a marked line of the program, or of another file. */
function marked(mark: string, file = PROGRAM): number {
  const index = sourceOf(file).findIndex((line) => line.endsWith(`// mark: ${mark}`));
  assert.ok(index >= 0, `no line is marked ${mark}`);
  return index + 1;
}

/** The line of the report that is about a marked line of the program. */
function at(trace: Trace, mark: string): TracedLine {
  const place = `${PROGRAM}:${marked(mark)}:`;
  const lines = trace.lines.filter(({ line }) => line.startsWith(place));
  assert.equal(lines.length, 1, `${mark} in ${JSON.stringify(trace.lines)}`);
  assert.equal(lines[0]!.source, sourceOf(PROGRAM)[marked(mark) - 1]!.trim());
  return lines[0]!;
}

const NONE = { restored: 0, private: 0, waited: 0, timeout: 0, deadlock: 0 };

// ---- the tool

test("a receive that is touched too early is the line that serialises the program", async () => {
  const { trace: found, status, stdout, stderr } = await trace("serial");
  assert.deepEqual([status, stdout], [0, ""], stderr);
  const recv = at(found, "recv");
  const { operation, guard, reads, writes, outcomes, privatePages } = recv;
  assert.deepEqual(
    { operation, guard, reads, writes, outcomes, privatePages },
    {
      operation: "recv",
      guard: "wait",
      reads: 3,
      writes: 0,
      outcomes: { ...NONE, waited: 3 },
      privatePages: 0,
    },
  );
  const { waitedMs, longestMs, medianMs } = recv;
  assert.ok(waitedMs >= longestMs && longestMs >= medianMs && medianMs > 0, JSON.stringify(recv));
  assert.equal(found.lines[0]!.line, recv.line, "the most expensive comes first");
  assert.equal(found.threads.length, 2, "the Worker is traced");
  const [main, worker] = found.threads as [Trace["threads"][0], Trace["threads"][0]];
  assert.deepEqual([main.pid, main.pid === main.tid], [worker.pid, true]);
  assert.deepEqual([main.runtime, main.program], [here, PROGRAM]);
  assert.ok(main.ms > waitedMs && main.waitedMs === waitedMs && worker.waitedMs === 0);
  assert.match(stderr, /were spent waiting at guards, 100 % of it for the receive posted at /);
  assert.match(stderr, new RegExp(`recv \\(wait\\) at .*traced\\.ts:${marked("recv")}:\\d+`));
  assert.ok(stderr.includes("    const got = channel.recv(buf); // mark: recv\n"));
  const sends = found.lines.filter(({ line }) => line.includes(`:${marked("worker")}:`));
  assert.equal(sends.length, 1, "the Worker's line is found");
  assert.equal(sends[0]!.operation, "send");
});

test("private pages, and permissions given back, are told with the sends they are due to", async () => {
  const { trace: found, stderr } = await trace("copies");
  const send = at(found, "send"), finished = at(found, "finished");
  assert.deepEqual([send.reads, send.writes, send.outcomes, send.privatePages], [
    0,
    6,
    { ...NONE, private: 6 },
    6,
  ]);
  assert.deepEqual([finished.writes, finished.outcomes], [1, { ...NONE, restored: 1 }]);
  assert.equal(send.waitedMs, 0);
  assert.match(stderr, /No access waited/);
});

test("processes that a program starts are traced, on the other runtime too", async () => {
  const { trace: found, stderr } = await trace("child", ...command(other()));
  assert.equal(at(found, "send").writes, 6, stderr);
  assert.deepEqual(found.threads.map(({ runtime }) => runtime), [other()]);
});

test("faults whose records were overwritten are counted", async () => {
  const { trace: found, stderr } = await trace("lost");
  assert.equal(at(found, "many").writes, 1024);
  assert.equal(found.lost, 176);
  assert.match(stderr, /176 faults more happened, which are not in this table/);
});

test("faults of a pool that nobody closes are told, and the exit status is passed on", async () => {
  const { trace: found, status, stderr } = await trace("status");
  assert.equal(status, 7, stderr);
  const { operation, writes, outcomes } = at(found, "snapshot");
  assert.deepEqual([operation, writes, outcomes], ["snapshot", 1, { ...NONE, private: 1 }]);
});

test("an uncaught error of the script is reported by its runtime as ever", async () => {
  const { status, stderr } = await trace("throw");
  assert.equal(status, 1);
  assert.match(stderr, /of the script/);
  assert.match(stderr, /^trace: /m);
});

test("when nothing was touched, or there is no pool, it says so", async () => {
  assert.match((await trace("idle")).stderr, /trace: no buffer was touched in flight/);
  const none = await trace("none");
  assert.equal(none.stdout, "nothing to see\n");
  assert.match(none.stderr, /trace: nothing was traced: no pool was made/);
});

test("the script has its arguments, whatever they look like, by whichever runtime was asked for", async () => {
  const args = ["--", "--top", "-1", "--json=x"];
  const { status, stdout } = await tool(["--", "--runtime", other(), PROGRAM, "args", ...args]);
  assert.deepEqual([status, JSON.parse(stdout)], [0, args]);
});

test("bad usage is explained, and is not the script's status", async () => {
  const bad: [string[], RegExp][] = [
    [[], /which script\?/],
    [["--top", "0", PROGRAM], /--top has to be a whole number above 0, not "0"/],
    [["--runtime", "node", PROGRAM], /--runtime is either deno or bun, not "node"/],
    [["--jsno", "x", PROGRAM], /--jsno/],
    [["no-such-script.ts"], /ENOENT.*no-such-script\.ts/],
  ];
  for (const [args, message] of bad) {
    const { status, stdout, stderr } = await tool(args);
    assert.deepEqual([status, stdout], [125, ""], stderr);
    assert.match(stderr, message);
  }
  const help = await tool(["--help"]);
  assert.equal(help.status, 0);
  for (const word of ["--runtime NAME", "--json FILE", "--top N", "MOAT_TRACE"]) {
    assert.ok(help.stdout.includes(word), word);
  }
});

test("a file that cannot be written to does not disturb the program", async (t) => {
  const before = process.env["MOAT_TRACE"];
  process.env["MOAT_TRACE"] = join(directory, "no", "such", "directory");
  t.after(() =>
    before === undefined ? delete process.env["MOAT_TRACE"] : process.env["MOAT_TRACE"] = before
  );
  const child = new Child(t, "traced", ["copies"]);
  const { code, stderr } = await child.exit;
  assert.deepEqual([code, stderr], [0, ""]);
  assert.throws(() => statSync(process.env["MOAT_TRACE"]!));
});

test("the report is as long as it was asked to be, and names lines that are no file", () => {
  const line = (waitedMs: number): TracedLine => ({
    line: waitedMs === 2 ? "" : `https://example.com/x.ts:${waitedMs}:1`,
    operation: "send",
    guard: "wait",
    stack: "",
    reads: 0,
    writes: 1,
    outcomes: { ...NONE, waited: 1 },
    privatePages: 0,
    waitedMs,
    longestMs: waitedMs,
    medianMs: waitedMs,
    elsewhereMs: 0,
    threads: [{ pid: 1, tid: 1, waitedMs }],
  });
  const thread = { pid: 1, tid: 1, runtime: "deno", program: "", ms: 10, lost: 0, waitedMs: 9 };
  const all: Trace = { lines: [4, 3, 2].map(line), threads: [thread], lost: 0, waitedMs: 9 };
  const text = report(all, 2);
  assert.match(text, /send \(wait\) at https:\/\/example\.com\/x\.ts:4:1\n/);
  assert.match(text, /and 1 line more/);
  assert.match(text, /9\.0 ms of 10\.0 ms were spent waiting at guards, 44 % of it for the send/);
  assert.ok(!text.includes("no line of the program"));
  assert.match(report(all, 3), /send \(wait\) at no line of the program/);
});

// ---- onFault

test("onFault is told of sends, receives, files and snapshots with the lines that began them", async () => {
  await using pool = Pool.create({ bytes: MIB, trace: true });
  const faults: Fault[] = [];
  pool.onFault = (fault) => faults.push(fault);
  await using file = pool.open(join(directory, "file"), { create: true });
  using ends = await pair(pool);
  const buffers = Array.from({ length: 5 }, () => pool.alloc(PAGE));
  const [a, b, c, d, e] = buffers as [PoolBuffer, PoolBuffer, PoolBuffer, PoolBuffer, PoolBuffer];
  const got = ends.there.recv(b); // mark: receive
  const sent = ends.here.send(a, { guard: "cow" }); // mark: send
  void b.bytes[2];
  a.bytes[1] = 1;
  const writing = c.bytes, reading = d.bytes; // to ask for them later would open what is over
  const written = file.write(c, 0, { guard: "cow" }); // mark: write
  writing[3] = 1;
  await written;
  // The file may be read, and its end known, before this thread gets to the touch.
  const told = (): boolean => pool.stats() && faults.some(({ operation }) => operation === "read");
  for (let tries = 0; tries < 100 && !told(); tries++) {
    const read = file.read(d); // mark: read
    reading[4] = 1;
    await read;
  }
  using _snapshot = e.snapshot(); // mark: snapshot
  e.bytes[5] = 1;
  await Promise.all([sent, got]);
  pool.stats();
  const seen = faults.map(({ operation, offset, access, bufferPage, stack }) => [
    operation,
    offset,
    access,
    bufferPage,
    Number(/^ {4}at .*\/trace_test\.ts:(\d+):\d+\)?$/m.exec(stack!)?.[1]),
  ]);
  assert.deepEqual(seen, [
    ["recv", 2, "read", b.page, marked("receive", TEST)],
    ["send", 1, "write", a.page, marked("send", TEST)],
    ["write", 3, "write", c.page, marked("write", TEST)],
    ["read", 4, "write", d.page, marked("read", TEST)],
    ["snapshot", 5, "write", e.page, marked("snapshot", TEST)],
  ]);
});

test("a write after the end is told with the send that closed the page, though its number is another's", async () => {
  await using pool = Pool.create({ bytes: MIB, trace: true });
  const faults: Fault[] = [];
  pool.onFault = (fault) => faults.push(fault);
  using ends = await pair(pool);
  const a = pool.alloc(PAGE), b = pool.alloc(PAGE), bytes = [a.bytes, b.bytes] as const;
  const first = ends.here.send(a, { guard: "cow" }); // mark: first
  (await ends.there.recv())!.release();
  await first;
  for (let i = 0; i < 20; i++) {
    const sent = ends.here.send(b, { guard: "cow" });
    (await ends.there.recv())!.release();
    await sent;
  }
  bytes[0][0] = 1;
  const next = ends.here.send(b, { guard: "cow" }); // mark: next
  (await ends.there.recv())!.release();
  await next;
  bytes[1][0] = 1;
  pool.stats();
  assert.deepEqual(
    faults.map(({ operation, outcome, bufferPage }) => [operation, outcome, bufferPage]),
    [["send", "restored", a.page], ["send", "restored", b.page]],
  );
  assert.match(faults[0]!.stack!, new RegExp(`trace_test\\.ts:${marked("first", TEST)}:`));
  assert.match(faults[1]!.stack!, new RegExp(`trace_test\\.ts:${marked("next", TEST)}:`));
});

test("without trace there is no stack; another listener replaces the first, and undefined removes it", async () => {
  await using pool = Pool.create({ bytes: MIB });
  using buf = pool.alloc(4 * PAGE);
  const told: string[] = [];
  const touch = (): void => {
    using _snapshot = buf.snapshot();
    buf.bytes[0] = 1;
    pool.stats();
  };
  pool.onFault = ({ operation, stack }) => told.push(`first ${operation} ${stack}`);
  touch();
  pool.onFault = () => told.push("second");
  touch();
  assert.notEqual(pool.onFault, undefined);
  pool.onFault = undefined;
  touch();
  pool.onFault = () => told.push("third");
  pool.stats();
  assert.deepEqual(
    told,
    ["first snapshot undefined", "second"],
    "and what nobody heard is not told later",
  );
  assert.throws(
    () => pool.onFault = 5 as unknown as () => void,
    (error) => error instanceof MoatError && error.code === "INVALID_ARGUMENT",
  );
});

test("an error of a listener is an uncaught one, and stops neither the operation nor the listener", async (t) => {
  const child = new Child(t, "traced", ["listener"]);
  assert.deepEqual(await child.next(), { errors: 3, calls: 3, faults: 3 });
  const { code, stderr } = await child.exit;
  assert.equal(code, 0, stderr);
});
