/**
 * What the library needs of a JavaScript runtime's foreign function interface, and which runtime
 * this is. Everything above this file is the same code on Deno and on Bun.
 *
 * @module
 */
import { MoatError } from "./errors.ts";
import { openDeno } from "./runtime_deno.ts";
import { openBun } from "./runtime_bun.ts";

/**
 * A C type of a parameter or result.
 *
 * - `i32`, `u32`, `f64`: numbers; what a foreign call costs least with. Addresses travel as `f64`
 *   into our own helper: they are below 2^53.
 * - `size`: `size_t`, `off_t`, `long` of the C library, given and returned as a number.
 * - `address`: a pointer given and returned as a number, 0 for `NULL`.
 * - `buffer`: a pointer to the bytes of a `Uint8Array` that lives as long as the call.
 */
export type CType = "void" | "i32" | "u32" | "f64" | "size" | "address" | "buffer";

/** The declaration of a C function. */
export interface CFunction {
  readonly parameters: readonly CType[];
  readonly result: CType;
}

/** The declarations of a library's functions, by symbol. */
export type Symbols = Record<string, CFunction>;

type Argument<T extends CType> = T extends "buffer" ? Uint8Array<ArrayBufferLike> : number;
type Arguments<P extends readonly CType[]> = {
  [K in keyof P]: P[K] extends CType ? Argument<P[K]> : never;
};

/** A library's functions as JavaScript calls them. */
export type Functions<S extends Symbols> = {
  [K in keyof S]: (
    ...args: Arguments<S[K]["parameters"]>
  ) => S[K]["result"] extends "void" ? void : number;
};

/** A runtime's foreign function interface. */
export interface Runtime {
  readonly name: "deno" | "bun";
  readonly version: string;
  /** Opens a shared library. Throws the loader's own error if it or a symbol is missing. */
  open<S extends Symbols>(path: string, symbols: S): Functions<S>;
  /** The address of the first byte of a view. */
  addressOf(view: Uint8Array): number;
  /** The memory at an address as an `ArrayBuffer` that neither owns nor copies it. */
  viewOf(address: number, bytes: number): ArrayBuffer;
  /**
   * Calls `fn` from this thread's event loop whenever bytes come on a socket, and discards them. The
   * descriptor is the runtime's from here on. It does not keep the process alive.
   */
  onBytes(fd: number, fn: () => void): void;
}

let current: Runtime | undefined;

/**
 * The runtime this process runs on.
 *
 * @throws {MoatError} `UNSUPPORTED_PLATFORM` when this is neither Linux on x86-64 or aarch64 nor a
 * runtime and version the library works with.
 */
export function runtime(): Runtime {
  current ??= choose(globalThis);
  return current;
}

/** The oldest versions the test suite passes on. */
export const OLDEST = { deno: "2.7.12", bun: "1.4.5" } as const;

interface Globals {
  Deno?: { version: { deno: string }; build: { os: string; arch: string } };
  Bun?: { version: string };
  process?: { platform: string; arch: string };
}

/** Chooses the implementation for a global object; apart so that a test can pass another. */
export function choose(globals: unknown): Runtime {
  const { Deno, Bun, process } = globals as Globals;
  const platform = Deno?.build.os ?? process?.platform ?? "unknown";
  const arch = Deno?.build.arch ?? process?.arch ?? "unknown";
  if (platform !== "linux" || !["x86_64", "x64", "aarch64", "arm64"].includes(arch)) {
    throw new MoatError(
      "UNSUPPORTED_PLATFORM",
      `Moat runs on Linux on x86-64 or aarch64; this is ${platform} on ${arch}`,
      { hint: "on another system, run it in a Linux virtual machine" },
    );
  }
  const [name, version] = Deno
    ? ["deno" as const, Deno.version.deno]
    : Bun
    ? ["bun" as const, Bun.version]
    : ["unknown" as const, ""];
  if (name === "unknown" || older(version, OLDEST[name])) {
    throw new MoatError(
      "UNSUPPORTED_PLATFORM",
      `Moat needs Deno ${OLDEST.deno} or Bun ${OLDEST.bun}, or newer; this is ` +
        (name === "unknown" ? "another JavaScript runtime" : `${name} ${version}`),
      { hint: name === "bun" ? "run: bun upgrade" : "run: deno upgrade" },
    );
  }
  return name === "deno" ? openDeno(version) : openBun(version);
}

function older(version: string, least: string): boolean {
  const a = version.split(/[.+-]/).map(Number), b = least.split(".").map(Number);
  for (let i = 0; i < 3; i++) {
    const d = (a[i] ?? 0) - (b[i] ?? 0);
    if (d !== 0) return d < 0;
  }
  return false;
}

/** `x86_64` or `aarch64`, as the helper's modules are named. */
export function architecture(): "x86_64" | "aarch64" {
  const { Deno, process } = globalThis as unknown as Globals;
  const arch = Deno?.build.arch ?? process?.arch;
  return arch === "x86_64" || arch === "x64" ? "x86_64" : "aarch64";
}
