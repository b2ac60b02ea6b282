/**
 * Runs the parts of the benchmarks one after the other and keeps what they came to.
 *
 * @module
 */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { stripVTControlCharacters } from "node:util";
import type { Part, Result, RuntimeName } from "../../bench/results.ts";
import { ensurePackages } from "../apt.ts";
import { killGroup } from "../test_process.ts";
import { busy } from "./machine.ts";
import type { Progress } from "./progress.ts";
import type { Store } from "./store.ts";

/** How parts are run. */
export interface RunOptions {
  /** The path of the module that exports them. */
  module: string;
  quick: boolean;
  runtimes: Partial<Record<RuntimeName, string[]>>;
  progress: Progress;
  signal: AbortSignal;
  /** Is called when a part has ended. */
  finished(): void;
}

/** Runs parts; throws what `signal` was aborted with. A part that fails does not take the others with it. */
export async function runParts(
  parts: readonly Part[],
  store: Store,
  options: RunOptions,
): Promise<void> {
  for (const part of parts) {
    options.progress.begin(part);
    const before = await busy();
    const date = new Date().toISOString(), begun = performance.now();
    let results: Result[] = [], error: string | undefined;
    try {
      results = await runPart(part, store.directory, options);
    } catch (failure) {
      options.signal.throwIfAborted();
      error = failure instanceof Error ? failure.message : String(failure);
    }
    const seconds = (performance.now() - begun) / 1000;
    store.write(part.name, {
      date,
      seconds,
      busy: before,
      results,
      ...(error === undefined ? {} : { error }),
    });
    options.progress.end(part, results.length, error);
    options.finished();
  }
}

/** Runs a part in a process group of its own, of which nothing is left when this returns or throws. */
async function runPart(part: Part, directory: string, options: RunOptions): Promise<Result[]> {
  const { signal, progress } = options;
  signal.throwIfAborted();
  ensurePackages([...part.packages]); // here, because an apt-get must not be killed with the part
  const file = join(directory, `${part.name}.new`);
  const context = JSON.stringify({ quick: options.quick, runtimes: options.runtimes });
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", "--no-check", fileURLToPath(new URL("part.ts", import.meta.url))],
      ...[options.module, part.name, context, file],
    ],
    stdin: "piped", // held open: the part ends when we do, however that is
    stdout: "piped",
    stderr: "piped",
    detached: true,
  }).spawn();
  const seconds = options.quick ? part.seconds.quick : part.seconds.full;
  const limit = 5 * seconds + 120;
  let late = false;
  let kill: ReturnType<typeof setTimeout> | undefined;
  const stop = (): void => {
    try {
      child.kill("SIGTERM");
    } catch {
      // It has just ended.
    }
    kill = setTimeout(() => killGroup(child.pid), 2000);
  };
  const timer = setTimeout(() => {
    late = true;
    stop();
  }, limit * 1000);
  signal.addEventListener("abort", stop);
  try {
    let errors = "";
    const reading = Promise.all([
      lines(child.stdout, (line) => progress.say(line)),
      lines(child.stderr, (line) => errors = `${errors}${line}\n`.slice(-4000)),
    ]);
    const status = await child.status;
    killGroup(child.pid);
    // What left the group may still hold the pipes open: then what there is must do.
    await Promise.race([reading, new Promise((done) => setTimeout(done, 2000))]);
    signal.throwIfAborted();
    if (late) throw new Error(`not done after ${limit} s\n${errors}`.trim());
    // Absent if it had no time to write it.
    const said = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : {};
    if (!status.success) {
      const how = status.signal ? `crashed with ${status.signal}` : `ended with ${status.code}`;
      throw new Error(`${said.error ?? how}\n${errors}`.trim());
    }
    const { results, wrong } = said;
    if (wrong.length > 0) throw new Error(`gave what cannot be:\n${wrong.join("\n")}`);
    return results;
  } finally {
    clearTimeout(timer);
    clearTimeout(kill);
    signal.removeEventListener("abort", stop);
    killGroup(child.pid);
    await child.stdin.close().catch(() => {}); // it has ended
    rmSync(file, { force: true });
  }
}

async function lines(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
  each: (line: string) => void,
): Promise<void> {
  let text = "";
  for await (const piece of stream.pipeThrough(new TextDecoderStream())) {
    const complete = stripVTControlCharacters(text + piece).split("\n");
    text = complete.pop()!;
    complete.forEach(each);
  }
  if (text !== "") each(text);
}
