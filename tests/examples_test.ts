import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { command, here } from "./support/child.ts";
import { type Ended, type Program, start as startProgram } from "./support/program.ts";

function wordsOf(name: string, args: string[]): string[] {
  const file = fileURLToPath(new URL(`../examples/${name}.ts`, import.meta.url));
  return [...command(here), file, ...args];
}

function start(name: string, ...args: string[]): Program {
  return startProgram(wordsOf(name, args));
}

function end(name: string, ...args: string[]): Ended {
  const [program, ...words] = wordsOf(name, args) as [string, ...string[]];
  const { status, signal, stdout, stderr } = spawnSync(program, words, {
    encoding: "utf8",
    timeout: 60_000,
  });
  assert.equal(signal, null, `${stdout}${stderr}`);
  return { status, stdout, stderr };
}

// What an example prints, run by the line at its top.
function run(name: string, ...args: string[]): string {
  const { status, stdout, stderr } = end(name, ...args);
  assert.equal(status, 0, `${stdout}${stderr}`);
  return stdout;
}

test("quickstart: what is received is what was sent", () => {
  const output = run("quickstart");
  assert.match(output, /^received: 1048576 bytes, each of them 7$/m);
  assert.match(output, /^sent: 1048576 bytes, from where they were$/m);
});

test("broadcast: every subscriber gets every picture whole, and none is copied to be sent", () => {
  const output = run("broadcast");
  assert.equal(output.match(/: 40 pictures, 40 of them whole$/gm)?.length, 3, output);
  assert.match(output, /^producer: 0 bytes copied to send them/m);
});

test("broadcast without snapshots: the pictures are torn", () => {
  const output = run("broadcast", "torn");
  const whole = [...output.matchAll(/: 40 pictures, (\d+) of them whole$/gm)].map(([, n]) => +n!);
  assert.equal(whole.length, 3, output);
  assert.ok(Math.max(...whole) < 40, output);
});

test("file_transfer: a file that ends in the middle of a page arrives over tcp://", () => {
  const output = run(
    "file_transfer",
    "--transport",
    "tcp",
    "--bytes",
    "5000001",
    "--message",
    "64k",
  );
  assert.match(output, /^sent 5000001 bytes in/m);
  assert.match(output, /^received and stored "original": 5000001 bytes in/m);
  assert.match(output, /^SHA-256 [0-9a-f]{64}, as the sender's$/m);
});

test("file_transfer: two processes that were started apart, and what is there then", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "moat-file-transfer-test-"));
  t.after(() => rmSync(directory, { recursive: true }));
  const from = join(directory, "from"), to = join(directory, "to");
  const contents = randomBytes(3_000_000);
  writeFileSync(from, contents);
  const address = `shm://file-transfer-test-${process.pid}`;
  const receiver = start("file_transfer", "receive", address, to);
  await receiver.said(/^waiting at/m);
  run("file_transfer", "send", address, from);
  assert.equal((await receiver.ended).status, 0);
  assert.deepEqual(readFileSync(to), contents);
  assert.deepEqual(readdirSync(directory).sort(), ["from", "to"], "no part is left");
});

test("file_transfer: a sender that goes away leaves no file of that name", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "moat-file-transfer-test-"));
  t.after(() => rmSync(directory, { recursive: true }));
  const from = join(directory, "from"), to = join(directory, "to");
  writeFileSync(from, "");
  truncateSync(from, 2 ** 32); // takes longer than it has
  const address = `shm://file-transfer-gone-${process.pid}`;
  const receiver = start("file_transfer", "receive", address, to);
  await receiver.said(/^waiting at/m);
  const sender = start("file_transfer", "send", address, from, "--message", "4k");
  while (!existsSync(`${to}.part`)) await new Promise((resolve) => setTimeout(resolve, 1));
  sender.kill();
  const { status, stderr } = await receiver.ended;
  assert.equal(status, 1);
  assert.match(stderr, /^file_transfer: .*without closing/m);
  assert.ok(!existsSync(to));
});

test("latency_probe: every size is measured, in order of its percentiles", () => {
  const output = run("latency_probe", "--sizes", "4,100k", "--count", "300", "--warmup", "20");
  for (const bytes of [4, 102_400]) {
    const line = new RegExp(`^${bytes} bytes, µs there and back: (.*)$`, "m").exec(output)?.[1];
    const values = [...line?.matchAll(/[\d.]+(?= {2}|$)/g) ?? []].map(Number);
    assert.equal(values.length, 5, output);
    assert.deepEqual(values, values.toSorted((a, b) => a - b));
    assert.ok(values[0]! > 0);
  }
  const shares = [...output.matchAll(/ ([\d.]+) % /g)].map(([, share]) => Number(share));
  assert.equal(Math.round(shares.reduce((a, b) => a + b)), 200, "each histogram is of all");
});

test("parameter_server: workers at their own pace find the weights, over tcp:// too", () => {
  const output = run("parameter_server", "--transport", "tcp", "--workers", "2");
  assert.match(output, /^server: 150 updates in .* sends copied 0 bytes/m);
  assert.match(output, /^server: the largest error of 65536 weights is \d\.\de-[4-9]$/m);
  const gradients = [...output.matchAll(/^worker: (\d+) gradients/gm)].map(([, n]) => Number(n));
  assert.ok(gradients.length === 2 && gradients.every((n) => n > 0), output);
  assert.ok(gradients[0]! + gradients[1]! >= 150, output);
});

test("parameter_server: too few updates do not find them, which is a failure", () => {
  const { status, stderr } = end("parameter_server", "--updates", "3", "--workers", "1");
  assert.equal(status, 1);
  assert.match(stderr, /^parameter_server: the weights were not found/m);
});

const DEVICES = "/sys/class/infiniband";
test("key_value without a device says what it needs", (t) => {
  if (existsSync(DEVICES) && readdirSync(DEVICES).length > 0) {
    t.skip("this host has an RDMA device");
    return;
  }
  for (const args of [[], ["serve"], ["get", "key"]]) {
    const { status, stderr } = end("key_value", ...args);
    assert.equal(status, 1);
    assert.match(stderr, /^key_value: .*\n.*deno task vm -- deno run -A examples\/key_value\.ts$/m);
  }
});

test("programs called wrongly say so with status 2, and --help lists what there is", () => {
  const wrong: [string, ...string[]][] = [
    ["file_transfer", "send", "shm://x"],
    ["latency_probe", "--sizes", "3"],
    ["parameter_server", "--bogus"],
    ["key_value", "put", "key"],
    ["cluster/shuffle", "--guard", "maybe"],
  ];
  for (const [name, ...args] of wrong) {
    const { status, stderr } = end(name, ...args);
    assert.equal(status, 2, stderr);
    assert.match(stderr, /^\w+: .*\n\(--help lists what there is\)$/m);
  }
  assert.match(run("latency_probe", "--help"), /^ +--sizes LIST/m);
});
