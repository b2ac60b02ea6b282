/**
 * Parts of benchmarks that measure nothing, for the tests of the report. The directory MOAT_TEST_PARTS says what
 * becomes of them: each that runs writes its name into `log`, and `second` waits for the file `go`.
 *
 * @module
 */
import { spawn } from "node:child_process";
import { appendFileSync, existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import type { Part, Result } from "../../bench/results.ts";

const directory = process.env["MOAT_TEST_PARTS"]!;

function part(name: string, run: () => Promise<number> | number): Part {
  return {
    ...{ name, title: `The ${name} part`, about: "It measures nothing.", packages: [] },
    seconds: { quick: 1, full: 1 },
    run: async ({ quick, say }): Promise<Result[]> => {
      appendFileSync(join(directory, "log"), `${name}\n`);
      say(`${name} runs, ${quick ? "quick" : "full"}`);
      const how = "made up by tests/programs/report_parts.ts: nothing was measured";
      return [{ part: name, series: "moat", at: {}, value: await run(), unit: "ns", how }];
    },
    print: () => "",
  };
}

const working: Part[] = [
  part("first", () => 1),
  part("second", async () => {
    // Something that would be left over: a process that does not end by itself.
    const child = spawn("sleep", ["1000"], { stdio: "ignore" });
    appendFileSync(join(directory, "pids"), `${process.pid} ${child.pid}\n`);
    while (!existsSync(join(directory, "go"))) await new Promise((done) => setTimeout(done, 20));
    return 2;
  }),
];

const failing: Part[] = [
  part("good", () => 1),
  part("throws", () => {
    throw new Error("</script><img src=x onerror=alert(1)> is why");
  }),
  part("crashes", () => {
    process.kill(process.pid, "SIGABRT");
    return new Promise(() => {});
  }),
  part("absurd", () => NaN),
  part("last", () => 3),
];

/** Those that are asked for. */
export const parts: readonly Part[] = process.env["MOAT_TEST_FAIL"] ? failing : working;
