/**
 * IP addresses and ports, as `struct sockaddr_in` and `struct sockaddr_in6`.
 *
 * @module
 */
import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import { C } from "../../ffi/libc.ts";
import { MoatError } from "../../ffi/errors.ts";
import { SOCKADDR_IN, SOCKADDR_IN6 } from "../../ffi/verbs_layout.ts";

/** An IP address and a port. */
export interface SocketAddress {
  /** The numeric address. */
  readonly host: string;
  /** The port. */
  readonly port: number;
}

/** Finds the numeric address of a host. */
export async function numericHost(host: string): Promise<string> {
  if (isIP(host.replace(/%.*$/, "")) !== 0) return host;
  try {
    return (await lookup(host)).address;
  } catch (error) {
    if ((error as { code?: unknown }).code === "EPERM") { // Deno's permission, which only names need
      if (host === "localhost") return "127.0.0.1";
      throw new MoatError(
        "ADDRESS_ERROR",
        `the host ${JSON.stringify(host)} may not be looked up`,
        {
          cause: error,
          hint: "run it with --allow-net, or pass a numeric address",
        },
      );
    }
    throw new MoatError("ADDRESS_ERROR", `the host ${JSON.stringify(host)} is not known`, {
      cause: error,
      hint: "pass a numeric address, or a name that /etc/hosts or DNS knows",
    });
  }
}

/**
 * Writes a `struct sockaddr`.
 *
 * @param host a numeric address; "" for any
 * @throws {MoatError} `INVALID_ARGUMENT`
 */
export function writeAddress(host: string, port: number): Uint8Array {
  if (!Number.isInteger(port) || port < 0 || port > 65535) {
    throw new MoatError("INVALID_ARGUMENT", `port ${port}`, { hint: "pass a number below 65536" });
  }
  const [address = "", zone] = host.split("%"), family = host === "" ? 4 : isIP(address);
  const at = family === 6 ? SOCKADDR_IN6 : SOCKADDR_IN;
  const bytes = new Uint8Array(at.size), view = new DataView(bytes.buffer);
  view.setUint16(at.family, family === 6 ? C.AF_INET6 : C.AF_INET, true);
  view.setUint16(at.port, port); // network order
  if (family === 4) {
    if (host !== "") address.split(".").forEach((b, i) => bytes[at.addr + i] = Number(b));
  } else if (family === 6) {
    groupsOf(address).forEach((group, i) => view.setUint16(at.addr + 2 * i, group));
    view.setUint32(SOCKADDR_IN6.scopeId, Number(zone) || 0, true);
  } else {
    throw new MoatError("INVALID_ARGUMENT", `the address ${JSON.stringify(host)}`, {
      hint: "pass a numeric IPv4 or IPv6 address",
    });
  }
  return bytes;
}

function groupsOf(address: string): number[] {
  const dotted = /(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(address);
  if (dotted) {
    const [a, b, c, d] = dotted.slice(1).map(Number) as [number, number, number, number];
    const last = `${(a << 8 | b).toString(16)}:${(c << 8 | d).toString(16)}`;
    return groupsOf(address.slice(0, dotted.index) + last);
  }
  const [head = "", tail] = address.split("::");
  const parse = (text: string): number[] =>
    text === "" ? [] : text.split(":").map((group) => parseInt(group, 16));
  const first = parse(head), last = tail === undefined ? [] : parse(tail);
  return [...first, ...new Array<number>(8 - first.length - last.length).fill(0), ...last];
}

/** Reads a `struct sockaddr`, with the room that any needs; `undefined` if it is of no IP family. */
export function readAddress(view: DataView): SocketAddress | undefined {
  const family = view.getUint16(SOCKADDR_IN.family, true), port = view.getUint16(SOCKADDR_IN.port);
  if (family === C.AF_INET) {
    const part = (i: number): number => view.getUint8(SOCKADDR_IN.addr + i);
    return { host: [part(0), part(1), part(2), part(3)].join("."), port };
  }
  if (family !== C.AF_INET6) return undefined;
  const groups = Array.from(
    { length: 8 },
    (_, i) => view.getUint16(SOCKADDR_IN6.addr + 2 * i).toString(16),
  );
  const scope = view.getUint32(SOCKADDR_IN6.scopeId, true);
  const host = groups.join(":").replace(/(?:^|:)0(?::0)+(?:$|:)/, "::");
  return { host: scope === 0 ? host : `${host}%${scope}`, port };
}

/** `10.0.0.1:7471`, `[fe80::1]:7471` */
export function formatAddress({ host, port }: SocketAddress): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}
