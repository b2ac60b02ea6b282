import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { test } from "node:test";
import { DESC, RING } from "../ffi/layout.ts";
import { checkCommand, checkTask, linesOf } from "./support/commands.ts";
import { type Document, documents, ROOT, testPrograms } from "./support/docs.ts";
import { AT } from "./support/hostile.ts";

testPrograms(false, (source) => source);

for (const { file, blocks } of documents) {
  for (const block of blocks.filter(({ words }) => words.join(" ") === "sh")) {
    for (const line of linesOf(block)) {
      test(`${file}, line ${block.line}: ${line}`, () => checkCommand(line, file));
    }
  }
}

test("every code block is of a kind that a test runs or checks, or is for reading", () => {
  for (const { file, line, words } of documents.flatMap(({ blocks }) => blocks)) {
    const [kind, ...rest] = words.filter((word) => word !== "rdma");
    const fine = kind === "ts"
      ? rest.length === 0 || (rest[0]!.endsWith(".ts") && (rest.length === 1 || rest[1] === "with"))
      : (kind === "sh" || kind === "text") && rest.length === 0;
    assert.ok(fine, `${file}, line ${line}: \`\`\`${words.join(" ")}`);
  }
});

// Links and paths in the text; code blocks are tested by themselves.

function anchors({ prose }: Document): string[] {
  const seen = new Map<string, number>();
  return [...prose.matchAll(/^#+ (.*)$/gm)].map(([, title]) => {
    const slug = title!.toLowerCase().replaceAll(/[^\p{L}\p{N}\s_-]/gu, "").replaceAll(" ", "-");
    const before = seen.get(slug) ?? 0;
    seen.set(slug, before + 1);
    return before === 0 ? slug : `${slug}-${before}`;
  });
}

function linksOf({ prose }: Document): string[] {
  const inCode = prose.replaceAll(/`[^`]*`/g, "");
  const html = [...inCode.matchAll(/\b(?:src|srcset|href)="([^"]+)"/g)];
  return [...inCode.matchAll(/\]\(\s*([^)\s]+)\s*\)/g), ...html].map((match) => match[1]!);
}

// The file that a link of a document leads to, in the checkout.
function targetOf(document: Document, link: string): string {
  const path = link.split("#")[0]!;
  return path === "" ? document.file : normalize(join(dirname(document.file), path));
}

const isOutside = (link: string): boolean => /^[a-z]+:/.test(link);

for (const document of documents) {
  test(`every link of ${document.file} leads somewhere`, () => {
    for (const link of linksOf(document)) {
      if (isOutside(link)) {
        assert.equal(new URL(link).protocol, "https:", link);
        continue;
      }
      const target = targetOf(document, link), anchor = link.split("#")[1];
      assert.ok(existsSync(join(ROOT, target)), link);
      if (anchor === undefined) continue;
      const there = documents.find(({ file }) => file === target);
      assert.ok(there && anchors(there).includes(anchor), link);
    }
  });

  test(`every path that ${document.file} names is there`, () => {
    const ignored = readFileSync(join(ROOT, ".gitignore"), "utf8").split("\n");
    const paths = /`((?:ffi|lib|tests|tools|bench|examples|docs)\/[\w./-]+)`/g;
    for (const [, path] of document.prose.matchAll(paths)) {
      assert.ok(existsSync(join(ROOT, path!)) || ignored.includes(`${path}/`), path);
    }
  });

  test(`every task that ${document.file} names is one of deno.json's`, () => {
    const named = /`(?:deno|npx -y deno@[\d.]+) task ([\w:]+)([^`]*)`/g;
    for (const [, task, args] of document.prose.matchAll(named)) checkTask(task!, args!);
  });
}

test("each bug has the test that keeps it, and the test has the name that is said", () => {
  const bugs = documents.filter(({ file }) => /^docs\/bugs\/(?!README)/.test(file));
  assert.ok(bugs.length >= 4);
  for (const { file, prose } of bugs) {
    const tests = prose.split("**Test.**")[1]?.replaceAll(/\s+/g, " ") ?? "";
    const files = [...tests.matchAll(/\]\(\.\.\/\.\.\/(tests\/[\w.]+)\)/g)]
      .map(([, path]) => readFileSync(join(ROOT, path!), "utf8"));
    const names = [...tests.matchAll(/"([^"]+)"/g)].map((match) => match[1]!);
    assert.ok(files.length > 0 && names.length > 0, file);
    for (const name of names) assert.ok(files.some((text) => text.includes(name)), name);
  }
});

test("the offsets of the ring in the description of shm:// are those of the layouts", () => {
  const { prose } = documents.find(({ file }) => file === "docs/protocols.md")!;
  const ring = prose.split("### The ring")[1]!.split("A descriptor:")[0]!;
  const rows = new Map(
    [...ring.matchAll(/^\| (\d+) +\| (\d+) +\| `?([\w ,]+)/gm)]
      .map(([, at, bytes, name]) => [name!.trim(), [Number(at), Number(bytes)]]),
  );
  const field = (start: string): number[] =>
    [...rows].find(([name]) => name.startsWith(start))?.[1] ?? [];
  assert.deepEqual(field("tx_tail"), [AT.txTail, 8]);
  assert.deepEqual(field("rx_head"), [AT.rxHead, 8]);
  assert.deepEqual(field("rel_tail"), [AT.relTail, 8]);
  assert.deepEqual(field("state"), [RING.state, 4]);
  assert.deepEqual(field("process id"), [RING.pid, 4]);
  assert.deepEqual(field("thread id"), [RING.tid, 4]);
  assert.deepEqual(field("1,024 descriptors"), [AT.desc, AT.slots * DESC.size]);
  assert.deepEqual(field("16,384 releases"), [AT.rel, AT.releases * 4]);
  assert.deepEqual(field("small messages"), [AT.eager, AT.eagerBytes]);
  assert.ok(ring.includes(`${RING.size.toLocaleString("en")} bytes`));
});

test("every document is reached from the README, and every picture is in a document", () => {
  const reached = new Set<string>(), images = "docs/images";
  const visit = (document: Document): void => {
    if (reached.has(document.file)) return;
    reached.add(document.file);
    for (const link of linksOf(document).filter((link) => !isOutside(link))) {
      const target = targetOf(document, link), next = documents.find(({ file }) => file === target);
      if (next) visit(next);
      else reached.add(target);
    }
  };
  visit(documents[0]!);
  const pictures = readdirSync(join(ROOT, images)).map((name) => `${images}/${name}`);
  for (const file of [...documents.map(({ file }) => file), ...pictures]) {
    assert.ok(reached.has(file), file);
  }
});
