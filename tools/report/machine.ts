/**
 * What is measured, and on what: for the head of the report, and to know which results can stand beside each other.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { fileURLToPath } from "node:url";
import { machineFacts } from "../../bench/machine.ts";
import { run } from "../apt.ts";
import { findRuntimes } from "../bench.ts";
import type { RuntimeName } from "../../bench/results.ts";
import type { Origin } from "./store.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** What is measured, and on what. */
export interface Setting {
  facts: Record<string, string>;
  origin: Origin;
  runtimes: Partial<Record<RuntimeName, string[]>>;
}

/** Finds out about this checkout and machine. */
export function setting(quick: boolean): Setting {
  const { deno, bun } = findRuntimes("deno,bun"), code = commit(), machine = machineFacts();
  const { version } = JSON.parse(readFileSync(`${ROOT}/deno.json`, "utf8"));
  const { load: _, ...lasting } = machine;
  return {
    facts: {
      moat: version,
      commit: code.commit,
      options: quick ? "the quick form" : "the full form",
      deno: deno!.version,
      bun: bun!.version,
      ...machine,
    },
    origin: {
      code: `${version} ${code.commit} ${code.changes}`.trim(),
      machine: Object.values(lasting).join(", "),
      runtimes: `deno ${deno!.version}, bun ${bun!.version}`,
      quick,
    },
    runtimes: { deno: deno!.words, bun: bun!.words },
  };
}

/** What a figure depends on; other files may come and go. */
const CODE = ["mod.ts", "lib", "ffi", "bench", "tools", "deno.json"];

/** The commit of the checkout, and a digest of what was changed since. */
function commit(): { commit: string; changes: string } {
  const git = (...args: string[]): string | null => {
    const { status, stdout } = run("git", ["-C", ROOT, ...args]);
    return status === 0 ? stdout : null;
  };
  const head = git("rev-parse", "HEAD")?.trim();
  if (head === undefined) return { commit: "none: not a git checkout", changes: "" };
  const status = git("status", "--porcelain", "--", ...CODE) ?? "";
  if (status === "") return { commit: head, changes: "" };
  const changes = createHash("sha256").update(status).update(
    git("diff", "HEAD", "--", ...CODE) ?? "",
  );
  return { commit: `${head}, with changes`, changes: changes.digest("hex").slice(0, 12) };
}

/** The share of the processors' time that is used now, by whatever else runs here: 0 to 1, looked at for a moment. */
export async function busy(milliseconds = 300): Promise<number> {
  const before = ticks();
  await new Promise((done) => setTimeout(done, milliseconds));
  const after = ticks();
  const all = after.all - before.all;
  return all > 0 ? 1 - (after.idle - before.idle) / all : 0;
}

/** Of all processors since they were started (proc_stat(5)). */
function ticks(): { all: number; idle: number } {
  const [, ...times] = readFileSync("/proc/stat", "utf8").split("\n")[0]!.split(/\s+/).map(Number);
  // user nice system idle iowait irq softirq steal; what follows is in user and nice already.
  const own = times.slice(0, 8);
  return { all: own.reduce((sum, time) => sum + time, 0), idle: own[3]! + own[4]! };
}
