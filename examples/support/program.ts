/**
 * What the examples that are programs with options share: how they are called, how they end, and how they
 * start themselves a second time.
 *
 * @module
 */
import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** A command line that cannot be. */
export class UsageError extends Error {
  /** The name of the class. */
  override readonly name = "UsageError";
}

/**
 * Runs a program to its end. The exit status is 0, 1 if it failed, and 2 if it was called wrongly.
 *
 * @param name what its messages begin with
 * @param help what `--help` prints
 */
export async function run(name: string, help: string, main: () => Promise<void>): Promise<never> {
  if (process.argv.slice(2).some((word) => word === "--help" || word === "-h")) {
    console.log(help.trim());
    process.exit(0);
  }
  try {
    await main();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    const usage = error instanceof UsageError ||
      String((error as { code?: unknown }).code).startsWith("ERR_PARSE_ARGS");
    console.error(`${name}: ${message}${usage ? "\n(--help lists what there is)" : ""}`);
    process.exit(usage ? 2 : 1);
  }
  process.exit(0);
}

/** A whole number given for an option. */
export function number(option: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= least && value <= most) return value;
  throw new UsageError(
    `${option} ${JSON.stringify(text)}: use a whole number from ${least} to ${most}`,
  );
}

/** A number of bytes given for an option, such as 65536, 64k or 1m. */
export function size(option: string, text: string, least: number, most: number): number {
  const [, digits, suffix = ""] = /^(\d+)([kmg]?)$/i.exec(text) ?? [];
  const unit = { "": 1, k: 1 << 10, m: 1 << 20, g: 1 << 30 }[suffix.toLowerCase()]!;
  const value = Number(digits) * unit;
  if (value >= least && value <= most) return value;
  throw new UsageError(
    `${option} ${
      JSON.stringify(text)
    }: use bytes from ${least} to ${most}, such as 65536, 64k or 1m`,
  );
}

/** One of a few words given for an option. */
export function oneOf<T extends string>(option: string, text: string, known: readonly T[]): T {
  const found = known.find((each) => each === text);
  if (found !== undefined) return found;
  throw new UsageError(`${option} ${JSON.stringify(text)}: use one of ${known.join(", ")}`);
}

/** A program that was started once more. */
export interface Again {
  /** The number of its process. */
  readonly pid: number;
  /** Resolves when it has ended well; rejects otherwise. */
  readonly done: Promise<void>;
  /** Sends it a signal. */
  kill(signal: NodeJS.Signals): void;
}

/**
 * Starts a program once more with other arguments, as a process of its own on the same runtime. What it
 * prints goes where this process prints.
 *
 * @param url the program's `import.meta.url`
 */
export function again(url: string, args: string[]): Again {
  // Where there are permissions, those this process was given are not known: the examples ask for all.
  const flags = process.versions["bun"] === undefined ? ["run", "-A"] : [];
  const child = spawn(process.execPath, [...flags, fileURLToPath(url), ...args], {
    stdio: ["ignore", "inherit", "inherit"],
    env: { ...process.env, DENO_NO_UPDATE_CHECK: "1" },
  });
  // By its number: child.kill() of Deno 2.9.6 sends no second signal.
  const kill = (signal: NodeJS.Signals): void => {
    if (child.exitCode === null && child.signalCode === null) process.kill(child.pid!, signal);
  };
  const killAtExit = (): void => {
    if (child.pid !== undefined) kill("SIGKILL");
  };
  process.on("exit", killAtExit);
  const done = new Promise<void>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => {
      process.off("exit", killAtExit);
      if (code === 0) resolve();
      else {reject(
          new Error(`the process of "${args[0]}" ended with ${signal ?? `status ${code}`}`),
        );}
    });
  });
  done.catch(() => {}); // whoever waits for it is told
  return { pid: child.pid ?? -1, done, kill };
}

/** Bytes and milliseconds as a rate. */
export function rate(bytes: number, milliseconds: number): string {
  return `${(bytes / milliseconds / 1e6).toFixed(2)} GB/s`;
}

/**
 * Lets the event loop have a turn. What is there already is handed over without one, often many times in a row, and
 * who goes on and on keeps everybody else in this process from theirs.
 */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
