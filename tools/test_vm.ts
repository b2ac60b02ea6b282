/**
 * Runs the test files that need real verbs, in two VMs that boot once (see vm/vm.ts).
 *
 * @module
 */
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { stripVTControlCharacters } from "node:util";
import type { Runtime } from "./test_output.ts";
import type { Finished } from "./test_process.ts";
import { quote } from "./vm/guest.ts";
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

/** What takes longest comes first, so that in the end no VM waits long for the other. */
const LONGEST = ["examples", "programs", "rdma_channel", "rdma_truth", "doctor"];

/**
 * Runs each job in a process of its own, one after the other in a VM: two at once would fight for the
 * device, for ports and for the emulated processors, and their timing would depend on each other.
 *
 * There are two VMs with one processor each, because one with two leaves half of the host idle most of the time; in the
 * soak it is one with two, where what can happen at the same time does.
 */
export async function runInVm(
  jobs: Job[],
  env: Record<string, string>,
  soak: boolean,
  onFinished: (job: Job, finished: Finished) => void,
): Promise<void> {
  if (jobs.length === 0) return;
  const rank = ({ file }: Job): number =>
    (LONGEST.findIndex((name) => file.endsWith(`/${name}_test.ts`)) + 1) || LONGEST.length + 1;
  const left = [...jobs].sort((a, b) => rank(a) - rank(b));
  const vms = soak ? 1 : Math.min(2, jobs.length), cpus = soak ? 2 : 1;
  /** Seconds for each. */
  const limit = soak ? 3600 : 300;
  const timeout = 60 + jobs.length * (limit + 5);
  const work = async (): Promise<void> => {
    const out = mkdtempSync(join(tmpdir(), `moat-vm-tests-${Deno.pid}-`));
    try {
      await runJobs(left, out, limit, { cpus, env, timeout }, onFinished);
    } finally {
      rmSync(out, { recursive: true, force: true });
    }
  };
  await Promise.all(Array.from({ length: vms }, work));
  for (const job of left) {
    const none = { stdout: "", stderr: "", output: "", milliseconds: 0 };
    onFinished(job, { ...none, fault: "did not run, because the VMs have died" });
  }
}

/** Runs jobs in a VM until none is left, or the VM dies. Takes them out of `left`. */
async function runJobs(
  left: Job[],
  out: string,
  limit: number,
  options: { cpus: number; env: Record<string, string>; timeout: number },
  onFinished: (job: Job, finished: Finished) => void,
): Promise<void> {
  writeFileSync(join(out, "run.sh"), script(out, limit));
  let number = -1, job: Job | undefined;
  const give = (): void => {
    job = left.shift();
    const file = join(out, String(++number));
    writeFileSync(`${file}.new`, job ? `exec ${job.command.map(quote).join(" ")}\n` : "");
    renameSync(`${file}.new`, `${file}.sh`); // there at once with all that is in it
  };
  give();
  const vm = await startVm({ command: ["sh", join(out, "run.sh")], cwd: ROOT, out, ...options });
  for await (const line of vm.lines()) {
    const [, index, status, milliseconds] = /^job (\d+) (\d+) (\d+)$/.exec(line) ?? [];
    if (index === undefined || Number(index) !== number || !job) continue;
    onFinished(job, collect(out, index, limit, Number(status), Number(milliseconds)));
    give();
  }
  const { fault, stderr, status } = await vm.wait();
  if (!job) return;
  const finished = collect(out, String(number), limit, DIED, 0);
  finished.fault = fault ?? `the VM ended with status ${status}`;
  finished.output += stderr;
  onFinished(job, finished);
}

/** What the guest does: one script after the other as they come, until one is empty. It says when one is done. */
function script(out: string, limit: number): string {
  return `cd ${quote(ROOT)}
i=0
while :; do
  job=${quote(out)}/$i
  until [ -e "$job.sh" ]; do sleep 0.1; done
  [ -s "$job.sh" ] || exit 0
  start=$(date +%s%N)
  timeout -s KILL ${limit} sh "$job.sh" >"$job.stdout" 2>"$job.stderr"
  status=$?
  echo "job $i $status $((($(date +%s%N) - start) / 1000000))"
  i=$((i + 1))
done
`;
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
