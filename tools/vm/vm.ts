/**
 * Starts VMs that see the host's file system and have a soft-RoCE device, and runs commands there.
 *
 *     const vm = await startVm({ command: ["ibv_devinfo"] });
 *     const { status, stdout } = await vm.wait();
 *
 * Works on Deno and Bun. No VM outlives the process that started it.
 *
 * @module
 */
import { type ChildProcess, spawn } from "node:child_process";
import { Buffer } from "node:buffer";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { StringDecoder } from "node:string_decoder";
import { ensurePackages } from "../apt.ts";
import { addressOf, runScript } from "./guest.ts";
import { findInitramfs } from "./initramfs.ts";
import { findKernel, type Kernel } from "./kernel.ts";
import { CONSOLE, qemuCommand } from "./qemu.ts";

/** What has to be installed on the host, whose file system the guest uses. */
export const VM_PACKAGES: string[] = [
  "qemu-system-x86",
  "busybox-static",
  "kmod",
  "util-linux",
  "xz-utils",
  "iproute2",
  "rdma-core",
  "ibverbs-providers",
  "ibverbs-utils",
  "rdmacm-utils",
  "perftest",
];

/** The status of a VM that ran into its time limit, and of one that died or could not start. */
export const TIMED_OUT = 124;
/** See {@linkcode TIMED_OUT}. */
export const DIED = 125;

/** Variables that the command gets from the environment of this process. */
const PASSED_ON = /^(PATH|HOME|USER|LOGNAME|LANG|LC_.*|TZ|DENO_.*|XDG_.*|MOAT_.*|NO_COLOR)$/;

const POLL_MS = 40;

/** How to start a VM. */
export interface VmOptions {
  /** The command and its arguments, as found in the host's file system. */
  command: string[];
  /** The working directory; default is this process's. */
  cwd?: string;
  /** Variables beside those that are passed on. */
  env?: Record<string, string>;
  /** The number of the VM, which is the last part of its address; default is 1. */
  host?: 1 | 2;
  /** What joins two VMs, from {@linkcode createLink}. */
  link?: Link;
  /** Start the command only when the other VM is up, for 20 s at most; default is true. */
  awaitPeer?: boolean;
  /** MiB; default is 3072. */
  memory?: number;
  /** Default is 2. */
  cpus?: number;
  /** Default is tcg, which works everywhere. */
  accel?: "tcg" | "kvm";
  /** Packets that the VM loses on sending to the other one, in percent. */
  loss?: number;
  /** Seconds; default is 540. */
  timeout?: number;
  /** The directory of the host that the guest can write to, at the same path. */
  out?: string;
  /** Called with what the command prints, as it comes. */
  onOutput?: (channel: "stdout" | "stderr", text: string) => void;
}

/** What a command came to. */
export interface VmResult {
  /** The command's status; or {@linkcode TIMED_OUT} or {@linkcode DIED}, and `fault` says why. */
  status: number;
  stdout: string;
  stderr: string;
  /** What went wrong with the VM itself, if anything. */
  fault: string | null;
}

/** A VM. */
export interface Vm {
  host: 1 | 2;
  /** Its IPv4 address. */
  address: string;
  /** The process id of QEMU. */
  pid: number;
  /** The directory of the host that the guest can write to, at the same path. */
  out: string;
  /** What the command printed so far. */
  readonly stdout: string;
  /** What the command printed so far. */
  readonly stderr: string;
  /** The lines that the command prints, from the first. */
  lines(channel?: "stdout" | "stderr"): AsyncGenerator<string>;
  /** Waits for a line of stdout that matches. Throws an Error if the VM ends without one. */
  line(pattern: RegExp): Promise<string>;
  /** Waits for the end of the VM. Never throws. */
  wait(): Promise<VmResult>;
  /** Kills the VM at once, as when a machine loses power. */
  kill(): void;
}

/** What joins two VMs. */
export interface Link {
  directory: string;
}

/** Temporary directories, and processes that are running. */
const directories = new Set<string>();
const running = new Set<ChildProcess>();
let watching = false;

/** Makes a directory that is removed at the end, by {@linkcode cleanUp}. */
function temporary(kind: string): string {
  if (!watching) {
    watching = true;
    removeStale();
    process.on("exit", cleanUp);
  }
  const directory = mkdtempSync(join(tmpdir(), `moat-vm-${kind}-${process.pid}-`));
  directories.add(directory);
  return directory;
}

/**
 * Kills the VMs that this process started and removes their temporary directories. That is done on
 * exit too, but `bun test` does not tell.
 */
export function cleanUp(): void {
  for (const child of running) child.kill("SIGKILL");
  for (const directory of directories) rmSync(directory, { recursive: true, force: true });
  directories.clear();
}

/** Removes what processes left that were killed. */
function removeStale(): void {
  for (const name of readdirSync(tmpdir())) {
    const pid = /^moat-vm-[a-z0-9]+-(\d+)-\w+$/.exec(name)?.[1];
    if (pid === undefined || existsSync(`/proc/${pid}`)) continue;
    const path = join(tmpdir(), name);
    try {
      // A young one may belong to another container, with process ids of its own.
      if (Date.now() - statSync(path).mtimeMs > 3_600_000) rmSync(path, { recursive: true });
    } catch {
      // Someone else's, or just gone.
    }
  }
}

/** Makes what joins two VMs. */
export function createLink(): Link {
  return { directory: temporary("link") };
}

let prepared: ReturnType<typeof prepare> | undefined;

/** Gets what every VM needs; for the first time this may take a minute. */
function prepare(): { kernel: Kernel; initramfs: string } {
  ensurePackages(VM_PACKAGES);
  const kernel = findKernel();
  return { kernel, initramfs: findInitramfs(kernel) };
}

/** Boots a VM that runs a command. Throws an Error if what it takes is not there. */
export async function startVm(options: VmOptions): Promise<Vm> {
  if (process.arch !== "x64" || process.platform !== "linux") {
    throw new Error("the VM runs the host's programs, and only x86-64 Linux is supported");
  }
  const { kernel, initramfs } = prepared ??= prepare();

  const host = options.host ?? 1;
  const out = options.out ?? temporary("out");
  mkdirSync(out, { recursive: true });
  const directory = temporary(`host${host}`);
  const env: Record<string, string> = { HOME: "/root", TMPDIR: tmpdir() };
  for (const [name, value] of Object.entries(process.env)) {
    if (PASSED_ON.test(name) && value !== undefined) env[name] = value;
  }
  // Whoever got this runtime through npx has it nowhere else.
  env["PATH"] = `${env["PATH"] ?? ""}:${dirname(process.execPath)}`;
  Object.assign(env, options.env, {
    MOAT_VM: String(host),
    MOAT_VM_OUT: out,
    MOAT_VM_ADDRESS: addressOf(host),
    ...(options.link === undefined ? {} : { MOAT_VM_PEER: addressOf(3 - host) }),
  });
  const script = runScript({
    host,
    command: options.command,
    cwd: options.cwd ?? process.cwd(),
    env,
    loss: options.loss ?? 0,
    awaitPeer: options.link !== undefined && (options.awaitPeer ?? true),
  });
  writeFileSync(join(directory, "run.sh"), script);
  const command = qemuCommand({
    host,
    directory,
    out,
    image: kernel.image,
    initramfs,
    memory: options.memory ?? 3072,
    cpus: options.cpus ?? 2,
    accel: options.accel ?? "tcg",
    ...(options.link === undefined ? {} : { link: options.link.directory }),
  });
  const vm = new RunningVm(host, directory, out, command, options);
  await vm.started;
  return vm;
}

class RunningVm implements Vm {
  readonly host: 1 | 2;
  readonly address: string;
  readonly out: string;
  readonly started: Promise<void>;
  readonly #directory: string;
  readonly #child: ChildProcess;
  readonly #end: Promise<VmResult>;
  readonly #tails: Record<"stdout" | "stderr", Tail>;
  /** Those who wait for more output. */
  #waiting: (() => void)[] = [];
  #ended = false;
  #killed = false;
  #log = "";

  constructor(
    host: 1 | 2,
    directory: string,
    out: string,
    command: string[],
    options: VmOptions,
  ) {
    this.host = host;
    this.address = addressOf(host);
    this.out = out;
    this.#directory = directory;
    const tail = (name: "stdout" | "stderr"): Tail =>
      new Tail(join(directory, name), (text) => {
        options.onOutput?.(name, text);
        this.#wake();
      });
    this.#tails = { stdout: tail("stdout"), stderr: tail("stderr") };

    const child = spawn(command[0]!, command.slice(1), { stdio: ["ignore", "pipe", "pipe"] });
    this.#child = child;
    running.add(child);
    child.stdout!.on("data", (data: Uint8Array) => this.#log += Buffer.from(data));
    child.stderr!.on("data", (data: Uint8Array) => this.#log += Buffer.from(data));
    this.started = new Promise((resolve, reject) => {
      child.once("spawn", () => resolve());
      child.once("error", reject);
    });
    this.#end = this.#run(options.timeout ?? 540);
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get stdout(): string {
    return this.#tails.stdout.text;
  }

  get stderr(): string {
    return this.#tails.stderr.text;
  }

  async *lines(channel: "stdout" | "stderr" = "stdout"): AsyncGenerator<string> {
    const tail = this.#tails[channel];
    let start = 0;
    for (;;) {
      const end = tail.text.indexOf("\n", start);
      if (end >= 0) {
        yield tail.text.slice(start, end);
        start = end + 1;
      } else if (this.#ended) {
        if (start < tail.text.length) yield tail.text.slice(start);
        return;
      } else {
        await new Promise<void>((resolve) => this.#waiting.push(resolve));
      }
    }
  }

  async line(pattern: RegExp): Promise<string> {
    for await (const line of this.lines()) {
      if (pattern.test(line)) return line;
    }
    const { status, fault, stdout, stderr } = await this.#end;
    throw new Error(
      `${fault ?? `VM ${this.host} ended with status ${status}`}, without a line that matches ` +
        `${pattern}; its output was:\n${stdout}${stderr}`,
    );
  }

  wait(): Promise<VmResult> {
    return this.#end;
  }

  kill(): void {
    if (this.#ended) return;
    this.#killed = true;
    this.#child.kill("SIGKILL");
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  async #run(timeout: number): Promise<VmResult> {
    const child = this.#child;
    let timedOut = false;
    const limit = setTimeout(() => {
      timedOut = true;
      child.kill("SIGKILL");
    }, timeout * 1000);
    const poll = setInterval(() => this.#read(), POLL_MS);
    const reason = await new Promise<string>((resolve) => {
      child.once("close", (code, signal) => resolve(signal ?? `status ${code}`));
      child.once("error", (error) => resolve(error.message));
    });
    clearTimeout(limit);
    clearInterval(poll);
    running.delete(child);
    this.#read(true);

    const file = join(this.#directory, "status");
    const answer = existsSync(file) ? readFileSync(file, "utf8").trim() : "";
    const name = `VM ${this.host}`;
    let fault: string | null = null;
    if (timedOut) fault = `${name} was killed after its time limit of ${timeout} s`;
    else if (this.#killed) fault = `${name} was killed`;
    else if (!/^\d+$/.test(answer)) {
      fault = `${name} died without an answer (QEMU: ${reason})${this.#traces()}`;
    }
    const status = fault === null ? Number(answer) : timedOut ? TIMED_OUT : DIED;
    rmSync(this.#directory, { recursive: true, force: true });
    directories.delete(this.#directory);
    this.#ended = true;
    this.#wake();
    return { status, stdout: this.stdout, stderr: this.stderr, fault };
  }

  #read(last = false): void {
    this.#tails.stdout.read(last);
    this.#tails.stderr.read(last);
  }

  /** The end of what QEMU and the guest's kernel said. */
  #traces(): string {
    const path = join(this.#directory, CONSOLE);
    const console = existsSync(path) ? readFileSync(path, "utf8") : "";
    const text = `${this.#log}\n${console}`.replaceAll("\r", "").trim();
    return text === "" ? "" : `:\n${text.split("\n").slice(-30).join("\n")}`;
  }
}

/** Follows a file that grows. */
class Tail {
  text = "";
  readonly #path: string;
  readonly #onText: (text: string) => void;
  readonly #decoder = new StringDecoder("utf8");
  readonly #buffer = Buffer.alloc(65536);
  #offset = 0;

  constructor(path: string, onText: (text: string) => void) {
    this.#path = path;
    this.#onText = onText;
  }

  /** Reads what is new. */
  read(last: boolean): void {
    let added = "";
    if (existsSync(this.#path)) {
      const file = openSync(this.#path, "r");
      for (;;) {
        const length = readSync(file, this.#buffer, 0, this.#buffer.length, this.#offset);
        if (length === 0) break;
        this.#offset += length;
        added += this.#decoder.write(this.#buffer.subarray(0, length));
      }
      closeSync(file);
    }
    if (last) added += this.#decoder.end();
    if (added === "") return;
    this.text += added;
    this.#onText(added);
  }
}
