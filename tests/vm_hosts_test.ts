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

for (const role of ["survive", "wait"]) {
  const when = role === "wait" ? "while a handler waits" : "with sends and receives in flight";
  hostsTest(
    `the other host dies ${when}: everything rejects and every page comes back`,
    async () => {
      const [survivor, victim] = await two([role, ADDRESS], ["silent", ADDRESS]);
      await Promise.all([survivor.line(/in flight/), victim.line(/connected/)]);
      victim.kill();
      const { status, stdout, stderr, fault } = await survivor.wait();
      assert.equal(status, 0, stderr + (fault ?? ""));
      const { codes, frames, bytes, waits } = last<Survived>(stdout);
      assert.deepEqual({ codes, frames, bytes }, { codes: ["PEER_LOST"], frames: 0, bytes: 0 });
      if (role === "wait") assert.equal(waits, 1);
    },
  );
}
