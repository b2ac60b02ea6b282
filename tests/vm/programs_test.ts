// Examples that are whole programs, over RDMA. Booting runtimes takes most of their time here, so where this
// file runs under both, each takes its part; the shuffle has ranks on both.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { command, here, other, share } from "../support/child.ts";

function run(words: string[]): string {
  const [program, ...rest] = words as [string, ...string[]];
  const { status, signal, stdout, stderr } = spawnSync(program, rest, {
    encoding: "utf8",
    timeout: 120_000,
  });
  assert.equal(signal ?? status, 0, `${stdout}${stderr}`);
  return stdout;
}

function example(runtime: "deno" | "bun", name: string, ...args: string[]): string[] {
  const file = fileURLToPath(new URL(`../../examples/${name}.ts`, import.meta.url));
  return [...command(runtime), file, ...args];
}

function keyValue(): void {
  // The server pauses for so long in the middle of each PUT that the reader comes by.
  const options = ["--keys", "2", "--puts", "3", "--pause", "300", "--slot", "8k"];
  const output = run(example(here, "key_value", ...options));
  // It fails if a GET returns what nobody has put. That there was something to be mistaken about:
  const counts = /^(\d+) GETs of one key during 3 PUTs .* (\d+) of \d+ .* (\d+) of those/m;
  const [, gets, torn, mixed] = counts.exec(output) ?? [];
  assert.ok(Number(gets) >= 1, output);
  assert.ok(Number(torn) >= Number(mixed) && Number(mixed) >= 1, output);
  assert.match(output, /^2 GETs while the server's process was stopped$/m);
  // All that the server's queues have had is a message and an answer for each PUT.
  const puts = 2 + 3 + 1;
  assert.match(
    output,
    new RegExp(`^server: ${puts} PUTs of 2 connections; ${2 * puts} completions in all`, "m"),
  );
  assert.match(output, new RegExp(`^\\d+ GETs and ${puts} PUTs in all$`, "m"));
}

function shuffle(): void {
  const options = ["--transport", "rdma", "--bytes", "512k", "--message", "32k"];
  const mpirun = ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"];
  const output = run([
    ...[...mpirun, "-n", "1", ...example(here, "cluster/shuffle", ...options)],
    ...[":", "-n", "1", ...example(other(), "cluster/shuffle", ...options)],
  ]);
  assert.match(output, /^2 processes, started by Open MPI's mpirun, met by PMIx, job /m);
  assert.match(output, /^all: 65536 records, each once where its key belongs, .* over rdma$/m);
}

function demo(): void {
  const directory = mkdtempSync(join(tmpdir(), "moat-demo-test-")), file = join(directory, "file");
  try {
    writeFileSync(file, randomBytes((3 << 20) + 1234)); // the last message is shorter
    const options = ["--transport", "rdma", "--file", file, "--size", "256k", "--guard", "cow"];
    const output = run([...example(here, "demo", ...options), "--runtimes", `${here},${other()}`]);
    assert.match(output, /over rdma:\/\//);
    assert.match(output, /^cow +overwritten .* equal$/m);
    assert.match(output, /^none +overwritten .* differs, as expected$/m);
    assert.ok(output.endsWith("\ndemo: ok\n"), output);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

const programs: [string, () => void][] = [
  ["key_value: no GET returns what is torn, and the server knows of none", keyValue],
  ["mpirun: ranks on both runtimes shuffle over rdma://", shuffle],
  ['the demo over rdma:// arrives intact with "cow" and corrupted with "none"', demo],
];
for (const [name, program] of share(programs)) test(name, program);
