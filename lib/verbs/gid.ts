/**
 * The GID table of a port: the addresses a RoCE or InfiniBand port answers to.
 *
 * @module
 */
import { gidTableFunction } from "../../ffi/ibverbs.ts";
import { readText } from "../../ffi/libc.ts";
import { GID_TYPE, nameOf } from "../../ffi/verbs_enums.ts";
import { IBV_GID_ENTRY } from "../../ffi/verbs_layout.ts";
import { verbError } from "./errors.ts";

/** What a GID is: an InfiniBand GID, or an address of RoCE in one of its versions. */
export type GidType = "IB" | "RoCE v1" | "RoCE v2";

/** An entry of a port's GID table. */
export interface GidEntry {
  /** Its index, `sgidIndex` of {@linkcode QueuePair.rtr}. */
  readonly index: number;
  /** The 16 bytes. */
  readonly bytes: Uint8Array;
  /** The same in the form of an IPv6 address, `::ffff:10.9.0.1` for IPv4. */
  readonly gid: string;
  /** Of which kind. Both sides of a connection must use the same. */
  readonly type: GidType;
  /** The network interface it belongs to, or "". */
  readonly netdev: string;
}

const TYPES: Record<string, GidType> = { IB: "IB", ROCE_V1: "RoCE v1", ROCE_V2: "RoCE v2" };

/** True for the GID of an IPv4 address, `::ffff:a.b.c.d`. */
export function isIPv4(gid: Uint8Array): boolean {
  return gid.every((b, i) => i >= 12 || b === (i >= 10 ? 0xff : 0));
}

/** A GID as text: IPv4-mapped addresses with dots, others in eight groups without abbreviation. */
export function formatGid(gid: Uint8Array): string {
  if (isIPv4(gid)) return `::ffff:${gid.subarray(12).join(".")}`;
  const group = (i: number): string =>
    (gid[2 * i]! << 8 | gid[2 * i + 1]!).toString(16).padStart(4, "0");
  return Array.from({ length: 8 }, (_, i) => group(i)).join(":");
}

/** Reads the GID table of a port, without empty entries. */
export function readGidTable(
  context: number,
  device: string,
  port: number,
  length: number,
  linkLayer: string,
): GidEntry[] {
  const attributes = `/sys/class/infiniband/${device}/ports/${port}`;
  const netdev = (index: number): string =>
    readText(`${attributes}/gid_attrs/ndevs/${index}`).trim();
  const query = gidTableFunction();
  if (!query) return fromSysfs(attributes, length, linkLayer, netdev);
  // The table is that of all ports. The kernel's interface counts its bytes in 16 bits.
  const most = Math.floor(0xffff / IBV_GID_ENTRY.size);
  const entries = new Uint8Array(most * IBV_GID_ENTRY.size);
  const count = query(context, entries, most, 0, IBV_GID_ENTRY.size);
  if (count < 0) throw verbError("ibv_query_gid_table", -count, { device });
  const view = new DataView(entries.buffer), found: GidEntry[] = [];
  for (let i = 0; i < count; i++) {
    const at = i * IBV_GID_ENTRY.size;
    if (view.getUint32(at + IBV_GID_ENTRY.portNum, true) !== port) continue;
    const index = view.getUint32(at + IBV_GID_ENTRY.gidIndex, true);
    const bytes = entries.slice(at, at + 16);
    const type = nameOf(GID_TYPE, view.getUint32(at + IBV_GID_ENTRY.gidType, true));
    found.push({
      index,
      bytes,
      gid: formatGid(bytes),
      type: TYPES[type] ?? "IB",
      netdev: netdev(index),
    });
  }
  return found.sort((a, b) => a.index - b.index);
}

function fromSysfs(
  attributes: string,
  length: number,
  linkLayer: string,
  netdev: (index: number) => string,
): GidEntry[] {
  const found: GidEntry[] = [];
  for (let index = 0; index < length; index++) {
    const hex = readText(`${attributes}/gids/${index}`).replaceAll(/[^0-9a-f]/g, "");
    if (hex.length !== 32) continue;
    const bytes = Uint8Array.from(
      { length: 16 },
      (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16),
    );
    if (bytes.every((b) => b === 0)) continue;
    const type = readText(`${attributes}/gid_attrs/types/${index}`).trim();
    found.push({
      index,
      bytes,
      gid: formatGid(bytes),
      type: type === "RoCE v2" ? "RoCE v2" : linkLayer === "ETHERNET" ? "RoCE v1" : "IB",
      netdev: netdev(index),
    });
  }
  return found;
}
