/**
 * Builds the freestanding C helper for every architecture and writes each shared object as base64
 * into `ffi/helper/<arch>.ts`.
 *
 *     deno task helper            # rebuild and write the modules
 *     deno task helper --check    # rebuild into a temporary directory and compare
 *
 * The same compiler gives the same bytes from any directory, so that anyone can verify that the
 * committed base64 is what the C sources say. Uses node: modules only, and runs on both runtimes.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { ensurePackages, run } from "./apt.ts";

/** An architecture that the helper is built for. */
export interface Target {
  /** The module's name, `ffi/helper/<arch>.ts`. */
  arch: "x86_64" | "aarch64";
  /** The C compiler. */
  compiler: string;
  /** The Debian package that has the compiler. */
  package: string;
  /** Flags for this architecture alone. */
  flags: string[];
}

/** Every architecture that the helper is built for. */
export const targets: Target[] = [
  {
    arch: "x86_64",
    ...toolchain("x64", "x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
    flags: ["-fcf-protection=none"],
  },
  {
    arch: "aarch64",
    ...toolchain("arm64", "aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    flags: ["-mno-outline-atomics"],
  },
];

const SOURCE_DIR = fileURLToPath(new URL("../ffi/helper", import.meta.url));
/** The one translation unit, which includes the other sources. */
const SOURCE = "moat.c";

const FLAGS = [
  "-std=gnu11",
  "-Os",
  // Neither libc nor start-up files; and no loop is turned into a call of memcpy or memset.
  "-ffreestanding",
  "-nostdlib",
  "-fno-tree-loop-distribute-patterns",
  // Descriptors and run lists are read from a peer's memory as words, once each.
  "-fno-strict-aliasing",
  "-fno-stack-protector",
  "-shared",
  "-fPIC",
  "-fvisibility=hidden",
  "-fno-asynchronous-unwind-tables",
  "-Wall",
  "-Wextra",
  "-Werror",
  // The code may run on a small signal stack.
  "-Wframe-larger-than=3072",
  // Signal handlers live in the object: it must never be unloaded.
  "-Wl,-z,nodelete",
  "-Wl,-z,noexecstack",
  "-Wl,-z,norelro",
  "-Wl,-z,noseparate-code",
  "-Wl,-z,now",
  "-Wl,-z,defs",
  "-Wl,--hash-style=gnu",
  "-Wl,--gc-sections",
  // Nothing in the output that depends on the directory or on the compiler's patch level.
  "-Wl,--build-id=none",
  `-ffile-prefix-map=${SOURCE_DIR}=.`,
  "-fno-ident",
  "-s",
];

/** Rebuilds the helper and writes the modules; returns a line about each. */
export function writeModules(): string[] {
  return targets.map((target) => {
    const major = compilerMajor(target);
    const object = build(target);
    writeFileSync(modulePath(target), moduleText(target, major, object));
    return `${moduleName(target)}: ${object.length} bytes, sha256 ${sha256(object)}`;
  });
}

/** Rebuilds the helper and compares it with the modules; returns what differs, if anything. */
export function checkModules(): string[] {
  return targets.flatMap((target) => checkModule(target).map((e) => `${moduleName(target)}: ${e}`));
}

function checkModule(target: Target): string[] {
  let text: string;
  try {
    text = readFileSync(modulePath(target), "utf8");
  } catch {
    return ["cannot be read; write it with `deno task helper`"];
  }

  // The module against itself.
  const recorded = {
    major: /^ \* Compiler: gcc (\d+)/m.exec(text)?.[1],
    sha256: /^export const sha256: string = "(\w+)";$/m.exec(text)?.[1],
    base64: /^export const base64: string = `([^`]*)`;$/m.exec(text)?.[1],
  };
  if (!recorded.major || !recorded.sha256 || !recorded.base64) {
    return ["is not as generated; write it anew with `deno task helper`"];
  }
  const errors: string[] = [];
  const decoded = Buffer.from(recorded.base64, "base64");
  if (sha256(decoded) !== recorded.sha256) {
    errors.push(`base64 decodes to sha256 ${sha256(decoded)}, but ${recorded.sha256} is recorded`);
  }

  // The module against the sources. Another compiler's output would prove nothing, so that fails.
  const major = compilerMajor(target);
  if (major !== recorded.major) {
    errors.push(
      `cannot be verified: it was built with gcc ${recorded.major}, but ${target.compiler} is ` +
        `gcc ${major}; install gcc ${recorded.major}, or rebuild with \`deno task helper\``,
    );
    return errors;
  }
  const object = build(target);
  if (sha256(object) !== recorded.sha256) {
    errors.push(`the sources build to sha256 ${sha256(object)}, not ${recorded.sha256}`);
  } else if (text !== moduleText(target, major, object)) {
    errors.push("the text differs from what `deno task helper` writes");
  }
  return errors;
}

/** Compiles the sources for one architecture; returns the verified shared object. */
export function build(target: Target): Uint8Array {
  const dir = mkdtempSync(join(tmpdir(), "moat-helper-"));
  try {
    const path = join(dir, "moat.so");
    const args = [...FLAGS, ...target.flags, SOURCE, "-o", path];
    const { status, output } = run(target.compiler, args, {
      cwd: SOURCE_DIR,
      env: { LC_ALL: "C" },
    });
    if (status !== 0) throw new Error(`${target.compiler} failed on ${SOURCE}:\n${output}`);
    const errors = inspect(path);
    if (errors.length > 0) throw new Error(`the ${target.arch} helper ${errors.join("; ")}`);
    return readFileSync(path);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** What readelf says is wrong with a shared object. */
function inspect(path: string): string[] {
  const env = { LC_ALL: "C" };
  const dynamic = run("readelf", ["-dW", path], { env });
  const symbols = run("readelf", ["--dyn-syms", "-W", path], { env });
  if (dynamic.status !== 0 || symbols.status !== 0) {
    return [`cannot be read by readelf:\n${dynamic.output}${symbols.output}`];
  }
  const errors: string[] = [];
  for (const [, name] of dynamic.stdout.matchAll(/\(NEEDED\).*\[(.*)\]/g)) {
    errors.push(`needs the library ${name}`);
  }
  // Entry 0 of every symbol table is undefined and has no name.
  for (const [, name] of symbols.stdout.matchAll(/ UND (\S+)/g)) {
    errors.push(`has the undefined symbol ${name}`);
  }
  if (/TEXTREL/.test(dynamic.stdout)) errors.push("has text relocations");
  if (!/\(FLAGS_1\).*\bNODELETE\b/.test(dynamic.stdout)) errors.push("is not marked NODELETE");
  return errors;
}

function moduleText(target: Target, major: string, object: Uint8Array): string {
  const base64 = Buffer.from(object).toString("base64").replace(/.{1,96}/g, "$&\n");
  const generated = `Generated from ffi/helper/${SOURCE}`;
  return `/**
 * ${generated} by tools/build_helper.ts; do not edit.
 *
 * The helper for ${target.arch}: a shared object without dependencies.
 * \`deno task helper --check\` rebuilds it and compares.
 *
 * Compiler: gcc ${major}${major === "12" ? ", as in Debian 12" : ""}
 *
 * @module
 */

/** ${generated}: the shared object's SHA-256 in hexadecimal. */
export const sha256: string = "${sha256(object)}";

/** ${generated}: the shared object's size in bytes. */
export const byteLength: number = ${object.length};

/** ${generated}: the shared object in base64, with line breaks. */
export const base64: string = \`
${base64}\`;
`;
}

/** The compiler's major version; installs the compiler if it is missing. */
function compilerMajor(target: Target): string {
  const version = (): string | undefined => {
    const { status, stdout } = run(target.compiler, ["-dumpfullversion"]);
    return status === 0 ? /^\d+/.exec(stdout)?.[0] : undefined;
  };
  const found = version();
  if (found !== undefined) return found;
  ensurePackages([target.package]);
  const installed = version();
  if (installed === undefined) throw new Error(`${target.compiler} does not run`);
  return installed;
}

/** The machine's own compiler for its own architecture, else Debian's cross compiler. */
function toolchain(
  cpu: string,
  crossCompiler: string,
  crossPackage: string,
): { compiler: string; package: string } {
  return process.arch === cpu
    ? { compiler: "gcc", package: "gcc" }
    : { compiler: crossCompiler, package: crossPackage };
}

function moduleName(target: Target): string {
  return `ffi/helper/${target.arch}.ts`;
}

function modulePath(target: Target): string {
  return join(SOURCE_DIR, `${target.arch}.ts`);
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function main(args: string[]): number {
  const check = args.includes("--check");
  const unknown = args.filter((arg) => arg !== "--check");
  if (unknown.length > 0) {
    console.error(`unknown argument ${unknown[0]}; usage: deno task helper [--check]`);
    return 2;
  }
  try {
    if (!check) {
      for (const line of writeModules()) console.log(line);
      return 0;
    }
    const errors = checkModules();
    for (const error of errors) console.error(error);
    if (errors.length === 0) console.log("the helper's modules are what its sources build to");
    return errors.length === 0 ? 0 : 1;
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    return 1;
  }
}

if (import.meta.main) process.exit(main(process.argv.slice(2)));
