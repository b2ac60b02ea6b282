/**
 * Addresses: which transport, and where.
 *
 * @module
 */
import { MoatError } from "../ffi/errors.ts";
import { describe } from "./memory/core.ts";

/** A parsed address. */
export interface Address {
  readonly transport: "shm";
  /** For `shm`: a name, or the absolute path of a socket. */
  readonly name: string;
  /** As it was given. */
  readonly text: string;
}

/**
 * Parses `shm://name` or `shm:///absolute/path`.
 *
 * @throws {MoatError} `INVALID_ARGUMENT`
 */
export function parseAddress(address: unknown): Address {
  const match = typeof address === "string" ? /^([a-z]+):\/\/(.*)$/s.exec(address) : null;
  if (!match) {
    throw new MoatError("INVALID_ARGUMENT", `${describe(address)} is not an address`, {
      hint: 'use "shm://name"',
    });
  }
  const [text, transport, name] = match as unknown as [string, string, string];
  if (transport !== "shm") {
    throw new MoatError("INVALID_ARGUMENT", `there is no transport ${transport}:// (${text})`, {
      hint: 'use "shm://name"',
    });
  }
  const fine = name.startsWith("/")
    ? !name.includes("\0") && name.length > 1
    : /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name);
  if (!fine) {
    throw new MoatError("INVALID_ARGUMENT", `${describe(name)} is not a name for shm://`, {
      hint: "use 1 to 64 letters, digits, dots, dashes and underscores, or an absolute path",
    });
  }
  return { transport, name, text };
}
