/**
 * Deno's foreign function interface behind {@linkcode Runtime}.
 *
 * @module
 */
import { Socket } from "node:net";
import type { CType, Functions, Runtime, Symbols } from "./runtime.ts";

// The part of Deno used here. Its types are not there where another runtime's users check this file.
interface DenoFfi {
  dlopen(path: string, symbols: Record<string, { parameters: string[]; result: string }>): {
    symbols: Record<string, Native>;
  };
  UnsafePointer: {
    create(address: bigint): object | null;
    value(pointer: object | null): bigint | number;
    of(view: Uint8Array): object | null;
  };
  UnsafePointerView: { getArrayBuffer(pointer: object, bytes: number): ArrayBuffer };
}

const { dlopen, UnsafePointer, UnsafePointerView } =
  (globalThis as unknown as { Deno?: DenoFfi }).Deno ?? {} as DenoFfi;

const TYPES: Record<CType, string> = {
  void: "void",
  i32: "i32",
  u32: "u32",
  f64: "f64",
  size: "isize",
  address: "pointer",
  buffer: "buffer",
};

type Native = (...args: unknown[]) => unknown;

// Deno wants 64-bit integers as bigint (a number costs 68 ns instead of 3) and pointers as objects.
// Functions without either, all the hot ones, are passed on as they are.
function wrap(fn: Native, parameters: readonly CType[], result: CType): Native {
  const inward = parameters.map((type) =>
    type === "size"
      ? (value: unknown): unknown => BigInt(value as number)
      : type === "address"
      ? (value: unknown): unknown => UnsafePointer.create(BigInt(value as number))
      : undefined
  );
  const outward = result === "size"
    ? (value: unknown): unknown => Number(BigInt.asIntN(64, BigInt(value as bigint)))
    : result === "address"
    ? (value: unknown): unknown =>
      Number(BigInt.asIntN(64, BigInt(UnsafePointer.value(value as object | null))))
    : undefined;
  if (!outward && inward.every((f) => f === undefined)) return fn;
  return (...args) => {
    const out = fn(...args.map((value, i) => {
      const convert = inward[i];
      return convert ? convert(value) : value;
    }));
    return outward ? outward(out) : out;
  };
}

function open<S extends Symbols>(path: string, symbols: S): Functions<S> {
  const foreign: Record<string, { parameters: string[]; result: string }> = {};
  for (const [name, { parameters, result }] of Object.entries(symbols)) {
    foreign[name] = {
      parameters: parameters.map((type) => TYPES[type]),
      result: TYPES[result],
    };
  }
  const library = dlopen(path, foreign);
  const functions: Record<string, Native> = {};
  for (const [name, { parameters, result }] of Object.entries(symbols)) {
    functions[name] = wrap(library.symbols[name]!, parameters, result);
  }
  return functions as unknown as Functions<S>;
}

function onBytes(fd: number, fn: () => void): void {
  const socket = new Socket({ fd, readable: true, writable: false });
  socket.on("data", fn).on("error", () => {}).unref();
}

/** Deno's implementation. */
export function openDeno(version: string): Runtime {
  return {
    name: "deno",
    version,
    open,
    addressOf: (view) => Number(UnsafePointer.value(UnsafePointer.of(view))),
    viewOf: (address, bytes) =>
      UnsafePointerView.getArrayBuffer(UnsafePointer.create(BigInt(address))!, bytes),
    onBytes,
  };
}
