/**
 * The README and docs/ as data, and running the programs in them.
 *
 * A code block says what it is in the words behind its fence:
 *
 *     ts                    a program; it prints what its comments `// prints …` say
 *     ts NAME               one that is saved as NAME, for commands and other blocks to speak of
 *     ts NAME with OTHER    one that runs while OTHER, an earlier block, does, in a process of its own; it is
 *                           started when OTHER has printed a line
 *     ts rdma …             any of these, which needs a device
 *     sh                    commands; how each is checked is in commands.ts
 *     sh rdma               commands that need a device, and have to succeed there
 *     text                  what is to be read only
 *
 * @module
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { here, other } from "./child.ts";

/** The checkout. */
export const ROOT: string = fileURLToPath(new URL("../..", import.meta.url));

/** A code block. */
export interface Block {
  /** Its document. */
  file: string;
  /** The number of its fence's line. */
  line: number;
  /** The words behind the fence. */
  words: string[];
  text: string;
}

/** A document. */
export interface Document {
  /** Its path in the checkout. */
  file: string;
  text: string;
  blocks: Block[];
  /** The text without its code blocks. */
  prose: string;
}

function read(file: string): Document {
  const text = readFileSync(join(ROOT, file), "utf8"), blocks: Block[] = [];
  const fence = /^( *)```([^\n]*)\n(.*?)^ *```$/gms;
  const prose = text.replace(
    fence,
    (all, indent: string, info: string, body: string, at: number) => {
      const line = text.slice(0, at).split("\n").length;
      const words = info.trim().split(/\s+/).filter((word) => word !== "");
      blocks.push({
        file,
        line,
        words,
        text: body.replaceAll(`\n${indent}`, "\n").slice(indent.length),
      });
      return "\n".repeat(all.split("\n").length - 1);
    },
  );
  return { file, text, blocks, prose };
}

function markdownIn(directory: string): string[] {
  return readdirSync(join(ROOT, directory), { withFileTypes: true }).flatMap((entry) => {
    const path = `${directory}/${entry.name}`;
    if (entry.isDirectory()) return path === "docs/api" ? [] : markdownIn(path);
    return entry.name.endsWith(".md") ? [path] : [];
  }).sort();
}

/** The README, and all of docs/. */
export const documents: Document[] = ["README.md", ...markdownIn("docs")].map(read);

/** The words of the command that is a runtime. */
export function command(runtime: "deno" | "bun"): string[] {
  const given = process.env[`MOAT_${runtime.toUpperCase()}`];
  return given ? JSON.parse(given) as string[] : [process.execPath];
}

/** Runs a command in the checkout, which must succeed, and returns what it printed. */
export function run(words: string[]): string {
  const env = { ...process.env };
  // Where the other runtime is not known, nobody is to go and get it.
  if (other() === here) env[here === "deno" ? "MOAT_BUN" : "MOAT_DENO"] = '["false"]';
  const { status, signal, stdout, stderr } = spawnSync(words[0]!, words.slice(1), {
    cwd: ROOT,
    env,
    encoding: "utf8",
    timeout: 120_000,
  });
  assert.equal(signal ?? status, 0, `${words.join(" ")}\n${stdout}${stderr}`);
  return stdout;
}

/** What Deno has to permit a program to do. */
export function permissions(program: string): string[] {
  const needs = { read: '"node:fs"', net: '"node:net"' };
  const more = Object.entries(needs).filter(([, module]) => program.includes(module));
  return ["--allow-ffi", ...more.map(([name]) => `--allow-${name}`)];
}

interface Output {
  stdout: string;
  stderr: string;
  status: number | string | null;
}

/** A program that has been started. */
class Running {
  readonly ended: Promise<Output>;
  readonly spoke: Promise<void>;
  readonly #process: ChildProcess;

  constructor(file: string, program: string) {
    const flags = here === "deno"
      ? ["run", "--no-prompt", "--no-lock", "--no-check", ...permissions(program)]
      : [];
    const [first, ...rest] = command(here), args = [...rest, ...flags, file];
    const child = this.#process = spawn(first!, args, { stdio: ["ignore", "pipe", "pipe"] });
    const output: Output = { stdout: "", stderr: "", status: null };
    const limit = setTimeout(() => child.kill("SIGKILL"), 60_000);
    let spoke: () => void;
    this.spoke = new Promise((resolve) => spoke = resolve);
    child.stdout!.on("data", (data) => {
      output.stdout += data;
      spoke();
    });
    child.stderr!.on("data", (data) => output.stderr += data);
    this.ended = new Promise((resolve) => {
      child.on("close", (code, signal) => {
        clearTimeout(limit);
        spoke();
        resolve({ ...output, status: signal ?? code });
      });
    });
  }

  stop(): void {
    this.#process.kill("SIGKILL");
  }
}

/** What a program says that it prints. */
function promised(program: string): string[] {
  return [...program.matchAll(/\/\/ +prints ([^,;\n]+)/g)].map((match) => match[1]!.trim());
}

function assertPrinted({ stdout, stderr, status }: Output, program: string): void {
  assert.equal(status, 0, `${stdout}${stderr}`);
  assert.ok(promised(program).length > 0, "it says what it prints");
  assert.deepEqual(stdout.trim().split("\n"), promised(program));
}

/** Runs jobs two at a time: a program mostly waits for its runtime to start. */
function limiter(): <T>(job: () => Promise<T>) => Promise<T> {
  const waiting: (() => void)[] = [];
  let free = 2;
  return async (job) => {
    if (free > 0) free--;
    else await new Promise<void>((resolve) => waiting.push(resolve));
    try {
      return await job();
    } finally {
      const next = waiting.shift();
      if (next) next();
      else free++;
    }
  };
}

/**
 * Declares a test for each program of the documents, with (`rdma`) or without the need for a device: it runs with the
 * permissions that the README says, and prints what its comments promise.
 */
export function testPrograms(rdma: boolean, adapt: (source: string) => string): void {
  const directory = mkdtempSync(join(tmpdir(), "moat-docs-test-"));
  after(() => rmSync(directory, { recursive: true }));
  const run = limiter();

  const programs = documents.flatMap(({ blocks }) => blocks)
    .filter(({ words }) => words[0] === "ts" && words.includes("rdma") === rdma);
  const partners = new Map(
    programs.flatMap(({ file, words }) => {
      const at = words.indexOf("with");
      return at < 0 ? [] : [[`${file} ${words[at + 1]}`, true]];
    }),
  );

  programs.forEach(({ file, line, words, text }, index) => {
    const rest = words.slice(rdma ? 2 : 1), name = rest[0] ?? `program${index}.ts`;
    if (partners.has(`${file} ${name}`)) return; // runs with the other
    const place = join(directory, String(index));
    mkdirSync(place);
    const save = (as: string, program: string): string => {
      const source = adapt(program)
        .replaceAll(/"shm:\/\/([\w-]+)"/g, `"shm://$1-${process.pid}-${index}"`)
        .replaceAll('"/tmp/', `"${place}/`) // the other runtime's test runs at the same time
        .replaceAll(/"(jsr:@moat\/rdma|\.\/mod\.ts)"/g, JSON.stringify(join(ROOT, "mod.ts")))
        .replaceAll('"jsr:@moat/rdma/verbs"', JSON.stringify(join(ROOT, "lib/verbs/mod.ts")))
        .replaceAll('"./lib/verbs/mod.ts"', JSON.stringify(join(ROOT, "lib/verbs/mod.ts")));
      writeFileSync(join(place, as), source);
      return join(place, as);
    };
    const first = rest[1] === "with"
      ? programs.find((each) => each.file === file && each.words.includes(rest[2]!))
      : undefined;
    const outputs = run(async () => {
      const other = first && new Running(save(rest[2]!, first.text), first.text);
      await other?.spoke;
      const output = await new Running(save(name, text), text).ended;
      if (output.status !== 0) other?.stop();
      return [output, await other?.ended] as const;
    });

    test(`the program in line ${line} of ${file} runs, and prints what it says`, async () => {
      assert.match(text, /from "(jsr:@moat\/rdma|\.\/mod\.ts|\.\/lib\/)/, "it imports the library");
      assert.ok(rest[1] !== "with" || first, `there is a block ${rest[2]}`);
      const [output, others] = await outputs;
      assertPrinted(output, text);
      if (first) assertPrinted(others!, first.text);
    });
  });
}
