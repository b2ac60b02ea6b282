/**
 * Functions that have no symbol, only an address in a table. A call takes about a microsecond: for queries.
 *
 * @module
 */

interface Globals {
  Deno?: typeof Deno;
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
    const pointer = <T>(n: number): Deno.PointerObject<T> =>
      Deno.UnsafePointer.create(BigInt(n)) as Deno.PointerObject<T>;
    const call = new Deno.UnsafeFnPointer(pointer(address), QUERY);
    const bytes = out as Uint8Array<ArrayBuffer>;
    return call.call(pointer(first), null, bytes, BigInt(out.byteLength));
  }
  const { CFunction } = process.getBuiltinModule("bun:ffi") as BunFfi;
  const call = CFunction({
    ptr: address,
    args: ["ptr", "ptr", "ptr", "i64_fast"],
    returns: "i32",
  });
  return call(first, null, out, out.byteLength);
}
