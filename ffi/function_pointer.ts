/**
 * Functions that have no symbol, only an address in a table. A call takes about a microsecond: for queries.
 *
 * @module
 */

// The parts of the runtimes used here: each has no types where the other's users check this file.
interface DenoFfi {
  UnsafePointer: { create(address: bigint): object | null };
  UnsafeFnPointer: new (pointer: object, declaration: typeof QUERY) => {
    call(first: object, second: null, out: Uint8Array, bytes: bigint): number;
  };
}

interface Globals {
  Deno?: DenoFfi;
  process: { getBuiltinModule(name: string): unknown };
}

interface BunFfi {
  CFunction(declaration: { ptr: number; args: string[]; returns: string }): (
    ...args: unknown[]
  ) => number;
}

const QUERY = { parameters: ["pointer", "pointer", "buffer", "usize"], result: "i32" } as const;

/**
 * Calls an `int f(void *, const void *, void *, size_t)`.
 *
 * @param address of the function
 * @param first a pointer
 * @param out where the result goes
 * @returns what the function returned
 */
export function callQuery(address: number, first: number, out: Uint8Array): number {
  const { Deno, process } = globalThis as unknown as Globals;
  if (Deno) {
    const pointer = (n: number): object => Deno.UnsafePointer.create(BigInt(n))!;
    const call = new Deno.UnsafeFnPointer(pointer(address), QUERY);
    return call.call(pointer(first), null, out, BigInt(out.byteLength));
  }
  const { CFunction } = process.getBuiltinModule("bun:ffi") as BunFfi;
  const call = CFunction({
    ptr: address,
    args: ["ptr", "ptr", "ptr", "i64_fast"],
    returns: "i32",
  });
  return call(first, null, out, out.byteLength);
}
