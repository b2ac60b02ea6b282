/**
 * Runs the test files that need real verbs, all in one boot of a VM (see vm/vm.ts).
 *
 * @module
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { stripVTControlCharacters } from "node:util";
import type { Runtime } from "./test_output.ts";
import type { Finished } from "./test_process.ts";
import { DIED, startVm } from "./vm/vm.ts";

/** Where the test files are that run in the VM. */
export const VM_TESTS = "tests/vm/";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** A test file to be run by a runtime. */
export interface Job {
  runtime: Runtime;
  file: string;
  command: string[];
}

/**
 * Runs each job in a process of its own, one after the other: two at once would fight for the
 * device, for ports and for the emulated processors, and their timing would depend on each other.
 */
export async function runInVm(
  jobs: Job[],
  env: Record<string, string>,
  soak: boolean,
  onFinished: (job: Job, finished: Finished) => void,
): Promise<void> {
  if (jobs.length === 0) return;
  /** Seconds for each. */
  const limit = soak ? 3600 : 200;
  const out = mkdtempSync(join(tmpdir(), `moat-vm-tests-${Deno.pid}-`));
  try {
    writeFileSync(join(out, "run.sh"), script(jobs, out, limit));
    const vm = await startVm({
      command: ["sh", join(out, "run.sh")],
      cwd: ROOT,
      env,
      out,
      timeout: 60 + jobs.length * (limit + 5),
    });
    let next = 0;
    for await (const line of vm.lines()) {
      const [, index, status, milliseconds] = /^job (\d+) (\d+) (\d+)$/.exec(line) ?? [];
      if (index === undefined) continue;
      next = Number(index) + 1;
      onFinished(jobs[next - 1]!, collect(out, index, limit, Number(status), Number(milliseconds)));
    }
    const { fault, stderr, status } = await vm.wait();
    for (const [i, job] of jobs.entries()) {
      if (i < next) continue;
      const finished = collect(out, String(i), limit, DIED, 0);
      finished.fault = i > next ? "did not run" : fault ?? `the VM ended with status ${status}`;
      finished.output += stderr;
      onFinished(job, finished);
    }
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}

/** What the guest does; it says on a line of stdout when a job is done. */
function script(jobs: Job[], out: string, limit: number): string {
  const quote = (word: string): string => `'${word.replaceAll("'", `'\\''`)}'`;
  const lines = jobs.map(({ command }, i) => {
    const to = (name: string): string => quote(join(out, `${i}.${name}`));
    return `start=$(date +%s%N)
timeout -s KILL ${limit} ${command.map(quote).join(" ")} >${to("stdout")} 2>${to("stderr")}
status=$?
echo "job ${i} $status $((($(date +%s%N) - start) / 1000000))"
`;
  });
  return lines.join("");
}

/** What a job left in the shared directory. */
function collect(
  out: string,
  index: string,
  limit: number,
  status: number,
  milliseconds: number,
): Finished {
  const read = (name: string): string => {
    try {
      return readFileSync(join(out, `${index}.${name}`), "utf8");
    } catch {
      return "";
    }
  };
  const stdout = read("stdout");
  const stderr = read("stderr");
  const fault = milliseconds >= limit * 1000
    ? `killed after ${limit} s`
    : status > 128
    ? `crashed with signal ${status - 128}`
    : status !== 0
    ? `exited with status ${status}`
    : null;
  return {
    stdout: stripVTControlCharacters(stdout),
    stderr: stripVTControlCharacters(stderr),
    output: stdout + stderr,
    fault,
    milliseconds,
  };
}
