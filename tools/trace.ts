/**
 * `deno task trace -- script.ts ARGS…` runs a script, unchanged, and then tells which lines of it started the
 * operations whose buffers were touched in flight: how often, what came of it, how long the accesses waited. That
 * is how to find what serialises a program.
 *
 *     --runtime NAME   deno or bun; by default the one that runs this tool
 *     --json FILE      also writes what is known to a file
 *     --top N          lines of code to show (20)
 *
 * The script runs with all permissions in the current directory. The table goes to standard error, when the
 * script has ended; its own output is untouched, and its exit status is passed on. The status is 125 when it could
 * not be run.
 *
 * Its Workers and the processes it starts, and theirs, are traced as well: the switch is the environment variable
 * MOAT_TRACE, the path of a file that each of them appends to. Who cannot be seen: a process that is started with
 * an environment of its own, that outlives the script, or that imports a version of Moat without tracing.
 *
 * The line is that of the call that started the operation (`send`, `recv`, `read`, `write`, `snapshot`). The line of
 * the access that waited is not known: it was within a fault handler, where there is no stack of JavaScript. On Bun,
 * a function that ends with `return channel.send(…)` is not on the stack; the line of its caller is shown.
 *
 * @module
 */
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { findRuntime, type RuntimeName } from "../examples/demo/runtimes.ts";
import { gather } from "./trace/gather.ts";
import { addSources, report } from "./trace/report.ts";

const FAILED = 125;
const USAGE = "deno task trace -- [--runtime deno|bun] [--json FILE] [--top N] SCRIPT ARGS…";

interface Options {
  runtime: RuntimeName;
  json: string | undefined;
  top: number;
  script: string[];
}

// Options end with the first argument that is none: what follows belongs to the script. `deno task` passes the first
// `--` on.
function parse(args: string[]): Options | undefined {
  const given = args[0] === "--" ? args.slice(1) : args;
  const { tokens } = parseArgs({ args: given, options: OPTIONS, tokens: true, strict: false });
  const first = tokens.find(({ kind }) => kind === "positional" || kind === "option-terminator");
  const own = first ? given.slice(0, first.index) : given;
  const script = first ? given.slice(first.index + (first.kind === "positional" ? 0 : 1)) : [];
  const { values } = parseArgs({ args: own, options: OPTIONS });
  if (values.help) return undefined;
  const { runtime = process.versions["bun"] === undefined ? "deno" : "bun", top } = values;
  if (runtime !== "deno" && runtime !== "bun") {
    throw new Error(`--runtime is either deno or bun, not ${JSON.stringify(runtime)}`);
  }
  if (!/^[1-9]\d*$/.test(top)) {
    throw new Error(`--top has to be a whole number above 0, not ${JSON.stringify(top)}`);
  }
  if (script.length === 0) throw new Error(`which script? ${USAGE}`);
  return { runtime, json: values.json, top: Number(top), script };
}

const OPTIONS = {
  runtime: { type: "string" },
  json: { type: "string" },
  top: { type: "string", default: "20" },
  help: { type: "boolean", short: "h", default: false },
} as const;

/** Runs the script; its exit status, as a shell would say it. */
function run(command: string[], env: Record<string, string>): Promise<number> {
  const [program, ...args] = command as [string, ...string[]];
  const child = spawn(program, args, { stdio: "inherit", env: { ...process.env, ...env } });
  // Ctrl-C reaches the script as well, which ends as it likes; what is sent to this process only is passed on.
  process.on("SIGINT", () => {});
  for (const signal of ["SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => void child.kill(signal));
  }
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code, signal) => {
      resolve(code ?? 128 + (signal ? constants.signals[signal] : 0));
    });
  });
}

async function main(): Promise<number> {
  const options = parse(process.argv.slice(2));
  if (!options) {
    const text = readFileSync(new URL(import.meta.url), "utf8").split("*/")[0]!;
    const lines = text.split("\n").slice(1).map((line) => line.replace(/^ \* ?/, ""));
    console.log(
      lines.slice(0, lines.findIndex((line) => line.startsWith("@module"))).join("\n").trim(),
    );
    return 0;
  }
  const [script, ...args] = options.script as [string, ...string[]];
  if (!/^[a-z]{2,}:/.test(script)) statSync(script); // says what is wrong with it
  const runtime = findRuntime(options.runtime);
  if (!runtime) throw new Error(`${options.runtime} was not found: put it on PATH`);
  const directory = mkdtempSync(join(tmpdir(), "moat-trace-"));
  try {
    const file = join(directory, "trace.jsonl");
    writeFileSync(file, "", { mode: 0o600 });
    const how = runtime.name === "deno" ? ["run", "-A"] : [];
    const status = await run([...runtime.command, ...how, script, ...args], { MOAT_TRACE: file });
    const trace = gather(readFileSync(file, "utf8"));
    addSources(trace);
    if (options.json !== undefined) {
      writeFileSync(options.json, JSON.stringify({ status, ...trace }, null, 2) + "\n");
    }
    process.stderr.write(report(trace, options.top));
    return status;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  console.error(`moat trace: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = FAILED;
}
