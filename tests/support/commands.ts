/**
 * How the commands in the documents are checked. Most of them would change the machine or take minutes, so what is
 * checked is what can go stale: the names of tasks, options, files, packages and settings. A kind of command for
 * which there is no rule fails.
 *
 * @module
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { type Block, documents, permissions, ROOT } from "./docs.ts";

interface Task {
  command: string;
}
const { tasks } = JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8")) as {
  tasks: Record<string, Task>;
};

/** The commands of a block, without comments; what ends in a backslash goes on. */
export function linesOf({ text }: Block): string[] {
  return text.replaceAll(/\\\n\s*/g, "").split("\n")
    .map((line) => line.replace(/(^|\s)#.*$/, "").trim())
    .filter((line) => line !== "");
}

// The source of a task's program and of what it imports from the checkout.
function sourceOf(task: string): string {
  const [file] = /[\w/]+\.ts/.exec(tasks[task]!.command) ?? [];
  if (file === undefined) return tasks[task]!.command;
  const text = readFileSync(join(ROOT, file), "utf8");
  const imports = [...text.matchAll(/from "(\.[^"]+)"/g)].map((match) =>
    readFileSync(join(ROOT, dirname(file), match[1]!), "utf8")
  );
  return [text, ...imports].join("\n");
}

/** Checks a task of deno.json and its options. */
export function checkTask(name: string, args: string): void {
  assert.ok(name in tasks, `there is no task ${name}`);
  const own = args.split(/(?:^|\s)--(?:\s|$)/)[0]!; // behind it comes a command
  for (const [, option] of own.matchAll(/(?:^|\s)--([a-z][a-z-]*)/g)) {
    const known = new RegExp(`--${option}\\b|["' ]${option}["']?: \\{`);
    assert.match(sourceOf(name), known, `the task ${name} has no option --${option}`);
  }
}

// What comes behind `--`: a command of its own.
function checkRest(args: string, document: string): void {
  const at = /(?:^|\s)--\s+(.*)$/.exec(args)?.[1];
  if (at !== undefined) { for (const each of at.split(/\s--\s/)) checkCommand(each, document); }
}

// A program of the checkout, or one that the document has shown.
function checkProgram(file: string, flags: string, document: string): void {
  if (existsSync(join(ROOT, file))) return;
  const block = documents.find((each) => each.file === document)?.blocks
    .find(({ words }) => words.includes(file));
  assert.ok(block, `there is no ${file}`);
  const wanted = flags.includes("-A") ? "-A" : permissions(block.text).join(" ");
  if (flags !== "bun") assert.equal(flags, wanted, "the permissions that the test gives it");
}

function sourcesUnder(directory: string): string {
  return readdirSync(join(ROOT, directory), { withFileTypes: true }).map((entry) =>
    entry.isDirectory()
      ? sourcesUnder(`${directory}/${entry.name}`)
      : readFileSync(join(ROOT, directory, entry.name), "utf8")
  ).join("\n");
}

// A package is one that the tools install, or that is there because they installed another.
function checkPackage(name: string): void {
  if (sourcesUnder("tools").includes(`"${name}"`)) return;
  const { status } = spawnSync("dpkg", ["-s", name], { stdio: "ignore" });
  assert.equal(status, 0, `no tool of this project installs the package ${name}`);
}

type Rule = [RegExp, (match: RegExpExecArray, document: string) => void];
const RULES: readonly Rule[] = [
  [/^(?:deno|npx -y deno@([\d.]+)) task ([\w:]+)(.*)$/, ([, version, name, args], document) => {
    const ci = readFileSync(join(ROOT, ".ci/run"), "utf8");
    if (version) assert.ok(ci.includes(`deno@${version}`), "the version that the tests use");
    const script = name === "trace" ? /\s(\w+\.ts)$/.exec(args!)?.[1] : undefined;
    checkTask(name!, args!);
    if (script) checkProgram(script, "-A", document);
    else checkRest(args!, document);
  }],
  [
    /^deno run ((?:-\S+ )*)([\w./]+\.ts)(?: .*)?$/,
    ([, flags, file], document) => checkProgram(file!, flags!.trim(), document),
  ],
  [/^bun ([\w./]+\.ts)(?: .*)?$/, ([, file], document) => checkProgram(file!, "bun", document)],
  // tests/cluster_test.ts starts what is behind it so.
  [/^mpirun -n \d+ (.*)$/, ([, command], document) => checkCommand(command!, document)],
  [
    /^(?:sudo )?apt-get install (?:-y )?([\w.+ -]+)$/,
    ([, names]) => names!.split(" ").forEach(checkPackage),
  ],
  // Every start of a VM runs this line, and loads that module.
  [
    /^(?:sudo )?(rdma link add .*)$/,
    ([, line]) => assert.ok(sourcesUnder("tools/vm").includes(line!), "the line that the VM runs"),
  ],
  [
    /^(?:sudo )?modprobe (\w+)$/,
    ([, module]) =>
      assert.ok(sourcesUnder("tools/vm").includes(`"${module}"`), "a module that the VM loads"),
  ],
  [
    /^(?:sudo )?sysctl (?:-w )?([\w.]+)(?:=\d+)?$/,
    ([, name]) =>
      assert.ok(existsSync(`/proc/sys/${name!.replaceAll(".", "/")}`), `the kernel has ${name}`),
  ],
  [/^cat (\/(?:proc|sys)\/\S+)$/, ([, path]) => assert.ok(existsSync(path!), `there is ${path}`)],
  // What needs a device is run where there is one.
  [/^(?:rdma|ibv_\w+)\b.*$/, ([line]) => {
    const run = documents.flatMap(({ blocks }) => blocks)
      .filter(({ words }) => words.join(" ") === "sh rdma");
    assert.ok(run.some((block) => linesOf(block).includes(line!)), "a test runs it in the VM");
  }],
  [/^ulimit -[ln]$/, ([line]) => {
    const { status, stdout } = spawnSync("sh", ["-c", line!], { encoding: "utf8" });
    assert.equal(status, 0);
    assert.match(stdout, /^(\d+|unlimited)$/m);
  }],
];

/** Checks a command line by the rule of its kind. */
export function checkCommand(line: string, document = "README.md"): void {
  for (const [pattern, check] of RULES) {
    const match = pattern.exec(line);
    if (match) return check(match, document);
  }
  assert.fail(`there is no rule for this kind of command: ${line}`);
}
