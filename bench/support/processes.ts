/**
 * The processes that the benchmarks measure: programs of `bench/programs` on a runtime, and peers in C.
 *
 * @module
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { Context, RuntimeName } from "../results.ts";

/** How long a process may take to say or to end, in milliseconds: one that hangs must not stop everything. */
const PATIENCE = 240_000;

/** A process that was started, and what it prints. */
export class Running {
  readonly #child: ChildProcess;
  readonly #name: string;
  readonly #lines: AsyncIterator<string>;
  readonly #exit: Promise<void>;
  #errors = "";

  constructor(words: readonly string[], options: { env?: Record<string, string> } = {}) {
    const [program, ...args] = words;
    this.#name = words.join(" ");
    this.#child = spawn(program!, args, {
      // One that is left behind by who started it sees its standard input end.
      stdio: ["pipe", "pipe", "pipe"],
      env: { ...process.env, ...options.env },
    });
    this.#child.stderr!.on("data", (piece) => this.#errors += piece);
    this.#exit = new Promise((resolve, reject) => {
      this.#child.on("error", (error) => reject(new Error(`${this.#name}: ${error.message}`)));
      this.#child.on("close", (status, signal) => {
        if (status === 0) resolve();
        else reject(new Error(`${this.#name} ended (${signal ?? status}):\n${this.#errors}`));
      });
    });
    this.#exit.catch(() => {});
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }

  /** The next line it prints; `undefined` when it has ended as it should. */
  async line(): Promise<string | undefined> {
    const { value, done } = await this.#soon(this.#lines.next());
    if (!done) return value;
    await this.#soon(this.#exit);
    return undefined;
  }

  /** The next line, which has to be there, as JSON. */
  async json<T>(): Promise<T> {
    const line = await this.line();
    if (line === undefined) throw new Error(`${this.#name} ended without an answer`);
    return JSON.parse(line) as T;
  }

  /** All it prints until it ends. */
  async text(): Promise<string> {
    const lines: string[] = [];
    for (let line; (line = await this.line()) !== undefined;) lines.push(line);
    return lines.join("\n");
  }

  /** What it wrote to its standard error so far. */
  get errors(): string {
    return this.#errors;
  }

  /** Lets this process end though it runs. */
  unref(): void {
    this.#child.unref();
    for (const stream of [this.#child.stdin, this.#child.stdout, this.#child.stderr]) {
      (stream as unknown as { unref?(): void }).unref?.();
    }
  }

  /** Ends it, and waits until it has. */
  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#exit.catch(() => {});
  }

  async #soon<T>(what: Promise<T>): Promise<T> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      const tell = (): void => reject(new Error(`${this.#name}: nothing for ${PATIENCE / 1000} s`));
      timer = setTimeout(tell, PATIENCE);
    });
    try {
      return await Promise.race([what, late]);
    } finally {
      clearTimeout(timer);
    }
  }
}

/** The words that run a program of `bench/programs` on a runtime. */
export function programOn(
  context: Pick<Context, "runtimes">,
  runtime: RuntimeName,
  program: string,
  args: readonly string[] = [],
): string[] {
  const words = context.runtimes[runtime];
  if (!words) throw new Error(`no command for ${runtime}`);
  // Where heaps are measured, they are to be collected first.
  const flags = runtime === "deno" ? ["--v8-flags=--expose-gc"] : [];
  const path = fileURLToPath(new URL(`../programs/${program}.ts`, import.meta.url));
  return [...words, ...flags, path, ...args];
}

/** The runtimes of a context. */
export function runtimesOf({ runtimes }: Pick<Context, "runtimes">): RuntimeName[] {
  return (Object.keys(runtimes) as RuntimeName[]).filter((name) => runtimes[name]);
}

/** Sender and receiver: each runtime with itself, and the first with the second. */
export function pairsOf(context: Pick<Context, "runtimes">): [RuntimeName, RuntimeName][] {
  const of = runtimesOf(context), [a, b] = of;
  return [
    ...of.map((each): [RuntimeName, RuntimeName] => [each, each]),
    ...(a && b ? [[a, b] as [RuntimeName, RuntimeName]] : []),
  ];
}

/** What a pair is called in results. */
export function pairName([from, to]: readonly [RuntimeName, RuntimeName]): string {
  return from === to ? from : `${from}-${to}`;
}

let addresses = 0;

/** Where to listen, with a transport; `host` for those that have one. */
export function addressFor(transport: string, host = "127.0.0.1"): string {
  if (transport === "shm") return `shm://bench-${process.pid}-${addresses++}`;
  return `${transport}://${host}:0`;
}

/**
 * Runs a server until its client has ended: the client is told what the server printed first. Returns what the client
 * printed, line by line.
 */
export async function serverAndClient(
  { signal }: Pick<Context, "signal">,
  server: readonly string[],
  client: (said: string) => readonly string[],
): Promise<string[]> {
  signal?.throwIfAborted();
  const one = new Running(server);
  let other: Running | undefined;
  const stop = (): void => void Promise.all([one.kill(), other?.kill()]);
  signal?.addEventListener("abort", stop);
  try {
    const said = await one.line();
    if (said === undefined) throw new Error(`${server.join(" ")} ended at once`);
    other = new Running(client(said));
    const text = await other.text();
    return text === "" ? [] : text.split("\n");
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    signal?.removeEventListener("abort", stop);
    await other?.kill();
    await one.kill();
  }
}

/** What the peer of {@linkcode measureWithPeer} is started with. */
export interface PeerSettings {
  transport: string;
  host?: string;
  /** Microseconds that recv() looks for a message before it sleeps. */
  spin?: number;
  /** Bytes of its pool. */
  bytes?: number;
}

/** Runs a program with an address and a plan against `programs/peer.ts`; returns the JSON lines that it prints. */
export async function measureWithPeer<T>(
  context: Pick<Context, "runtimes" | "signal">,
  [from, to]: readonly [RuntimeName, RuntimeName],
  program: string,
  plan: unknown,
  { transport, host, spin = 0, bytes = 64 << 20 }: PeerSettings,
): Promise<T[]> {
  const address = addressFor(transport, host);
  const peer = programOn(context, to, "peer", [address, String(spin), String(bytes)]);
  const lines = await serverAndClient(context, peer, (said) => {
    return programOn(context, from, program, [said.replace("ready ", ""), JSON.stringify(plan)]);
  });
  return lines.map((line) => JSON.parse(line) as T);
}

/** A port nobody listens at. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address() as AddressInfo;
  await new Promise((done) => server.close(done));
  return port;
}

/** Runs `programs/sockets.ts` against itself, with the runtime's own sockets; returns the JSON lines that it prints. */
export async function measureSockets<T>(
  context: Pick<Context, "runtimes" | "signal">,
  runtime: RuntimeName,
  kind: "tcp" | "unix",
  plan: unknown,
): Promise<T[]> {
  const server = programOn(context, runtime, "sockets", ["serve", kind]);
  const lines = await serverAndClient(context, server, (where) => {
    return programOn(context, runtime, "sockets", ["measure", where, JSON.stringify(plan)]);
  });
  return lines.map((line) => JSON.parse(line) as T);
}
