/**
 * Runs the processes of the test runner, of which nothing is left behind.
 *
 * @module
 */
import { fileURLToPath } from "node:url";
import { stripVTControlCharacters } from "node:util";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
/** In milliseconds. */
export const MINUTE = 60_000;

/** What a process came to. */
export interface Finished {
  stdout: string;
  stderr: string;
  /** Both, in the order of arrival. */
  output: string;
  /** Why the process is not to be called a success, if so. */
  fault: string | null;
  milliseconds: number;
}

/** Process groups that are running. */
export const groups = new Set<number>();

/** Runs a command in a process group of its own, of which nothing is left when it returns. */
export async function runGroup(
  command: string[],
  env: Record<string, string>,
  limit: number,
): Promise<Finished> {
  const start = performance.now();
  const child = new Deno.Command(command[0]!, {
    args: command.slice(1),
    cwd: ROOT,
    env,
    clearEnv: true,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    detached: true,
  }).spawn();
  groups.add(child.pid);

  const texts = { stdout: "", stderr: "", output: "" };
  const collect = async (name: "stdout" | "stderr"): Promise<void> => {
    for await (const text of child[name].pipeThrough(new TextDecoderStream())) {
      texts[name] += text;
      texts.output += text;
    }
  };
  const collected = Promise.all([collect("stdout"), collect("stderr")]);

  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    killGroup(child.pid);
  }, limit);
  const status = await child.status;
  clearTimeout(timer);
  killGroup(child.pid);
  groups.delete(child.pid);
  // A process that left the group may still hold the pipes open: then what there is must do.
  await Promise.race([collected, new Promise((done) => setTimeout(done, 2000))]);

  return {
    stdout: stripVTControlCharacters(texts.stdout),
    stderr: stripVTControlCharacters(texts.stderr),
    output: texts.output,
    fault: timedOut
      ? `killed after ${limit / MINUTE} minutes`
      : status.signal !== null
      ? `crashed with ${status.signal}`
      : status.code !== 0
      ? `exited with status ${status.code}`
      : null,
    milliseconds: performance.now() - start,
  };
}

/** Kills what is left of a process group. */
export function killGroup(pid: number): void {
  try {
    Deno.kill(-pid, "SIGKILL");
  } catch {
    // The group is gone already.
  }
}
