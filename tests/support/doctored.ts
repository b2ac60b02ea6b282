/**
 * The doctor as a program, where something was taken from its environment.
 *
 * @module
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import type { Diagnosis, Finding } from "../../lib/doctor/mod.ts";
import type { Conditions } from "../programs/doctored.ts";
import { command, here } from "./child.ts";

const path = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url));

/** The program's file. */
export const DOCTOR = path("../../lib/doctor/mod.ts");
const DOCTORED = path("../programs/doctored.ts");

/** How the program is run. */
export interface Surroundings {
  /** Namespaces of its own: options of unshare(1). */
  unshare?: string[];
  /** A shell script that prepares the ground. `$dir` is a directory of its own; in its own namespace, empty memory. */
  script?: string;
  /** Variables in addition. */
  env?: Record<string, string>;
}

/** What the program did. */
export interface Run {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** Runs the doctor on this runtime. */
export function run(args: string[], surroundings: Surroundings = {}): Run {
  return start([DOCTOR, ...args], surroundings);
}

function start(words: string[], { script = "", unshare, env = {} }: Surroundings): Run {
  const dir = mkdtempSync(join(tmpdir(), "moat-doctored-"));
  const own = unshare?.includes("--mount") ? 'mount -t tmpfs doctored "$dir"' : "";
  const shell = ["sh", "-ec", `${own}\n${script}\nexec "$@"`, "sh", ...command(here), ...words];
  const [program, ...rest] = unshare ? ["unshare", ...unshare, ...shell] : shell;
  try {
    const { status, signal, stdout, stderr } = spawnSync(program!, rest, {
      encoding: "utf8",
      env: { ...process.env, ...env, dir },
      timeout: 120_000,
    });
    assert.equal(signal, null, stderr);
    return { status, stdout, stderr };
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** Runs it with `--json`. The status has to be what the diagnosis says. */
export function diagnose(surroundings: Surroundings = {}, args: string[] = []): Diagnosis {
  const { status, stdout, stderr } = run(["--json", ...args], surroundings);
  assert.ok(status === 0 || status === 1, `status ${status}: ${stderr}`);
  const diagnosis = JSON.parse(stdout) as Diagnosis;
  assert.equal(status, diagnosis.ok ? 0 : 1);
  return diagnosis;
}

/** Calls doctor() in a process that brings itself into such conditions. What it found, in the order of its calls. */
export function diagnoseUnder(
  conditions: Conditions,
  surroundings: Surroundings = {},
): [Diagnosis, ...Diagnosis[]] {
  const { status, stdout, stderr } = start([DOCTORED, JSON.stringify(conditions)], surroundings);
  assert.equal(status, 0, stderr);
  return stdout.trim().split("\n").map((line) => JSON.parse(line)) as [Diagnosis];
}

/** The finding with this name. */
export function find({ findings }: Diagnosis, id: string): Finding {
  const found = findings.filter((finding) => finding.id === id);
  assert.equal(found.length, 1, `${id} among ${findings.map((each) => each.id).join(", ")}`);
  return found[0]!;
}
