/**
 * Bun's foreign function interface behind {@linkcode Runtime}.
 *
 * @module
 */
import type { CType, Functions, Runtime, Symbols } from "./runtime.ts";

// The part of `bun:ffi` used here. Its module cannot be imported by name where Deno reads this file.
interface BunFfi {
  dlopen(
    path: string,
    symbols: Record<string, { args: string[]; returns: string }>,
  ): { symbols: Record<string, (...args: unknown[]) => unknown> };
  ptr(view: Uint8Array): number;
  toArrayBuffer(address: number, offset: number, bytes: number): ArrayBuffer;
}

interface BunSockets {
  connect(options: {
    fd: number;
    socket: { data(): void; open(socket: { unref(): void }): void; error(): void };
  }): Promise<unknown>;
}

const TYPES: Record<CType, string> = {
  void: "void",
  i32: "i32",
  u32: "u32",
  f64: "f64",
  size: "i64_fast",
  address: "ptr",
  buffer: "ptr",
};

function load(): BunFfi {
  const { process } = globalThis as unknown as {
    process: { getBuiltinModule(name: string): unknown };
  };
  return process.getBuiltinModule("bun:ffi") as BunFfi;
}

/** Bun's implementation. */
export function openBun(version: string): Runtime {
  const ffi = load();
  const sockets: unknown[] = []; // for as long as the isolate lives, so that none is collected

  function open<S extends Symbols>(path: string, symbols: S): Functions<S> {
    const foreign: Record<string, { args: string[]; returns: string }> = {};
    for (const [name, { parameters, result }] of Object.entries(symbols)) {
      foreign[name] = { args: parameters.map((type) => TYPES[type]), returns: TYPES[result] };
    }
    const functions: Record<string, unknown> = {};
    const library = ffi.dlopen(path, foreign);
    for (const [name, { parameters, result }] of Object.entries(symbols)) {
      const fn = library.symbols[name]!;
      // `NULL` is null both ways, and `MAP_FAILED` comes as 2^64; only the C library's own functions use
      // this type.
      functions[name] = result === "address" || parameters.includes("address")
        ? (...args: unknown[]) => {
          const inward = args.map((v, i) => parameters[i] === "address" && v === 0 ? null : v);
          const value = Number(fn(...inward) ?? 0);
          return value < 2 ** 63 ? value : -1;
        }
        : fn;
    }
    return functions as Functions<S>;
  }

  return {
    name: "bun",
    version,
    open,
    addressOf(view): number {
      void view.buffer; // a small array lives inside its object until its buffer is asked for
      return ffi.ptr(view);
    },
    viewOf: (address, bytes) => ffi.toArrayBuffer(address, 0, bytes),
    onBytes(fd, fn): void {
      const { Bun } = globalThis as unknown as { Bun: BunSockets };
      const handlers = {
        data: fn,
        open: (s: { unref(): void }): void => s.unref(),
        error: (): void => {},
      };
      sockets.push(Bun.connect({ fd, socket: handlers }));
    },
  };
}
