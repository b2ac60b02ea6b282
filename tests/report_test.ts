import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import type { Report } from "../bench/results.ts";
import { chartsOf, sections } from "../tools/report/sections.ts";
import { crossover } from "../tools/report/summary.ts";
import { bytesTicks, logTicks } from "../tools/report/ticks.ts";
import { command, share } from "./support/child.ts";
import { Chromium } from "./support/chromium.ts";
import { drawings, faint, overflowing } from "./support/looks.ts";
import { reportFixture } from "./support/report_fixture.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const directory = mkdtempSync(join(tmpdir(), "moat-report-test-"));
after(() => rmSync(directory, { recursive: true }));
const PARTS = join(ROOT, "tests/programs/report_parts.ts");

interface Ended {
  status: number | null;
  said: string;
}

/** A run of the report; `env` is what its parts are told. */
function start(args: string[], env: Record<string, string>): [ChildProcess, Promise<Ended>] {
  const [deno, ...words] = [...command("deno"), "--no-check", "tools/report.ts"];
  const child = spawn(deno!, [...words, "--parts", PARTS, ...args], {
    ...{ cwd: ROOT, env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] },
  });
  let said = "";
  child.stdout!.on("data", (text) => said += text);
  child.stderr!.on("data", (text) => said += text);
  return [child, once(child, "close").then(([status]) => ({ status, said }))];
}

function json<T>(...path: string[]): T {
  return JSON.parse(readFileSync(join(...path), "utf8")) as T;
}

/** The results in a page. */
function embedded(page: string): unknown {
  const text = /<script type="application\/json" id="report">(.*?)<\/script>/s.exec(page)![1]!;
  return JSON.parse(text);
}

async function until(what: string, check: () => boolean): Promise<void> {
  for (const end = Date.now() + 30_000; !check();) {
    assert.ok(Date.now() < end, `waited in vain until ${what}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

function runs(pid: number): boolean {
  try {
    // One that has ended is there until its parent takes note.
    return !/^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}

async function goesOn(): Promise<void> {
  const own = mkdtempSync(join(directory, "goes-on-")), out = join(own, "out");
  const env = { MOAT_TEST_PARTS: own }, args = ["--out", out];
  const log = (): string[] => readFileSync(join(own, "log"), "utf8").trim().split("\n");
  const lines = (): string[] =>
    existsSync(join(own, "pids")) ? readFileSync(join(own, "pids"), "utf8").trim().split("\n") : [];

  for (const [i, signal] of (["SIGKILL", "SIGINT"] as const).entries()) {
    const [child, ended] = start(args, env);
    await until("the second part runs", () => lines().length === i + 1 || child.exitCode !== null);
    // Deno's child.kill() takes a process for killed by its signal that ends with a status because of it.
    process.kill(child.pid!, signal);
    const { status, said } = await ended;
    assert.equal(status, signal === "SIGINT" ? 130 : null, said);
    const pids = lines()[i]!.split(" ").map(Number);
    await until(`${pids} have ended after ${signal}`, () => !pids.some(runs));
  }
  assert.deepEqual(log(), ["first", "second", "second"], "what had been measured was taken over");

  writeFileSync(join(own, "go"), "");
  const { status, said } = await start(args, env)[1];
  assert.equal(status, 0, said);
  assert.match(said, /1 of 2 parts have been measured before/);
  assert.match(said, /part 1 of 1: second {2}\d+ s {2}1 figure\n/);
  const report = json<Report>(out, "report.json");
  assert.deepEqual(report.results.map(({ part, value }) => [part, value]), [
    ["first", 1],
    ["second", 2],
  ]);
  assert.deepEqual(embedded(readFileSync(join(out, "index.html"), "utf8")), report);
  await until("nothing is left", () => !lines().join(" ").split(" ").map(Number).some(runs));

  await start([...args, "--fresh", "--only", "first"], env)[1];
  assert.deepEqual(
    log(),
    ["first", "second", "second", "second", "first"],
    "--fresh measures again",
  );
}

async function failures(): Promise<void> {
  const own = mkdtempSync(join(directory, "fails-")), out = join(own, "out");
  const env = { MOAT_TEST_PARTS: own, MOAT_TEST_FAIL: "1" }, args = ["--out", out];
  const { status, said } = await start(args, env)[1];
  assert.equal(status, 1, said);
  assert.match(said, /failed: throws, crashes, absurd\n/);
  assert.match(said, /part 2 of 5: throws {2}\d+ s {2}FAILED: .*is why\n/);
  const report = json<Report>(out, "report.json");
  assert.deepEqual(report.results.map(({ part }) => part), ["good", "last"]);
  assert.match(report.failed["throws"]!, /is why/);
  assert.match(report.failed["crashes"]!, /crashed with SIGABRT/);
  assert.match(report.failed["absurd"]!, /value is null|value is NaN/);

  const page = readFileSync(join(out, "index.html"), "utf8");
  assert.deepEqual(embedded(page), report);
  assert.match(page, /Failed: <a href="#throws">/);
  assert.match(page, /&#60;\/script&#62;&#60;img src=x onerror=alert\(1\)&#62; is why/);
  assert.doesNotMatch(page, /<img/);
  assert.match(page, /deno task report --only guards/, "what was not run says how it is run");

  const again = await start([...args, "--only", "good"], env)[1];
  assert.equal(again.status, 0, again.said);
  const unknown = await start([...args, "--only", "nonsense"], env)[1];
  assert.equal(unknown.status, 1);
  assert.match(unknown.said, /there is no part "nonsense"; the parts are: good, throws, crashes/);
}

/** Writes a report's page; its address. */
async function pageOf(report: Report, name: string): Promise<string> {
  const files = ["json", "html"].map((ending) => join(directory, `${name}.${ending}`));
  writeFileSync(files[0]!, JSON.stringify(report));
  const [deno, ...words] = [...command("deno"), "--no-check"];
  const program = join(ROOT, "tests/programs/report_page.ts");
  const child = spawn(deno!, [...words, program, ...files], { stdio: "inherit" });
  assert.deepEqual(await once(child, "close"), [0, null]);
  return pathToFileURL(files[1]!).href;
}

/** What has to be right at any width, in light and dark. */
async function looks(browser: Chromium, report: Report): Promise<void> {
  const call = <T>(what: () => T): Promise<T> => browser.evaluate<T>(`(${what})()`);
  const wanted = sections.flatMap((section) => chartsOf(section, report.results));
  assert.ok(wanted.length > 8, "the fixture has results for every kind of chart");
  for (const width of [1280, 390]) {
    for (const scheme of ["light", "dark"] as const) {
      await browser.show(width, scheme);
      const where = `${width}, ${scheme}`, seen = await call(drawings);
      assert.equal(seen.figures, wanted.length, where);
      assert.equal(seen.drawings.length, wanted.flatMap(({ panels }) => panels).length, where);
      for (const drawing of seen.drawings) {
        assert.ok(drawing.marks > 0, `${where}, ${drawing.name}: nothing is drawn`);
        const off = Math.abs(drawing.width - drawing.room);
        assert.ok(off < 1, `${where}, ${drawing.name}: ${off} pixels off its place`);
      }
      assert.deepEqual(await call(overflowing), [], where);
      assert.deepEqual(await call(faint), [], where);
    }
  }
}

async function inChromium(): Promise<void> {
  const report = reportFixture();
  const [url, empty] = await Promise.all([
    pageOf(report, "fixture"),
    pageOf({ ...report, results: [], seconds: {} }, "empty"),
  ]);
  const browser = await Chromium.start();
  try {
    await browser.open(url, 1280);
    await browser.evaluate(
      "document.querySelectorAll('details').forEach((each) => each.open = true)",
    );
    await looks(browser, report);
    const text = await browser.evaluate<string>("document.getElementById('report').textContent");
    assert.deepEqual(JSON.parse(text), report);
    assert.deepEqual(browser.seen, { problems: [], requests: [url] });

    // A figure is told where one points at it.
    const [x, y] = await browser.evaluate<[number, number]>(`(() => {
      const plot = document.querySelector("#chart-rate-1 .plot");
      plot.scrollIntoView({ block: "center" });
      const { left, top, width } = plot.querySelector("g[aria-label=bar] > *").getBoundingClientRect();
      return [left + width - 2, top + 5];
    })()`);
    await browser.send("Input.dispatchMouseEvent", { type: "mouseMoved", x, y });
    await browser.drawn();
    const tip = await browser.evaluate<string>(
      "document.querySelector('#chart-rate-1 g[aria-label=tip]').textContent",
    );
    assert.match(tip, /Moat, Deno.*1.73 million messages\/s/s);

    await browser.open(empty, 390);
    const missing = await browser.evaluate<number>(
      "document.querySelectorAll('section .missing').length",
    );
    assert.equal(missing, sections.length, "every section says how it is run");
    assert.deepEqual(browser.seen, { problems: [], requests: [empty] });
  } finally {
    await browser.close();
  }
}

async function hostile(): Promise<void> {
  const bad = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "<!--<script>",
    "'; alert(4); //\u2028",
  ];
  const report = reportFixture();
  for (const [i, result] of report.results.entries()) {
    const text = bad[i % bad.length]!;
    // Where a series has to be known, it stays; everything else that is a text is hostile.
    result.how = text;
    result.statistic = text;
    if (i % 3 === 0) result.series = text;
    if (i % 4 === 0) result.runtime = text;
    for (const key of ["transport", "side", "end", "what", "group", "touched", "network"]) {
      if (key in result.at && i % 2 === 0) result.at[key] = text;
    }
    if (i % 7 === 0) result.at[text] = text;
  }
  report.facts = Object.fromEntries(bad.map((text) => [text, text]));
  report.date = bad[0]!;
  report.failed = { guards: bad.join("\n"), rate: bad[0]! };
  const url = await pageOf(report, "hostile"), browser = await Chromium.start();
  try {
    await browser.open(url, 1280);
    const text = await browser.evaluate<string>("document.getElementById('report').textContent");
    assert.deepEqual(JSON.parse(text), report);
    const elements =
      "[document.images.length, document.scripts.length, document.querySelectorAll('[onload], [onerror]').length]";
    assert.deepEqual(await browser.evaluate(elements), [0, 2, 0]);
    const { figures, drawings: drawn } = await browser.evaluate<ReturnType<typeof drawings>>(
      `(${drawings})()`,
    );
    assert.ok(figures > 0 && drawn.every(({ marks }) => marks > 0), JSON.stringify(drawn));
    assert.deepEqual(browser.seen, { problems: [], requests: [url] });
  } finally {
    await browser.close();
  }
}

// What is tested runs on Deno and in a browser whichever runtime this file is run by.
const shared: [string, () => Promise<void>][] = [
  ["in Chromium: charts, light and dark, on a phone, and nothing fetched", inChromium],
  ["a run that is killed or interrupted goes on where it was, and leaves no process", goesOn],
  [
    "a part that fails is shown, does not take the others with it, and makes the status 1",
    failures,
  ],
  ["in Chromium: what results say is never markup", hostile],
];
for (const [name, run] of share(shared)) test(name, { timeout: 120_000 }, run);

test("the size from which on a guard costs less than a copy is found in the results", () => {
  const { results } = reportFixture();
  assert.equal(crossover(results, "deno"), 64 << 10);
  const never = results.filter(({ series }) => series !== "cow");
  assert.equal(crossover(never, "deno"), undefined);
});

test("ticks are round, within the axis, and not more than fit", () => {
  assert.deepEqual(bytesTicks(4096, 64 << 20, 4), [4096, 65536, 1 << 20, 16 << 20]);
  assert.deepEqual(bytesTicks(4096, 4096, 4), [4096]);
  assert.deepEqual(logTicks(0.8, 12, 4), [1, 2, 5, 10]);
  assert.deepEqual(logTicks(0.0005, 2000, 4), [0.001, 0.1, 10, 1000]);
});
