/**
 * Programs run as processes of their own by a test, on the runtime of choice. They speak JSON lines.
 *
 * @module
 */
import { type ChildProcess, spawn } from "node:child_process";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** The runtime this test runs on. */
export const here: "deno" | "bun" = "Bun" in globalThis ? "bun" : "deno";

/** The command that runs a program on a runtime, as far as this machine is known to have it. */
export function command(runtime: "deno" | "bun"): string[] {
  const given = process.env[runtime === "deno" ? "MOAT_DENO" : "MOAT_BUN"];
  const words = given ? JSON.parse(given) as string[] : runtime === here ? [process.execPath] : [];
  if (words.length === 0) throw new Error(`set MOAT_${runtime.toUpperCase()} to run ${runtime}`);
  return runtime === "deno" ? [...words, "run", "-A", "--v8-flags=--expose-gc"] : words;
}

/** The other runtime if it is known, else this one. */
export function other(): "deno" | "bun" {
  const wanted = here === "deno" ? "bun" : "deno";
  return process.env[wanted === "deno" ? "MOAT_DENO" : "MOAT_BUN"] ? wanted : here;
}

/**
 * Those of the variants of a test that are run under this runtime. Where the file is run under both, which
 * the test runner says with MOAT_SHARED=1, each takes every other one, unless there is time (MOAT_SOAK=1). That is
 * for what takes long and hardly depends on the runtime.
 */
export function share<T>(variants: T[]): T[] {
  if (process.env["MOAT_SHARED"] !== "1" || process.env["MOAT_SOAK"]) return variants;
  return variants.filter((_, i) => (i % 2 === 0) === (here === "deno"));
}

/** How a program ended. */
export interface Exit {
  code: number | null;
  signal: string | null;
  stderr: string;
  stdout: string;
}

/** A program that runs. */
export class Child {
  readonly process: ChildProcess;
  /** Resolves when it has ended. */
  readonly exit: Promise<Exit>;
  readonly #lines: string[] = [];
  #waiting: (() => void)[] = [];
  #ended = false;

  /** Starts `tests/programs/<name>.ts`. It is killed when the test ends. */
  constructor(
    t: { after(fn: () => void): void },
    name: string,
    args: string[] = [],
    runtime: "deno" | "bun" = here,
  ) {
    const file = fileURLToPath(new URL(`../programs/${name}.ts`, import.meta.url));
    const [program, ...words] = command(runtime) as [string, ...string[]];
    this.process = spawn(program, [...words, file, ...args], { stdio: "pipe" });
    t.after(() => void this.process.kill("SIGKILL"));
    let stderr = "", stdout = "";
    this.process.stderr!.on("data", (chunk) => stderr += chunk);
    createInterface({ input: this.process.stdout! }).on("line", (line) => {
      stdout += `${line}\n`;
      this.#lines.push(line);
      this.#wake();
    });
    this.exit = new Promise((resolve) =>
      this.process.on("close", (code, signal) => {
        this.#ended = true;
        this.#wake();
        resolve({ code, signal, stderr, stdout });
      })
    );
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** The next line it prints, parsed. Fails with its standard error if it ends instead. */
  async next<T = unknown>(): Promise<T> {
    while (this.#lines.length === 0) {
      if (this.#ended) {
        const { code, signal, stderr } = await this.exit;
        throw new Error(`the program ended (${signal ?? code}) instead of answering:\n${stderr}`);
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    return JSON.parse(this.#lines.shift()!) as T;
  }
}

/** Prints a JSON line. For programs. */
export function say(value: unknown): void {
  console.log(JSON.stringify(value));
}

let names = 0;

/** An address nobody else uses. */
export function freshAddress(): string {
  return `shm://test-${process.pid}-${names++}`;
}
