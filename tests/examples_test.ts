import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { command, here } from "./support/child.ts";

// What an example prints, run by the line at its top.
function run(name: string, ...args: string[]): string {
  const file = fileURLToPath(new URL(`../examples/${name}.ts`, import.meta.url));
  const [program, ...words] = command(here) as [string, ...string[]];
  const { status, signal, stdout, stderr } = spawnSync(program, [...words, file, ...args], {
    encoding: "utf8",
    timeout: 60_000,
  });
  assert.deepEqual({ status, signal }, { status: 0, signal: null }, `${stdout}${stderr}`);
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
