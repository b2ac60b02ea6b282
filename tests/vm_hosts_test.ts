import assert from "node:assert/strict";
import process from "node:process";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { cleanUp, createLink, startVm, type Vm } from "../tools/vm/vm.ts";
import { command, here, other } from "./support/child.ts";

const supported = process.arch === "x64", MIB = 1 << 20;
const BYTES = (process.env["MOAT_SOAK"] ? 64 : 8) * MIB;
const PROGRAM = fileURLToPath(new URL("programs/transfer.ts", import.meta.url));
const address = (port: number): string => `rdma://10.9.0.1:${port}`;

/** This runtime runs on one, the other on the other. One boot serves all tests, in their order. */
let hosts: [Vm, Vm];

async function boot(): Promise<void> {
  const first = [
    `${program(here, "receive", address(7471))} || exit`,
    `${program(here, "survive", address(7472))} & one=$!`,
    `${program(here, "wait", address(7473))} & two=$!`,
    "wait $one && wait $two",
  ];
  // The first may not listen yet.
  const patiently = (words: string): string => `until ${words}; do sleep 0.3; done`;
  const second = [
    patiently(program(other(), "send", address(7471), String(BYTES))),
    ...[7472, 7473].map((port) => `(${patiently(program(other(), "silent", address(port)))}) &`),
    "wait",
  ];
  const common = { link: createLink(), loss: 0.1, timeout: 300, cpus: 1 };
  hosts = await Promise.all([
    startVm({ command: ["sh", "-c", first.join("\n")], host: 1, ...common }),
    startVm({ command: ["sh", "-c", second.join("\n")], host: 2, ...common }),
  ]);
}
if (supported) before(boot, { timeout: 240_000 });
after(cleanUp);

function hostsTest(name: string, run: () => Promise<void>): void {
  if (!supported) console.log(`# SKIP ${name}: the VM needs an x86-64 host`);
  test(name, { skip: !supported, timeout: 240_000 }, run);
}

/** The words that run this library's program in a VM. */
function program(runtime: "deno" | "bun", ...args: string[]): string {
  const [first, ...words] = command(runtime);
  const flags = runtime === "deno" ? [...words, "--no-check", "--no-lock"] : words;
  return [first!, ...flags, PROGRAM, ...args].join(" ");
}

interface Sum {
  bytes: number;
  sha256: string;
}

hostsTest(
  `${BYTES} bytes, overwritten in flight, arrive intact over a link that loses packets`,
  async () => {
    const lines = await Promise.all(hosts.map((vm) => vm.line(/"sha256"/)));
    const [received, sent] = lines.map((line) => JSON.parse(line) as Sum);
    assert.equal(sent!.bytes, BYTES);
    assert.deepEqual(received, sent);
  },
);

interface Survived {
  codes: string[];
  frames: number;
  bytes: number;
  waits?: number;
}

hostsTest(
  "a host dies: on the other everything rejects, also what a handler waits for, and every page comes back",
  async () => {
    const [survivor, victim] = hosts;
    for (const vm of hosts) await twice(vm, /in flight|^"connected"/);
    victim.kill();
    const { status, stdout, stderr, fault } = await survivor.wait();
    assert.equal(status, 0, stderr + (fault ?? ""));
    const ends = stdout.split("\n").filter((line) => line.includes("codes"))
      .map((line) => JSON.parse(line) as Survived);
    assert.equal(ends.length, 2, stdout);
    for (const { codes, frames, bytes } of ends) {
      assert.deepEqual({ codes, frames, bytes }, { codes: ["PEER_LOST"], frames: 0, bytes: 0 });
    }
    assert.deepEqual(ends.flatMap(({ waits }) => waits ?? []), [1], "accesses that waited");
  },
);

// Waits until two lines like that have been printed.
async function twice(vm: Vm, like: RegExp): Promise<void> {
  let count = 0;
  for await (const line of vm.lines()) {
    if (like.test(line) && ++count === 2) return;
  }
  assert.fail(`the program ended: ${vm.stderr}`);
}
