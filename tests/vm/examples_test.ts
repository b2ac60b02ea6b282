// The examples of the verbs layer with the programs of rdma-core they are named after, and with each other.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { command, here, other } from "../support/child.ts";

const KIB = 1 << 10, MIB = 1 << 20;
const HOST = "10.9.0.1";
const GID_INDEX = "1"; // RoCE v2 of that address
let ports = 20_000;

/** A program that runs, and all it has printed. */
class Program {
  readonly name: string;
  output = "";
  code: number | null | undefined;
  readonly exit: Promise<void>;
  readonly #process;

  constructor([program, ...args]: string[]) {
    this.name = [program, ...args].join(" ");
    this.#process = spawn(program!, args, { stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [this.#process.stdout, this.#process.stderr]) {
      stream.on("data", (chunk) => this.output += chunk);
    }
    this.exit = new Promise((resolve) =>
      this.#process.on("close", (code) => {
        this.code = code;
        resolve();
      })
    );
  }

  /** Waits until something is so, which is not once the program has ended. */
  async until(what: string, so: () => boolean): Promise<void> {
    for (const end = Date.now() + 30_000; !so(); await sleep(20)) {
      assert.equal(this.code, undefined, `${this.name} ended early:\n${this.output}`);
      assert.ok(Date.now() < end, `${this.name}: no sign of ${what}:\n${this.output}`);
    }
  }

  /** Waits for its end. A program that hangs is killed, which is no way to end either. */
  async ends(status: number): Promise<string> {
    const timer = setTimeout(() => this.kill(), 60_000);
    await this.exit;
    clearTimeout(timer);
    assert.equal(this.code, status, `${this.name} ended with ${this.code}:\n${this.output}`);
    return this.output;
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
): Promise<{ server: string; client: string }> {
  const programs: Program[] = [], port = ports++;
  try {
    const first = new Program(server(String(port)));
    programs.push(first);
    await first.until(`port ${port}`, () => listens(port));
    const second = new Program(client(String(port)));
    programs.push(second);
    // The client first: what it says of a failure is more than that the server waits for ever.
    const outputs = { client: await second.ends(0), server: await first.ends(0) };
    return outputs;
  } finally {
    for (const program of programs) program.kill();
  }
}

// ---- rc_pingpong

const ITERS: [size: number, iters: number][] = [
  [1, 100],
  [4 * KIB, 100],
  [64 * KIB, 20],
  [MIB, 4],
  [8 * MIB, 2],
];

function assertPingPong(
  { server, client }: { server: string; client: string },
  bytes: number,
): void {
  const address = (which: string, output: string): string | undefined =>
    new RegExp(`^  ${which} address: +(LID.*)$`, "m").exec(output)?.[1];
  for (const [one, another] of [[server, client], [client, server]] as [string, string][]) {
    assert.match(address("local", one) ?? "", /^LID 0x0000, QPN 0x\w{6}, PSN 0x\w{6}, GID ::ffff:/);
    assert.equal(address("local", one), address("remote", another));
    assert.match(one, new RegExp(`^${bytes} bytes in [\\d.]+ seconds = [\\d.]+ Mbit/sec$`, "m"));
    assert.doesNotMatch(one, /invalid data/);
  }
}

for (const [size, iters] of ITERS) {
  for (const events of [false, true]) {
    const how = events ? "asleep between completions" : "polling";
    const options = ["-s", String(size), "-n", String(iters), "-c", ...(events ? ["-e"] : [])];
    const c = ["ibv_rc_pingpong", "-g", GID_INDEX, ...options];

    test(`rc_pingpong serves ibv_rc_pingpong with ${size} bytes, ${how}`, async () => {
      const outputs = await pair(
        listensOnTcp,
        (port) => example("rc_pingpong", ...options, "-p", port),
        (port) => [...c, "-p", port, HOST],
      );
      assertPingPong(outputs, size * iters * 2);
    });

    test(`rc_pingpong is a client of ibv_rc_pingpong with ${size} bytes, ${how}`, async () => {
      const outputs = await pair(
        listensOnTcp,
        (port) => [...c, "-p", port],
        (port) => example("rc_pingpong", ...options, "-g", GID_INDEX, "-p", port, HOST),
      );
      assertPingPong(outputs, size * iters * 2);
    });
  }
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
    assert.match(await server.ends(1), wrong);
  } finally {
    server.kill();
    client?.kill();
  }
});

// ---- rping

const PINGS = 5;

function assertPings({ server, client }: { server: string; client: string }, size: number): void {
  const pings = (pattern: RegExp, output: string): string[] =>
    Array.from(output.matchAll(pattern), ([, ping]) => ping!);
  const sent = Array.from({ length: PINGS }, (_, n) => {
    const start = `rdma-ping-${n}: `;
    const letter = (i: number): string => String.fromCharCode(65 + (n + i) % 58);
    return start + Array.from({ length: size - 1 - start.length }, (_, i) => letter(i)).join("");
  });
  assert.deepEqual(pings(/^server ping data: (.*)$/gm, server), sent, "pings the server read");
  assert.deepEqual(pings(/^ping data: (.*)$/gm, client), sent, "pings that came back");
}

for (const size of [64, 4096, 65535]) {
  const options = ["-S", String(size), "-C", String(PINGS), "-v", "-V"];

  test(`rping serves the C rping with ${size} bytes`, async () => {
    const outputs = await pair(
      listensOnRdma,
      (port) => example("rping", "-s", ...options, "-a", HOST, "-p", port),
      (port) => ["rping", "-c", ...options, "-a", HOST, "-p", port],
    );
    assertPings(outputs, size);
  });

  test(`rping is a client of the C rping with ${size} bytes`, async () => {
    const outputs = await pair(
      listensOnRdma,
      (port) => ["rping", "-s", ...options, "-p", port],
      (port) => example("rping", "-c", ...options, "-a", HOST, "-p", port),
    );
    assertPings(outputs, size);
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
    await client.until("the first ping", () => client!.output.includes("rdma-ping-10: "));
    server.kill();
    assert.match(await client.ends(1), /^rping: .* completed with (WR_FLUSH_ERR|RETRY_EXC_ERR)/m);
  } finally {
    server.kill();
    client?.kill();
  }
});

// ---- rdma_server and rdma_client

test("rdma_server answers the C rdma_client", async () => {
  const { server, client } = await pair(
    listensOnRdma,
    (port) => example("rdma_server", "-p", port),
    (port) => ["rdma_client", "-s", HOST, "-p", port],
  );
  const zeros = String.raw`(\\u0000){16}`;
  const said = new RegExp(`^rdma_server: start\nreceived: "${zeros}"\nrdma_server: end 0$`, "m");
  assert.match(server, said);
  assert.match(client, /^rdma_client: end 0$/m);
});

test("rdma_client is answered by the C rdma_server", async () => {
  const { server, client } = await pair(
    listensOnRdma,
    (port) => ["rdma_server", "-p", port],
    (port) => example("rdma_client", "-s", HOST, "-p", port),
  );
  assert.match(client, /^rdma_client: start\nreceived: "(\\u0000){16}"\nrdma_client: end 0$/m);
  assert.match(server, /^rdma_server: end 0$/m);
});

test(`rdma_server on ${here} answers rdma_client on ${other()} with what it sent`, async () => {
  const { server, client } = await pair(
    listensOnRdma,
    (port) => example("rdma_server", "-p", port),
    (port) => onRuntime(other(), "rdma_client", "-s", HOST, "-p", port),
  );
  assert.match(server, /^received: "sixteen of bytes"$/m);
  assert.match(client, /^received: "sixteen of bytes"$/m);
});

test("clients that nobody serves say so and end with status 1", async () => {
  const port = String(ports++);
  const clients = {
    rc_pingpong: ["-p", port, HOST],
    rping: ["-c", "-a", HOST, "-p", port],
    rdma_client: ["-s", HOST, "-p", port],
  };
  for (const [name, args] of Object.entries(clients)) {
    const output = await new Program(example(name, ...args)).ends(1);
    assert.match(output, new RegExp(`^${name}: .*(nobody listens|is the server there)`, "m"));
  }
});
