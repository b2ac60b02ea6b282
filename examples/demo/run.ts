/**
 * One run of the demo: a receiver and a sender, from their start to their reports.
 *
 * @module
 */
import { type ChildProcess, spawn } from "node:child_process";
import { relative } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { Guard } from "../../mod.ts";
import { openDevice } from "../../lib/verbs/mod.ts";
import type { ReceiverLine, ReceiverReport, SenderLine, SenderReport } from "./child.ts";
import type { Transport } from "./options.ts";
import type { Runtime } from "./runtimes.ts";

/** What a run is to do. */
export interface Run {
  file: string;
  /** Of the file, in bytes. */
  fileSize: number;
  /** Of a message, in bytes. */
  size: number;
  guard: Guard;
  transport: Transport;
  /** Whether the sender overwrites its buffers while they are in flight. */
  overwrite: boolean;
  sender: Runtime;
  receiver: Runtime;
  /** Told how many bytes have been received and hashed. */
  onProgress(bytes: number): void;
}

/** What came of a run. */
export interface Outcome {
  sent: SenderReport;
  received: ReceiverReport;
}

// How many messages the receiver lets pass before it looks at one: less than the sender's buffers.
const BEHIND = 4;

const children = new Set<ChildProcess>();
let runs = 0;

/** Kills what is running. */
export function killChildren(): void {
  for (const child of children) child.kill("SIGKILL");
}

/**
 * Runs a receiver and a sender.
 *
 * @throws {Error} if one of them fails, or both take too long
 */
export async function runPair(run: Run): Promise<Outcome> {
  const limit = 60 + Math.ceil(run.fileSize / 20e6); // seconds
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(
    () =>
      late.reject(
        new Error(`sender and receiver were not done after ${limit} s; larger messages are faster`),
      ),
    limit * 1000,
  );
  try {
    return await Promise.race([transfer(run), late.promise]);
  } finally {
    clearTimeout(timer);
    killChildren();
  }
}

async function transfer(run: Run): Promise<Outcome> {
  const listenAt = {
    shm: () => `shm://moat-demo-${process.pid}-${++runs}`,
    tcp: () => "tcp://127.0.0.1:0",
    rdma: () => `rdma://${deviceAddress()}:0`,
  }[run.transport]();
  // With "wait" the sender stands still at its first write until the message has been released: a receiver
  // that lets others pass first would wait for them in vain.
  const behind = run.guard === "wait" ? 0 : BEHIND;
  const listening = Promise.withResolvers<string>();
  const receiving = start<ReceiverReport, ReceiverLine>(
    "receiver",
    run.receiver,
    ["--allow-ffi"],
    [listenAt, String(behind), String(run.size)],
    (line) => {
      if (line.listening !== undefined) listening.resolve(line.listening);
      if (line.received !== undefined) run.onProgress(line.received);
    },
  );
  const address = await Promise.race([listening.promise, receiving.then(() => "")]);
  // Relative, because Deno's spawn takes an argument that is its own path for a command of its own.
  const file = relative("", run.file);
  const sending = start<SenderReport, SenderLine>(
    "sender",
    run.sender,
    ["--allow-ffi", `--allow-read=${file}`],
    [address, file, String(run.size), run.guard, ...run.overwrite ? ["overwrite"] : []],
  );
  const [received, sent] = await Promise.all([receiving, sending]);
  return { received, sent };
}

// The address of the first RDMA device.
function deviceAddress(): string {
  using device = openDevice();
  const gid = device.preferredGid()?.gid;
  if (gid === undefined) throw new Error(`${device.deviceName} has no address`);
  return gid.startsWith("::ffff:") ? gid.slice(7) : `[${gid}]`;
}

// Runs one of the programs to its end, and resolves with what it reported.
function start<Report, Line extends { report?: Report }>(
  role: "sender" | "receiver",
  runtime: Runtime,
  permissions: string[],
  args: string[],
  onLine: (line: Line) => void = () => {},
): Promise<Report> {
  const program = fileURLToPath(new URL(`${role}.ts`, import.meta.url));
  const flags = runtime.name === "deno" ? ["run", "--no-prompt", ...permissions] : [];
  const [command, ...words] = [...runtime.command, ...flags, program, ...args];
  // Its standard input ends with this process, by which it knows that it is to end too.
  const child = spawn(command!, words, {
    stdio: ["pipe", "pipe", "inherit"],
    env: { ...process.env, DENO_NO_UPDATE_CHECK: "1" },
  });
  children.add(child);
  let report: Report | undefined;
  createInterface({ input: child.stdout }).on("line", (text) => {
    const line = JSON.parse(text) as Line;
    report ??= line.report;
    onLine(line);
  });
  return new Promise((resolve, reject) => {
    const fail = (how: string): void => {
      reject(new Error(`the ${role} (${runtime.name} ${runtime.version}) ${how}`));
    };
    child.on("error", (error) => {
      children.delete(child);
      fail(`could not be started: ${error.message}`);
    });
    child.on("close", (code, signal) => {
      children.delete(child);
      if (code === 0 && report !== undefined) resolve(report);
      else if (signal !== null) fail(`was ended by ${signal}`);
      else fail(code === 0 ? "ended without a report" : `ended with status ${code}`);
    });
  });
}
