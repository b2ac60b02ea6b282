/**
 * What a device says of its newer abilities.
 *
 * @module
 */
import { callQuery } from "../../ffi/function_pointer.ts";
import { architecture } from "../../ffi/runtime.ts";
import { ABI_COMPAT, IBV_DEVICE_ATTR_EX, VERBS_CONTEXT } from "../../ffi/verbs_layout.ts";
import { read64, structAt } from "./native.ts";

/** `struct ibv_device_attr_ex` without its first part: see ibv_query_device_ex(3). */
export interface ExtendedAttributes {
  /** On-demand paging: `IBV_ODP_SUPPORT…` bits. */
  readonly odpGeneralCaps: bigint;
  /** On-demand paging by transport: `IBV_ODP_SUPPORT_…` bits. */
  readonly odpCaps: Readonly<Record<"rc" | "uc" | "ud" | "xrc", number>>;
  /** Bits of completion timestamps; 0 without them. */
  readonly completionTimestampMask: bigint;
  /** The clock of timestamps in kHz; 0 without it. */
  readonly hcaCoreClock: bigint;
  /** All device capability flags, 64 bits. */
  readonly deviceCapFlagsEx: bigint;
  /** Segmentation: largest message in bytes, and the types of queue pairs. */
  readonly tso: { readonly maxTso: number; readonly supportedQpts: number };
  /** Receive side scaling. */
  readonly rss: {
    readonly supportedQpts: number;
    readonly maxRwqIndirectionTables: number;
    readonly maxRwqIndirectionTableSize: number;
    readonly rxHashFieldsMask: bigint;
    readonly rxHashFunction: number;
  };
  /** Work queues of the type for receives. */
  readonly maxWqTypeRq: number;
  /** Packet pacing, rates in kbit/s. */
  readonly packetPacing: {
    readonly qpRateLimitMin: number;
    readonly qpRateLimitMax: number;
    readonly supportedQpts: number;
  };
  /** `IBV_RAW_PACKET_CAP_…` bits. */
  readonly rawPacketCaps: number;
  /** Tag matching. */
  readonly tagMatching: {
    readonly maxRndvHdrSize: number;
    readonly maxNumTags: number;
    readonly flags: number;
    readonly maxOps: number;
    readonly maxSge: number;
  };
  /** Moderation of completion queues, the period in microseconds. */
  readonly cqModeration: { readonly maxCqCount: number; readonly maxCqPeriod: number };
  /** Bytes of device memory. */
  readonly maxDmSize: bigint;
  /** PCI atomics, `IBV_PCI_ATOMIC_OPERATION_…` bits. */
  readonly pciAtomicCaps: {
    readonly fetchAdd: number;
    readonly swap: number;
    readonly compareSwap: number;
  };
}

/**
 * Calls ibv_query_device_ex, an inline function that calls through a table in front of the context.
 *
 * @returns 0 or an errno
 */
export function queryExtended(context: number, bytes: Uint8Array): number {
  const abiCompat = ABI_COMPAT[architecture()], { sz, queryDeviceEx } = VERBS_CONTEXT;
  const EOPNOTSUPP = 95;
  if (structAt(context + abiCompat, 8).getBigUint64(0, true) !== 2n ** 64n - 1n) return EOPNOTSUPP;
  const size = read64(structAt(context - sz, 8), 0);
  if (size < queryDeviceEx + abiCompat + 8) return EOPNOTSUPP;
  const op = read64(structAt(context - queryDeviceEx, 8), 0);
  return op === 0 ? EOPNOTSUPP : Math.abs(callQuery(op, context, bytes));
}

/** Reads a `struct ibv_device_attr_ex`. */
export function readExtended(bytes: Uint8Array): ExtendedAttributes {
  const view = new DataView(bytes.buffer, bytes.byteOffset), at = IBV_DEVICE_ATTR_EX;
  const u16 = (offset: number): number => view.getUint16(offset, true);
  const u32 = (offset: number): number => view.getUint32(offset, true);
  const u64 = (offset: number): bigint => view.getBigUint64(offset, true);
  return {
    odpGeneralCaps: u64(at.odpGeneralCaps),
    odpCaps: {
      rc: u32(at.rcOdpCaps),
      uc: u32(at.ucOdpCaps),
      ud: u32(at.udOdpCaps),
      xrc: u32(at.xrcOdpCaps),
    },
    completionTimestampMask: u64(at.completionTimestampMask),
    hcaCoreClock: u64(at.hcaCoreClock),
    deviceCapFlagsEx: u64(at.deviceCapFlagsEx),
    tso: { maxTso: u32(at.tsoMaxTso), supportedQpts: u32(at.tsoSupportedQpts) },
    rss: {
      supportedQpts: u32(at.rssSupportedQpts),
      maxRwqIndirectionTables: u32(at.rssMaxRwqIndirectionTables),
      maxRwqIndirectionTableSize: u32(at.rssMaxRwqIndirectionTableSize),
      rxHashFieldsMask: u64(at.rssRxHashFieldsMask),
      rxHashFunction: view.getUint8(at.rssRxHashFunction),
    },
    maxWqTypeRq: u32(at.maxWqTypeRq),
    packetPacing: {
      qpRateLimitMin: u32(at.pacingQpRateLimitMin),
      qpRateLimitMax: u32(at.pacingQpRateLimitMax),
      supportedQpts: u32(at.pacingSupportedQpts),
    },
    rawPacketCaps: u32(at.rawPacketCaps),
    tagMatching: {
      maxRndvHdrSize: u32(at.tmMaxRndvHdrSize),
      maxNumTags: u32(at.tmMaxNumTags),
      flags: u32(at.tmFlags),
      maxOps: u32(at.tmMaxOps),
      maxSge: u32(at.tmMaxSge),
    },
    cqModeration: { maxCqCount: u16(at.maxCqCount), maxCqPeriod: u16(at.maxCqPeriod) },
    maxDmSize: u64(at.maxDmSize),
    pciAtomicCaps: {
      fetchAdd: u16(at.pciAtomicFetchAdd),
      swap: u16(at.pciAtomicSwap),
      compareSwap: u16(at.pciAtomicCompareSwap),
    },
  };
}
