/**
 * Compiling and running the C programs that drive the native helper without JavaScript, on this processor
 * and, under QEMU, on aarch64.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after } from "node:test";
import { fileURLToPath } from "node:url";
import * as x86 from "../../ffi/helper/x86_64.ts";
import * as arm from "../../ffi/helper/aarch64.ts";

/** What a program is compiled for and runs on. */
export interface Machine {
  name: string;
  compiler: string;
  /** The helper: the very object that the library carries, or how to compile one. */
  helper: { base64: string } | string[];
  /** What runs its programs. */
  emulator: string[];
  /** Further options for the program. */
  flags?: string[];
}

/** aarch64, under QEMU where this is another. */
export const aarch64: Machine = process.arch === "arm64"
  ? { name: "aarch64", helper: arm, compiler: "gcc", emulator: [] }
  : {
    name: "aarch64",
    helper: arm,
    compiler: "aarch64-linux-gnu-gcc",
    emulator: ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"],
  };
/** This machine. */
export const own: Machine = process.arch === "arm64"
  ? aarch64
  : { name: "x86-64", helper: x86, compiler: "gcc", emulator: [] };
/** Both, or the one that they are. */
export const machines: Machine[] = own === aarch64 ? [aarch64] : [own, aarch64];

const HELPER_SOURCE = fileURLToPath(new URL("../../ffi/helper/moat.c", import.meta.url));
const COMMON = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"];

/** A C program of tests/support, compiled once for each machine it runs on. */
export class Harness {
  /** Where it is compiled; removed when the tests have ended. */
  readonly directory: string = mkdtempSync(join(tmpdir(), "moat-harness-"));
  readonly #source: string;
  readonly #built = new Map<string, { program: string; helper: string }>();

  /** @param source the file's name */
  constructor(source: string) {
    this.#source = fileURLToPath(new URL(source, import.meta.url));
    after(() => rmSync(this.directory, { recursive: true }));
  }

  /** Runs it with the helper's path and further arguments; it must succeed. */
  run(machine: Machine, ...args: string[]): void {
    const { program, helper } = this.#build(machine);
    const words = [...machine.emulator, program, helper, ...args];
    succeed(words[0]!, words.slice(1));
  }

  #build({ compiler, flags = [], helper }: Machine): { program: string; helper: string } {
    const key = [compiler, ...flags].join(" "), known = this.#built.get(key);
    if (known) return known;
    const base = join(this.directory, String(this.#built.size));
    const files = { program: `${base}-program`, helper: `${base}-helper.so` };
    if (Array.isArray(helper)) succeed(compiler, [...helper, HELPER_SOURCE, "-o", files.helper]);
    else writeFileSync(files.helper, Buffer.from(helper.base64, "base64"));
    succeed(compiler, [...COMMON, ...flags, this.#source, "-o", files.program, "-ldl"]);
    this.#built.set(key, files);
    return files;
  }
}

function succeed(command: string, args: string[]): void {
  const { status, signal, stdout, stderr, error } = spawnSync(command, args, {
    encoding: "utf8",
    timeout: 120_000,
    killSignal: "SIGKILL",
  });
  if (error) throw error;
  assert.deepEqual({ status, signal }, { status: 0, signal: null }, `${stdout}${stderr}`);
}
