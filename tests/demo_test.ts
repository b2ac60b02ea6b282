import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { OLDEST } from "../ffi/runtime.ts";
import { listen, Pool } from "../mod.ts";
import { command, type Exit, freshAddress, here, other, share } from "./support/child.ts";

const EXAMPLES = fileURLToPath(new URL("../examples", import.meta.url));
const directory = mkdtempSync(join(tmpdir(), "moat-demo-test-"));
const file = join(directory, "file");
writeFileSync(file, randomBytes((3 << 20) + 1234)); // the last message is shorter
after(() => rmSync(directory, { recursive: true }));

function program(name: string, args: string[], env: Record<string, string> = {}): Promise<Exit> {
  const [first, ...words] = [...command(here), join(EXAMPLES, name), ...args];
  const child = spawn(first!, words, {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  let stdout = "", stderr = "";
  child.stdout.on("data", (chunk) => stdout += chunk);
  child.stderr.on("data", (chunk) => stderr += chunk);
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}

function demo(args: string[], env?: Record<string, string>): Promise<Exit> {
  return program("demo.ts", args, env);
}

// The table's rows: the guard, what became of the buffers, and the words of the other columns.
function rows({ stdout }: Exit): string[][] {
  return stdout.split("\n")
    .filter((line) => /(overwritten|left alone|given away) {2}/.test(line))
    .map((line) => line.split(/ {2,}/));
}

const small = ["--file", file, "--size", "64k", "--runtimes", `${here},${here}`];

for (const runtimes of new Set([`${here},${other()}`, `${other()},${here}`])) {
  test(`the demo arrives intact with "cow" and corrupted with "none" (${runtimes})`, async () => {
    const ended = await demo(["--file", file, "--size", "64k", "--runtimes", runtimes]);
    assert.equal(ended.code, 0, ended.stdout + ended.stderr);
    assert.ok(ended.stdout.endsWith("\ndemo: ok\n"), ended.stdout);
    assert.equal(ended.stderr, "", "nothing but the table where there is no terminal");
    const [alone, overwritten, unguarded, ...more] = rows(ended);
    assert.deepEqual(more, []);
    const [, , , , , pages] = overwritten!;
    assert.deepEqual([alone![0], alone![1], alone!.at(-1)], ["cow", "left alone", "equal"]);
    assert.deepEqual(alone!.slice(4, 7), ["0", "0", "0.0 %"], "left alone, nothing is copied");
    assert.deepEqual(
      [overwritten![0], overwritten![1], overwritten!.at(-1)],
      ["cow", "overwritten", "equal"],
    );
    assert.ok(Number(pages!.replace(",", "")) > 0, "overwritten, pages are copied");
    assert.deepEqual(
      [unguarded![0], unguarded![1], unguarded!.at(-1)],
      ["none", "overwritten", "differs, as expected"],
    );
  });
}

for (const guard of share(["auto", "wait", "move", "copy"])) {
  test(`the demo arrives intact with "${guard}"`, async () => {
    const ended = await demo([...small, "--guard", guard]);
    assert.equal(ended.code, 0, ended.stdout + ended.stderr);
    assert.ok(ended.stdout.endsWith("\ndemo: ok\n"), ended.stdout);
    const guarded = rows(ended).filter((row) => row[0] === guard);
    assert.ok(guarded.length > 0, ended.stdout);
    for (const row of guarded) assert.equal(row.at(-1), "equal");
    assert.equal(rows(ended).at(-1)!.at(-1), "differs, as expected");
  });
}

test("the demo over tcp:// arrives intact with a guard and corrupted without", async () => {
  // More than a socket takes up, so that messages are still the sender's when it overwrites them.
  const large = join(directory, "large");
  writeFileSync(large, randomBytes(24 << 20));
  const ended = await demo([...["--file", large, "--transport", "tcp"], ...small.slice(4)]);
  assert.equal(ended.code, 0, ended.stdout + ended.stderr);
  const ends = rows(ended).map((row) => [row[0], row.at(-1)]);
  assert.deepEqual(ends, [["cow", "equal"], ["cow", "equal"], ["none", "differs, as expected"]]);
});

test('the demo with --guard "none" runs only that, and a message may be larger than the file', async () => {
  const ended = await demo([...small, "--guard", "none", "--size", "5M"]);
  assert.equal(ended.code, 0, ended.stdout + ended.stderr);
  assert.deepEqual(rows(ended).map((row) => row[0]), ["none"]);
  assert.match(ended.stdout, /in 1 message of up to 5,242,880 bytes/);
  assert.ok(ended.stdout.endsWith("\ndemo: ok\n"), ended.stdout);
});

test("without the other runtime the demo runs on one, and says so", async () => {
  const missing = here === "deno" ? "bun" : "deno";
  const ended = await demo(["--file", file, "--guard", "none"], {
    [`MOAT_${missing.toUpperCase()}`]: '["false"]',
  });
  assert.equal(ended.code, 0, ended.stdout + ended.stderr);
  assert.match(ended.stdout, new RegExp(`is not to be had, so both run on ${here}`));
  assert.match(ended.stdout, new RegExp(`sender: ${here} .*; receiver: ${here} `));
});

test("the demo fails when one of its programs dies, and says which", async () => {
  const missing = here === "deno" ? "bun" : "deno";
  const ended = await demo(["--file", file, "--runtimes", `${here},${missing}`], {
    [`MOAT_${missing.toUpperCase()}`]: JSON.stringify([
      "sh",
      "-c",
      `echo '["99.0.0", "/bin/false"]'`,
    ]),
  });
  assert.equal(ended.code, 1, ended.stdout + ended.stderr);
  assert.match(
    ended.stdout,
    new RegExp(`\\ndemo: failed: the receiver \\(${missing} 99.0.0\\) ended with status 1\\n$`),
  );
});

function start(
  t: { after(fn: () => void): void },
  name: string,
  args: string[],
): { child: ChildProcess; ended: Promise<[number | null, string]> } {
  const [first, ...words] = [...command(here), join(EXAMPLES, "demo", name), ...args];
  const child = spawn(first!, words, { stdio: "pipe" });
  t.after(() => void child.kill("SIGKILL"));
  let stderr = "";
  child.stderr.on("data", (chunk) => stderr += chunk);
  return { child, ended: new Promise((done) => child.on("close", (code) => done([code, stderr]))) };
}

test("a receiver that waits for its sender ends when the demo is gone", async (t) => {
  const { child, ended } = start(t, "receiver.ts", [freshAddress(), "4", "65536"]);
  await once(child.stdout!, "data"); // it listens
  child.stdin!.end();
  assert.deepEqual(await ended, [1, ""]);
});

test("a sender that waits for its receiver ends when the demo is gone", async (t) => {
  const address = freshAddress();
  await using pool = Pool.create();
  await using listener = await listen(address, { pool });
  const { child, ended } = start(t, "sender.ts", [address, file, "65536", "none"]);
  const channel = await listener.accept(); // and receives nothing
  child.stdin!.end();
  assert.deepEqual(await ended, [1, ""]);
  channel.abort();
});

const wrong: [args: string[], message: RegExp][] = [
  [["--guard", "moat"], /--guard "moat": use one of auto, cow, wait, move, copy, none/],
  [["--size", "0"], /--size "0": use a number of bytes from 1 to 64m/],
  [["--size", "much"], /--size "much": use a number/],
  [["--size", "65m"], /--size "65m": use a number/],
  [["--file", join(directory, "missing")], /missing": there is no such file/],
  [["--file", directory], /: it is not an ordinary file/],
  [["--file", "/dev/null"], /"\/dev\/null": it is not an ordinary file/],
  [["--runtimes", "deno,node"], /--runtimes "node": use one of deno, bun/],
  [["--runtimes", "deno"], /--runtimes "deno": name two/],
  [["--speed", "9"], /'--speed'/],
  [["file"], /'file'/],
];

for (const [args, message] of share(wrong)) {
  const shown = args.join(" ").replace(directory, "DIRECTORY");
  test(`the demo refuses ${shown} with status 2`, async () => {
    const { code, stdout, stderr } = await demo(args);
    assert.match(stderr, message);
    assert.deepEqual([code, stdout], [2, ""]);
  });
}

test("the demo lists its options with --help", async () => {
  const { code, stdout, stderr } = await demo(["--help"]);
  assert.deepEqual([code, stderr], [0, ""]);
  for (const option of ["--file", "--size", "--guard", "--runtimes"]) {
    assert.ok(stdout.includes(option), `${option} is not in:\n${stdout}`);
  }
});

test("the demo asks for the versions that the library accepts", () => {
  const source = readFileSync(join(EXAMPLES, "demo", "runtimes.ts"), "utf8");
  const named = [...source.matchAll(/oldest: "(.*)"/g)].map((match) => match[1]);
  assert.deepEqual(named, [OLDEST.deno, OLDEST.bun]);
});
