import assert from "node:assert/strict";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { cleanUp, createLink, startVm, type Vm } from "../tools/vm/vm.ts";
import { command, here, other } from "./support/child.ts";

const supported = process.arch === "x64", MIB = 1 << 20;
const PROGRAM = fileURLToPath(new URL("programs/transfer.ts", import.meta.url));
const ADDRESS = "rdma://10.9.0.1:7471";
after(cleanUp);

function hostsTest(name: string, run: () => Promise<void>): void {
  if (!supported) console.log(`# SKIP ${name}: the VM needs an x86-64 host`);
  test(name, { skip: !supported, timeout: 240_000 }, run);
}

/** The commands that run this library's program in a VM: this runtime on one host, the other on the other. */
function program(runtime: "deno" | "bun", ...args: string[]): string[] {
  const [first, ...words] = command(runtime);
  const flags = runtime === "deno" ? [...words, "--no-check", "--no-lock"] : words;
  return [first!, ...flags, PROGRAM, ...args];
}

async function two(first: string[], second: string[], loss = 0): Promise<[Vm, Vm]> {
  const link = createLink(), common = { link, loss, timeout: 220 };
  return await Promise.all([
    startVm({ command: program(here, ...first), host: 1, ...common }),
    startVm({
      // The first may not listen yet.
      command: ["sh", "-c", 'until "$@"; do sleep 0.3; done', "sh", ...program(other(), ...second)],
      host: 2,
      ...common,
    }),
  ]);
}

function last<T>(text: string): T {
  return JSON.parse(text.trim().split("\n").at(-1)!) as T;
}

interface Sum {
  bytes: number;
  sha256: string;
}

hostsTest(
  "64 MiB, overwritten in flight, arrive intact over a link that loses packets",
  async () => {
    const [receiver, sender] = await two(
      ["receive", ADDRESS],
      ["send", ADDRESS, String(64 * MIB)],
      0.1,
    );
    const [received, sent] = await Promise.all([receiver.wait(), sender.wait()]);
    assert.equal(received.status, 0, received.stderr + (received.fault ?? ""));
    assert.equal(sent.status, 0, sent.stderr + (sent.fault ?? ""));
    assert.equal(last<Sum>(sent.stdout).bytes, 64 * MIB);
    assert.deepEqual(last<Sum>(received.stdout), last<Sum>(sent.stdout));
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
    const link = createLink(), common = { link, timeout: 200 };
    const roles = [["survive", "7471"], ["wait", "7472"]] as const;
    const both = (runtime: "deno" | "bun", role: (own: string) => string): string[] => {
      const run = roles.map(([own, port]) => {
        const words = program(runtime, role(own), `rdma://10.9.0.1:${port}`);
        return `(until ${words.join(" ")}; do sleep 0.3; done) &`;
      });
      return ["sh", "-c", `${run.join(" ")} wait`];
    };
    const [survivor, victim] = await Promise.all([
      startVm({ command: both(here, (own) => own), host: 1, ...common }),
      startVm({ command: both(other(), () => "silent"), host: 2, ...common }),
    ]);
    for (const vm of [survivor, victim]) await twice(vm, /in flight|^"connected"/);
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
