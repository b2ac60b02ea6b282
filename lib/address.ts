/**
 * Addresses: which transport, and where.
 *
 * @module
 */
import { describe, MoatError } from "../ffi/errors.ts";

/** A parsed address. */
export type Address = ShmAddress | HostAddress;

/** `shm://name`. */
export interface ShmAddress {
  readonly transport: "shm";
  /** A name, or the absolute path of a socket. */
  readonly name: string;
  /** As it was given. */
  readonly text: string;
}

/** `rdma://host:port` or `tcp://host:port`. */
export interface HostAddress {
  readonly transport: "rdma" | "tcp";
  /** A name, or an IP address without brackets. Empty: any address of this host, to listen at. */
  readonly host: string;
  /** 0 to listen at a free one. */
  readonly port: number;
  /** As it was given. */
  readonly text: string;
}

const FORMS = 'use "shm://name", "rdma://host:port" or "tcp://host:port"';

/**
 * Parses `shm://name`, `shm:///absolute/path`, `rdma://host:port` or `tcp://host:port`.
 *
 * @throws {MoatError} `INVALID_ARGUMENT`
 */
export function parseAddress(address: unknown): Address {
  const match = typeof address === "string" ? /^([a-z]+):\/\/(.*)$/s.exec(address) : null;
  if (!match) {
    throw new MoatError("INVALID_ARGUMENT", `${describe(address)} is not an address`, {
      hint: FORMS,
    });
  }
  const [text, transport, rest] = match as unknown as [string, string, string];
  if (transport === "shm") return shm(rest, text);
  if (transport === "rdma" || transport === "tcp") return hostAndPort(transport, rest, text);
  throw new MoatError("INVALID_ARGUMENT", `there is no transport ${transport}:// (${text})`, {
    hint: FORMS,
  });
}

function shm(name: string, text: string): ShmAddress {
  const fine = name.startsWith("/")
    ? !name.includes("\0") && name.length > 1
    : /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name);
  if (!fine) {
    throw new MoatError("INVALID_ARGUMENT", `${describe(name)} is not a name for shm://`, {
      hint: "use 1 to 64 letters, digits, dots, dashes and underscores, or an absolute path",
    });
  }
  return { transport: "shm", name, text };
}

function hostAndPort(transport: "rdma" | "tcp", rest: string, text: string): HostAddress {
  const match = /^(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^:[\]/\s\0]*)):(\d{1,5})$/.exec(rest);
  const port = Number(match?.[3]);
  if (!match || port > 65535) {
    throw new MoatError(
      "INVALID_ARGUMENT",
      `${describe(rest)} is not host:port for ${transport}://`,
      {
        hint:
          `for example "${transport}://10.0.0.1:7471", "${transport}://[fe80::1%2]:7471", or, to ` +
          `listen at every address, "${transport}://:7471"; ports are 0 to 65535`,
      },
    );
  }
  return { transport, host: match[1] ?? match[2] ?? "", port, text };
}
