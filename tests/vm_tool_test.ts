import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { share } from "./support/child.ts";
import { cleanUp, createLink, DIED, startVm } from "../tools/vm/vm.ts";

const supported = process.arch === "x64";
after(cleanUp);

/** Tests that boot VMs. Where the file is run under both runtimes they share them; vm_hosts_test.ts is for both. */
const tests: [string, () => Promise<void>][] = [];
function vmTest(name: string, run: () => Promise<void>): void {
  tests.push([name, run]);
}

vmTest("status, both outputs, arguments, environment and files are passed on", async () => {
  const heard = { stdout: "", stderr: "" };
  const vm = await startVm({
    command: [
      "sh",
      "-c",
      'echo "$1$X"; pwd >&2; echo file >"$MOAT_VM_OUT/f"; exit 7',
      "sh",
      "a 'b",
    ],
    cwd: "/etc",
    env: { X: "\u00e4" },
    onOutput: (channel, text) => heard[channel] += text,
  });
  const { status, stdout, stderr, fault } = await vm.wait();
  assert.deepEqual({ status, stdout, stderr, fault }, {
    status: 7,
    stdout: "a 'b\u00e4\n",
    stderr: "/etc\n",
    fault: null,
  });
  assert.deepEqual(heard, { stdout, stderr });
  assert.equal(readFileSync(join(vm.out, "f"), "utf8"), "file\n");
});

vmTest("a command that does not exist is an error", async () => {
  const vm = await startVm({ command: ["no-such-command"] });
  const { status, stderr } = await vm.wait();
  assert.equal(status, 127);
  assert.match(stderr, /no-such-command: command not found/);
});

vmTest("two hosts do RDMA with each other, until one is killed", async () => {
  const link = createLink();
  const [first, second] = await Promise.all([
    startVm({ command: ["rping", "-s", "-v", "-C", "3"], host: 1, link }),
    startVm({
      // The server may not listen yet.
      command: [
        "sh",
        "-c",
        "until rping -c -v -C 3 -a 10.9.0.1; do sleep 0.5; done; echo done; sleep 1000",
      ],
      host: 2,
      link,
    }),
  ]);
  const server = await first.wait();
  assert.equal(server.fault, null);
  assert.match(server.stdout, /server ping data: rdma-ping-2/);
  await second.line(/^done$/);
  second.kill();
  const { status, fault, stdout } = await second.wait();
  assert.match(stdout, /ping data: rdma-ping-2/);
  assert.equal(status, DIED);
  assert.match(fault!, /VM 2 was killed/);
});

for (const [name, run] of share(tests)) {
  if (!supported) console.log(`# SKIP ${name}: the VM needs an x86-64 host`);
  test(name, { skip: !supported, timeout: 120_000 }, run);
}
