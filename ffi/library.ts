/**
 * Shared libraries that native threads may be inside of when an isolate ends.
 *
 * @module
 */
import { MoatError } from "./errors.ts";
import { cString, cText, environment, LIBC_PATHS, openFirst } from "./libc.ts";
import type { Functions, Symbols } from "./runtime.ts";

const symbols = {
  // void *dlopen(const char *filename, int flags);
  dlopen: { parameters: ["buffer", "i32"], result: "address" },
  // void *dlsym(void *handle, const char *symbol);
  dlsym: { parameters: ["address", "buffer"], result: "address" },
  // char *dlerror(void);
  dlerror: { parameters: [], result: "address" },
} as const satisfies Symbols;

/** Flags of dlopen(3). */
export const DL = { RTLD_NOW: 2, RTLD_NODELETE: 0x1000 } as const;

let loader: Functions<typeof symbols> | undefined;

/** The functions of the dynamic loader: in the C library since glibc 2.34, before that on their own. */
function dl(): Functions<typeof symbols> {
  return loader ??= openFirst(
    "The dynamic loader",
    [...LIBC_PATHS, "libdl.so.2"],
    symbols,
    "install glibc or musl",
  );
}

/** A library whose code stays where it is until the process ends. */
export interface Library<S extends Symbols> {
  readonly functions: Functions<S>;
  /** What dlopen(3) returned. */
  readonly handle: number;
  /** The path by which it was found. */
  readonly path: string;
}

/**
 * Opens a library for good. Deno closes what an isolate has opened when it ends, while another thread, our
 * doorbell or a handler, may still be inside: an extra `dlopen` with `RTLD_NODELETE` keeps it.
 *
 * @param variable the environment variable that names another path
 * @throws {MoatError} `LIBRARY_NOT_FOUND`
 */
export function openForGood<S extends Symbols>(
  what: string,
  variable: string,
  name: string,
  wanted: S,
  hint: string,
): Library<S> {
  const override = environment(variable);
  const path = override === "" ? name : override;
  const from = override === "" ? "" : ` (${variable} says so)`;
  const functions = openFirst(`${what}${from}`, [path], wanted, hint);
  const handle = dl().dlopen(cString(path), DL.RTLD_NOW | DL.RTLD_NODELETE);
  if (handle === 0) {
    throw new MoatError("LIBRARY_NOT_FOUND", `${what} could not be kept: ${said()}`, { hint });
  }
  return { functions, handle, path };
}

/**
 * The address of a function of a library, in the version a program linked today would get.
 *
 * @throws {MoatError} `LIBRARY_NOT_FOUND` if it has none of this name.
 */
export function addressIn(library: { handle: number; path: string }, name: string): number {
  const address = dl().dlsym(library.handle, cString(name));
  if (address !== 0) return address;
  throw new MoatError("LIBRARY_NOT_FOUND", `${library.path} has no ${name}: ${said()}`, {
    hint: "a newer rdma-core has it",
  });
}

function said(): string {
  return cText(dl().dlerror());
}
