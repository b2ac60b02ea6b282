/**
 * Reads what `deno test` and `bun test` print about one test file.
 *
 * Both runners print skipped tests by name but without the reason, so a test file prints that
 * itself, on a line of its own:
 *
 *     # SKIP <the test's name>: <the reason>
 *
 * A skipped test without such a line is a failure. A test that passed but printed such a line
 * (because it found out while running, and returned) counts as skipped, not as passed.
 *
 * @module
 */

/** The runtimes that the tests run on. */
export type Runtime = "deno" | "bun";

/** A test that did not run. */
export interface Skip {
  name: string;
  /** What the test file gave as the reason, if anything. */
  reason?: string;
}

/** What a test file's run came to. */
export interface Result {
  passed: number;
  failed: number;
  skipped: Skip[];
}

/** Counts the tests in a runner's output; null when there is no summary to be found. */
export function parseResult(runtime: Runtime, stdout: string, stderr: string): Result | null {
  // The results come on stdout from Deno, and on stderr from Bun.
  const counts = runtime === "deno" ? countDeno(stdout) : countBun(stderr);
  if (counts === null) return null;

  const [ignored, passed] = runtime === "deno"
    ? [
      matches(stdout, /^ *(.*) \.\.\. ignored \([^()]*\)$/gm),
      matches(stdout, /^(\S.*) \.\.\. ok \([^()]*\)$/gm),
    ]
    : [
      matches(stderr, /^\((?:skip|todo)\) (.*?)(?: \[[\d.]+\S+\])?$/gm),
      matches(stderr, /^\(pass\) (.*?)(?: \[[\d.]+\S+\])?$/gm),
    ];
  while (ignored.length < counts.skipped) ignored.push("(a test whose name was not printed)");

  const lines = matches(`${stdout}\n${stderr}`, /# SKIP (.*)$/gm);
  /** Finds the reason given for a test, and takes it off the lines. */
  const takeReason = (name: string): string | undefined => {
    // Bun gives the names of the enclosing suites too, Deno the last part only.
    for (const known of [name, name.split(" > ").at(-1)!]) {
      const index = lines.findIndex((line) => line.startsWith(`${known}: `));
      if (index >= 0) return lines.splice(index, 1)[0]!.slice(known.length + 2);
    }
    return undefined;
  };

  const skipped = ignored.map((name): Skip => {
    const reason = takeReason(name);
    return reason === undefined ? { name } : { name, reason };
  });
  for (const name of passed) {
    const reason = takeReason(name);
    if (reason === undefined) continue;
    skipped.push({ name, reason });
    counts.passed--;
  }
  // What remains is about parts of tests, which are not counted.
  for (const line of lines) {
    const [name, ...reason] = line.split(": ");
    skipped.push({ name: name!, reason: reason.join(": ") });
  }
  return { passed: counts.passed, failed: counts.failed, skipped };
}

interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** Such as `ok | 3 passed (4 steps) | 0 failed | 1 ignored (9ms)`; steps are not counted. */
function countDeno(text: string): Counts | null {
  const steps = String.raw`(?: \(\d+ steps?\))?`;
  const summary = new RegExp(
    String.raw`^(?:ok|FAILED) \| (\d+) passed${steps} \| (\d+) failed${steps}` +
      String.raw`(?: \| (\d+) ignored${steps})?(?: \| \d+ [a-z ]+)* \([^()]*\)$`,
    "gm",
  );
  const last = [...text.matchAll(summary)].at(-1);
  if (last === undefined) return null;
  return { passed: Number(last[1]), failed: Number(last[2]), skipped: Number(last[3] ?? 0) };
}

/** Such as ` 3 pass`, ` 1 skip` and ` 0 fail` on the lines before `Ran 4 tests across 1 file.` */
function countBun(text: string): Counts | null {
  const lines = text.split("\n");
  const end = lines.findLastIndex((line) => /^Ran \d+ tests? across \d+ files?\./.test(line));
  const counts = new Map<string, number>();
  for (let i = end - 1; i >= 0; i--) {
    const [, count, label] = /^ *(\d+) (\S.*)$/.exec(lines[i]!) ?? [];
    if (label === undefined) break;
    counts.set(label, Number(count));
  }
  const passed = counts.get("pass");
  const failed = counts.get("fail");
  if (passed === undefined || failed === undefined) return null;
  return { passed, failed, skipped: (counts.get("skip") ?? 0) + (counts.get("todo") ?? 0) };
}

function matches(text: string, pattern: RegExp): string[] {
  return [...text.matchAll(pattern)].map((match) => match[1]!);
}
