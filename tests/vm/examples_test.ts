// The examples of the verbs layer with the programs of rdma-core they are named after, and with each other.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { command, here, other, share } from "../support/child.ts";

const KIB = 1 << 10, MIB = 1 << 20;
const HOST = "10.9.0.1";
const GID_INDEX = "1"; // RoCE v2 of that address
let ports = 20_000;

interface Printed {
  readonly stdout: string;
  readonly stderr: string;
}
interface Outcome {
  server: Printed;
  client: Printed;
}

/** A program that runs, and what it has printed. */
class Program {
  readonly name: string;
  stdout = "";
  stderr = "";
  code: number | null | undefined;
  readonly #exit: Promise<void>;
  readonly #process;

  constructor([program, ...args]: string[]) {
    this.name = [program, ...args].join(" ");
    this.#process = spawn(program!, args, { stdio: ["ignore", "pipe", "pipe"] });
    this.#process.stdout.on("data", (chunk) => this.stdout += chunk);
    this.#process.stderr.on("data", (chunk) => this.stderr += chunk);
    this.#exit = new Promise((resolve) =>
      this.#process.on("close", (code) => {
        this.code = code;
        resolve();
      })
    );
  }

  /** Waits until something is so, which is not once the program has ended. */
  async until(what: string, so: () => boolean): Promise<void> {
    for (const end = Date.now() + 90_000; !so(); await sleep(100)) {
      assert.equal(this.code, undefined, `${this.name} ended early:\n${this.#said}`);
      assert.ok(Date.now() < end, `${this.name}: no sign of ${what}:\n${this.#said}`);
    }
  }

  /** Waits for its end. A program that hangs is killed, which is no way to end either. */
  async ends(status: number): Promise<Printed> {
    const timer = setTimeout(() => this.kill(), 120_000);
    await this.#exit;
    clearTimeout(timer);
    assert.equal(this.code, status, `${this.name} ended with ${this.code}:\n${this.#said}`);
    return this;
  }

  get #said(): string {
    return `${this.stdout.slice(-1000)}\n${this.stderr}`;
  }

  kill(): void {
    this.#process.kill("SIGKILL");
  }
}

function example(name: string, ...args: string[]): string[] {
  return onRuntime(here, name, ...args);
}
function onRuntime(runtime: "deno" | "bun", name: string, ...args: string[]): string[] {
  const file = fileURLToPath(new URL(`../../examples/${name}.ts`, import.meta.url));
  return [...command(runtime), file, ...args];
}

function listensOnTcp(port: number): boolean {
  const wanted = new RegExp(`:${port.toString(16).toUpperCase().padStart(4, "0")} \\S+ 0A `);
  return ["tcp", "tcp6"].some((name) => wanted.test(readFileSync(`/proc/net/${name}`, "latin1")));
}
function listensOnRdma(port: number): boolean {
  const { stdout } = spawnSync("rdma", ["resource", "show", "cm_id"], { encoding: "utf8" });
  return new RegExp(`state LISTEN .*:${port}\\s`).test(stdout);
}

/** Runs a server and, once it listens, a client; both have to end well. Returns what they printed. */
async function pair(
  listens: (port: number) => boolean,
  server: (port: string) => string[],
  client: (port: string) => string[],
): Promise<Outcome> {
  const programs: Program[] = [], port = ports++;
  try {
    const first = new Program(server(String(port)));
    programs.push(first);
    await first.until(`port ${port}`, () => listens(port));
    const second = new Program(client(String(port)));
    programs.push(second);
    // The client first: what it says of a failure is more than that the server waits for ever.
    return { client: await second.ends(0), server: await first.ends(0) };
  } finally {
    for (const program of programs) program.kill();
  }
}

/** Starting takes most of the time, so a test does it for several programs at once. */
async function both(...roles: Promise<void>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(roles)) {
    if (outcome.status === "rejected") throw outcome.reason;
  }
}

// ---- rc_pingpong

const ITERS: [size: number, iters: number][] = [
  [1, 20],
  [4 * KIB, 20],
  [64 * KIB, 10],
  [MIB, 3],
  [8 * MIB, 2],
];

function assertPingPong({ server, client }: Outcome, bytes: number): void {
  const address = (which: string, { stdout }: Printed): string | undefined =>
    new RegExp(`^  ${which} address: +(LID.*)$`, "m").exec(stdout)?.[1];
  for (const [one, another] of [[server, client], [client, server]] as [Printed, Printed][]) {
    assert.match(address("local", one) ?? "", /^LID 0x0000, QPN 0x\w{6}, PSN 0x\w{6}, GID ::ffff:/);
    assert.equal(address("local", one), address("remote", another));
    assert.match(
      one.stdout,
      new RegExp(`^${bytes} bytes in [\\d.]+ seconds = [\\d.]+ Mbit/sec$`, "m"),
    );
    assert.doesNotMatch(one.stdout, /invalid data/);
  }
}

for (const [i, [size, iters]] of share([...ITERS.entries()])) {
  const options = ["-s", String(size), "-n", String(iters), "-r", "5", "-c"];
  const c = ["ibv_rc_pingpong", "-g", GID_INDEX, "-e", ...options];
  // One polls and the other sleeps: two that poll would have both processors for themselves.
  const [serverMode, clientMode] = i % 2 === 0 ? [["-e"], []] : [[], ["-e"]];

  const asServer = (): Promise<Outcome> =>
    pair(
      listensOnTcp,
      (port) => example("rc_pingpong", ...options, ...serverMode, "-p", port),
      (port) => [...c, "-p", port, HOST],
    );
  const asClient = (): Promise<Outcome> =>
    pair(
      listensOnTcp,
      (port) => [...c, "-p", port],
      (port) =>
        example("rc_pingpong", ...options, ...clientMode, "-g", GID_INDEX, "-p", port, HOST),
    );
  // Shared like that, either runtime has both roles.
  const roles = share(i % 4 < 2 ? [asServer, asClient] : [asClient, asServer]);

  test(`rc_pingpong talks to ibv_rc_pingpong with ${size} bytes`, async () => {
    await both(...roles.map(async (role) => assertPingPong(await role(), size * iters * 2)));
  });
}

test(`rc_pingpong on ${here} serves rc_pingpong on ${other()}`, async () => {
  const options = ["-s", String(64 * KIB + 1), "-n", "20", "-c", "-e"];
  const outputs = await pair(
    listensOnTcp,
    (port) => example("rc_pingpong", ...options, "-p", port),
    (port) => onRuntime(other(), "rc_pingpong", ...options, "-p", port, HOST),
  );
  assertPingPong(outputs, (64 * KIB + 1) * 20 * 2);
});

test("rc_pingpong that checks finds out that ibv_rc_pingpong does not send what it should", async () => {
  const port = ports++;
  const server = new Program(example("rc_pingpong", "-c", "-p", String(port)));
  let client: Program | undefined;
  try {
    await server.until(`port ${port}`, () => listensOnTcp(port));
    client = new Program(["ibv_rc_pingpong", "-e", "-g", GID_INDEX, "-p", String(port), HOST]);
    const wrong = /^rc_pingpong: invalid data in message 1: byte 0 is 123, not 0 /m;
    assert.match((await server.ends(1)).stderr, wrong);
  } finally {
    server.kill();
    client?.kill();
  }
});

// ---- rping

const PINGS = 5;

function assertPings({ server, client }: Outcome, size: number): void {
  for (let n = 0; n < PINGS; n++) {
    const start = `rdma-ping-${n}: `;
    const letter = (i: number): string => String.fromCharCode(65 + (n + i) % 58);
    const ping = start +
      Array.from({ length: size - 1 - start.length }, (_, i) => letter(i)).join("");
    // They are too long to be shown when they differ.
    assert.ok(server.stdout.includes(`server ping data: ${ping}\n`), `what the server read: ${n}`);
    assert.ok(client.stdout.includes(`ping data: ${ping}\n`), `what came back: ${n}`);
  }
}

for (const [i, size] of share([...[64, 4096, 65535].entries()])) {
  const options = ["-S", String(size), "-C", String(PINGS), "-v", "-V"];
  const asServer = (): Promise<Outcome> =>
    pair(
      listensOnRdma,
      (port) => example("rping", "-s", ...options, "-a", HOST, "-p", port),
      (port) => ["rping", "-c", ...options, "-a", HOST, "-p", port],
    );
  const asClient = (): Promise<Outcome> =>
    pair(
      listensOnRdma,
      (port) => ["rping", "-s", ...options, "-p", port],
      (port) => example("rping", "-c", ...options, "-a", HOST, "-p", port),
    );
  const roles = share(i < 2 ? [asServer, asClient] : [asClient, asServer]);

  test(`rping talks to the C rping with ${size} bytes`, async () => {
    await both(...roles.map(async (role) => assertPings(await role(), size)));
  });
}

test(`rping on ${here} serves rping on ${other()}`, async () => {
  const options = ["-S", "10000", "-C", String(PINGS), "-v", "-V"];
  const outputs = await pair(
    listensOnRdma,
    (port) => example("rping", "-s", ...options, "-p", port),
    (port) => onRuntime(other(), "rping", "-c", ...options, "-a", HOST, "-p", port),
  );
  assertPings(outputs, 10_000);
});

test("rping ends when the other side goes away in the middle", async () => {
  const port = String(ports++);
  const server = new Program(["rping", "-s", "-p", port]);
  let client: Program | undefined;
  try {
    await server.until(`port ${port}`, () => listensOnRdma(Number(port)));
    client = new Program(example("rping", "-c", "-v", "-a", HOST, "-p", port));
    await client.until("the first ping", () => client!.stdout.includes("rdma-ping-10: "));
    server.kill();
    assert.match(
      (await client.ends(1)).stderr,
      /^rping: .* completed with (WR_FLUSH_ERR|RETRY_EXC_ERR)/m,
    );
  } finally {
    server.kill();
    client?.kill();
  }
});

// ---- rdma_server and rdma_client

const ZEROS = `received: ${JSON.stringify("\0".repeat(16))}`;

test("rdma_server and rdma_client talk to those in C, which send zeros", async () => {
  const asServer = async (): Promise<void> => {
    const { server, client } = await pair(
      listensOnRdma,
      (port) => example("rdma_server", "-p", port),
      (port) => ["rdma_client", "-s", HOST, "-p", port],
    );
    assert.equal(server.stdout, `rdma_server: start\n${ZEROS}\nrdma_server: end 0\n`);
    assert.match(client.stdout, /^rdma_client: end 0$/m);
  };
  const asClient = async (): Promise<void> => {
    const { server, client } = await pair(
      listensOnRdma,
      (port) => ["rdma_server", "-p", port],
      (port) => example("rdma_client", "-s", HOST, "-p", port),
    );
    assert.equal(client.stdout, `rdma_client: start\n${ZEROS}\nrdma_client: end 0\n`);
    assert.match(server.stdout, /^rdma_server: end 0$/m);
  };
  await both(asServer(), asClient());
});

test(`rdma_server on ${here} answers rdma_client on ${other()} with what it sent`, async () => {
  const { server, client } = await pair(
    listensOnRdma,
    (port) => example("rdma_server", "-p", port),
    (port) => onRuntime(other(), "rdma_client", "-s", HOST, "-p", port),
  );
  assert.match(server.stdout, /^received: "sixteen of bytes"$/m);
  assert.match(client.stdout, /^received: "sixteen of bytes"$/m);
});

test("clients that nobody serves say so and end with status 1", async () => {
  const port = String(ports++);
  const clients = {
    rc_pingpong: ["-p", port, HOST],
    rping: ["-c", "-a", HOST, "-p", port],
    rdma_client: ["-s", HOST, "-p", port],
  };
  await both(
    ...Object.entries(clients).map(async ([name, args]) => {
      const { stderr } = await new Program(example(name, ...args)).ends(1);
      assert.match(stderr, new RegExp(`^${name}: .*(nobody listens|is the server there)`, "m"));
    }),
  );
});
