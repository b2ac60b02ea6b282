/**
 * The one command that tests everything: `deno task test`.
 *
 * It gets what is missing (Bun, Debian packages), runs the static checks, verifies that the
 * helper's modules are what its sources build to, and runs every `tests/**` file named
 * `*_test.ts` under Deno and under Bun, one process per file and runtime; those in `tests/vm` run
 * in a VM that has a soft-RoCE device. Checks and files that do not depend on time run two at a time.
 * Each static check counts as one test. The last line is `N passed, N failed`, and the exit status
 * is 1 if anything failed.
 *
 *     --only TEXT        only the checks and test files with TEXT in their names
 *     --runtime NAME     only under this runtime, deno or bun
 *     --no-checks        no checks, only the test files
 *     --vm               only the test files that run in the VM
 *     --static           only the static checks
 *     --soak             long forms of the tests (MOAT_SOAK=1)
 *
 * Tests find the commands of both runtimes as JSON arrays in MOAT_DENO and MOAT_BUN. About skipped
 * tests see test_output.ts.
 *
 * @module
 */
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { ensurePackages, run } from "./apt.ts";
import { targets } from "./build_helper.ts";
import { parseResult, type Runtime, type Skip } from "./test_output.ts";
import { type Finished, groups, killGroup, MINUTE, runGroup } from "./test_process.ts";
import { runInVm, VM_TESTS } from "./test_vm.ts";
import { cleanUp } from "./vm/vm.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const BUN_VERSION = "1.4.5";

/**
 * What the tests need beside the helper's compilers: to run programs for the other machine, to open the report, to start
 * the cluster's examples.
 */
const PACKAGES = [
  ...targets.map((target) => target.package),
  "chromium",
  "libc6-dev",
  "libibverbs-dev",
  "librdmacm-dev",
  "mpich",
  "munge",
  "openmpi-bin",
  "openssl",
  "slurm-wlm",
  ...(Deno.build.arch === "x86_64" ? ["libc6-dev-arm64-cross", "qemu-user"] : []),
];

/** Each is a command of Deno. */
const STATIC_CHECKS: Record<string, string[]> = {
  fmt: ["fmt", "--check"],
  lint: ["lint"],
  types: ["check"],
  docs: ["run", "-A", "tools/build_docs.ts", "--check"],
  doc: ["doc", "--lint", "mod.ts", "lib/verbs/mod.ts", "lib/doctor/mod.ts"],
  publish: ["publish", "--dry-run", "--allow-dirty"],
};
const CHECKS: Record<string, string[]> = {
  ...STATIC_CHECKS,
  helper: ["run", "-A", "tools/build_helper.ts", "--check"],
};

/**
 * The files whose tests are about time, lose a race on purpose, or keep all processors busy with
 * VMs: nothing runs beside them.
 */
const ALONE = [
  "background",
  "buffer",
  "channel",
  "event_loop",
  "hostile_peer",
  "peer_death",
  "pipeline",
  "receive",
  "shm_truth",
  "vm_hosts",
  "vm_tool",
  "vmsplice",
].map((name) => `tests/${name}_test.ts`);

/**
 * What is passed on to the tests, so that their results do not depend on who runs them; the latter is how packages
 * are reached.
 */
const PASSED_ON =
  /^(PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_.*|TZ|TMPDIR|CI|DENO_\w+|XDG_.*|LD_LIBRARY_PATH|MOAT_.*)$|^(SSL_CERT_|NODE_EXTRA_CA_CERTS|NPM_CONFIG_|https?_proxy|no_proxy)/i;

/** Totals, and what is to be said once more at the end. */
const totals = { passed: 0, failed: 0 };
const failures: string[] = [];
const skips: string[] = [];

function report(
  name: string,
  result: { passed: number; failed: number; skipped?: Skip[]; problems: string[] },
  finished?: Finished,
): void {
  const skipped = result.skipped ?? [];
  for (const { name: test, reason } of skipped) {
    if (reason === undefined) result.problems.push(`skipped without a reason: ${test}`);
    else skips.push(`${name}: ${test}: ${reason}`);
  }
  const unexplained = skipped.filter((skip) => skip.reason === undefined).length;
  const { passed } = result;
  // Whatever is wrong beyond the failed tests themselves counts at least once.
  const failed = Math.max(result.failed + unexplained, result.problems.length > 0 ? 1 : 0);
  totals.passed += passed;
  totals.failed += failed;

  const counts = `${passed} passed, ${failed} failed` +
    (skipped.length > unexplained ? `, ${skipped.length - unexplained} skipped` : "");
  const seconds = ((finished?.milliseconds ?? 0) / 1000).toFixed(1);
  console.log(`${failed === 0 ? "ok  " : "FAIL"}  ${name}  (${counts}, ${seconds} s)`);
  if (failed === 0) return;
  const briefly = result.problems.map((problem) => problem.split("\n")[0]);
  failures.push([`${name}: ${counts}`, ...briefly].join("; "));
  for (const problem of result.problems) console.log(`      ${problem}`);
  if (finished !== undefined) {
    const rule = "-".repeat(80);
    console.log(`${rule}\n${finished.output.trimEnd()}\n${rule}`);
  }
}

/** Prints the summary and ends the process. */
function finish(): never {
  const list = (title: string, lines: string[]): void => {
    if (lines.length > 0) console.log([`\n${title}:`, ...lines].join("\n  "));
  };
  list("Skipped", skips);
  list("Failed", failures);
  console.log(`\n${totals.passed} passed, ${totals.failed} failed`);
  Deno.exit(totals.failed === 0 ? 0 : 1);
}

/** Runs jobs, so many at a time. */
async function runAll(jobs: (() => Promise<void>)[], atOnce: number): Promise<void> {
  const left = jobs.values();
  const work = async (): Promise<void> => {
    for (const job of left) await job();
  };
  await Promise.all(Array.from({ length: atOnce }, work));
}

async function runCheck(name: string, env: Record<string, string>): Promise<void> {
  const finished = await runGroup([Deno.execPath(), ...CHECKS[name]!], env, 8 * MINUTE);
  const ok = finished.fault === null;
  report(`check ${name}`, {
    passed: ok ? 1 : 0,
    failed: ok ? 0 : 1,
    problems: ok ? [] : [finished.fault!],
  }, finished);
}

/** Reports what a runtime made of a test file. */
function reportFile(runtime: Runtime, file: string, finished: Finished, where = ""): void {
  const result = parseResult(runtime, finished.stdout, finished.stderr);
  const problems: string[] = [];
  if (finished.fault !== null) problems.push(finished.fault);
  if (result === null) problems.push("printed no summary");
  else if (result.passed + result.failed + result.skipped.length === 0) {
    problems.push("has no test");
  }
  report(`${where}${runtime} ${file}`, {
    passed: result?.passed ?? 0,
    failed: result?.failed ?? 0,
    skipped: result?.skipped ?? [],
    problems,
  }, finished);
}

/** Test files, relative to the root, sorted. */
function testFiles(dir = "tests"): string[] {
  const files: string[] = [];
  for (const entry of Deno.readDirSync(`${ROOT}/${dir}`)) {
    const path = `${dir}/${entry.name}`;
    if (entry.isDirectory) files.push(...testFiles(path));
    else if (entry.name.endsWith("_test.ts")) files.push(path);
  }
  return files.sort();
}

/** The path of a new enough Bun: the one on PATH, else the one that npm gets. */
function findBun(): string {
  for (const command of [["bun"], ["npx", "-y", `bun@${BUN_VERSION}`]]) {
    // Asking for the binary itself saves its children the time that npx takes.
    const script = "console.log(JSON.stringify([Bun.version, process.execPath]))";
    const { status, stdout } = run(command[0]!, [...command.slice(1), "-e", script]);
    if (status !== 0) continue;
    const [version, path] = JSON.parse(stdout.trim().split("\n").at(-1)!) as [string, string];
    if (!isOlder(version, BUN_VERSION)) return path;
  }
  throw new Error(
    `Bun ${BUN_VERSION} or newer is missing; install it with:\n  npm install -g bun@${BUN_VERSION}`,
  );
}

function isOlder(version: string, than: string): boolean {
  return version.localeCompare(than, "en", { numeric: true }) < 0;
}

async function main(): Promise<void> {
  const { values: options } = parseArgs({
    args: Deno.args,
    options: {
      only: { type: "string", default: "" },
      runtime: { type: "string" },
      "no-checks": { type: "boolean", default: false },
      vm: { type: "boolean", default: false },
      static: { type: "boolean", default: false },
      soak: { type: "boolean", default: false },
    },
  });
  const runtimes = (["deno", "bun"] as const).filter((r) => r === (options.runtime ?? r));
  if (runtimes.length === 0) throw new Error(`no such runtime: ${options.runtime}`);

  const env: Record<string, string> = { DENO_NO_UPDATE_CHECK: "1", NO_COLOR: "1" };
  for (const [name, value] of Object.entries(Deno.env.toObject())) {
    if (PASSED_ON.test(name)) env[name] = value;
  }
  if (options.soak) env["MOAT_SOAK"] = "1";

  const noChecks = options["no-checks"] || options.vm;
  const checks = Object.keys(options.static ? STATIC_CHECKS : noChecks ? {} : CHECKS)
    .filter((name) => name.includes(options.only));
  const found = options.static ? [] : testFiles().filter((file) => file.includes(options.only));
  const vmFiles = found.filter((file) => file.startsWith(VM_TESTS));
  const files = options.vm ? [] : found.filter((file) => !file.startsWith(VM_TESTS));
  if (checks.length + files.length + vmFiles.length === 0) {
    throw new Error("there is nothing to run");
  }

  if (!options.static) {
    ensurePackages(PACKAGES);
    env["MOAT_DENO"] = JSON.stringify([Deno.execPath()]);
    env["MOAT_BUN"] = JSON.stringify([findBun()]);
  }

  // With both, they share what hardly depends on them (see tests/support/child.ts).
  env["MOAT_SHARED"] = String(runtimes.length - 1);

  const limit = (options.soak ? 60 : 8) * MINUTE;
  const commands: Record<Runtime, string[]> = {
    // Checking the types is a check of its own.
    deno: [Deno.execPath(), "test", "-A", "--no-lock", "--no-check", "--v8-flags=--expose-gc"],
    bun: [...JSON.parse(env["MOAT_BUN"] ?? "[]"), "test", "--timeout", String(limit)],
  };
  const jobsFor = (chosen: (file: string) => boolean): (() => Promise<void>)[] =>
    files.filter(chosen).flatMap((file) =>
      runtimes.map((runtime) => async () => {
        const finished = await runGroup([...commands[runtime], `./${file}`], env, limit);
        reportFile(runtime, file, finished);
      })
    );
  const isAlone = (file: string): boolean => ALONE.includes(file);
  await runAll([
    ...checks.map((name) => () => runCheck(name, env)),
    ...jobsFor((file) => !isAlone(file)),
  ], 2);
  await runAll(jobsFor(isAlone), 1);
  const jobs = vmFiles.flatMap((file) =>
    runtimes.map((runtime) => ({ runtime, file, command: [...commands[runtime], `./${file}`] }))
  );
  await runInVm(jobs, env, options.soak, ({ runtime, file }, finished) => {
    reportFile(runtime, file, finished, "vm ");
  });
}

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  Deno.addSignalListener(signal, () => {
    for (const group of groups) killGroup(group);
    cleanUp();
    Deno.exit(1);
  });
}

try {
  await main();
} catch (error) {
  report("set-up", {
    passed: 0,
    failed: 1,
    problems: [error instanceof Error ? error.message : String(error)],
  });
}
finish();
