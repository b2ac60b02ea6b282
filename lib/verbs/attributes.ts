/**
 * What a device and its ports say of themselves.
 *
 * @module
 */
import { ATOMIC_CAP, LINK_LAYER, MTU, nameOf, PORT_STATE } from "../../ffi/verbs_enums.ts";
import { IBV_DEVICE_ATTR, IBV_PORT_ATTR } from "../../ffi/verbs_layout.ts";

/** `struct ibv_device_attr`: see ibv_query_device(3). */
export interface DeviceAttributes {
  /** Firmware version. */
  readonly fwVer: string;
  /** `5054:00ff:fe12:3456` */
  readonly nodeGuid: string;
  /** The GUID of the system the device is part of. */
  readonly sysImageGuid: string;
  /** Largest memory region in bytes; 2^64 - 1 for any. */
  readonly maxMrSize: bigint;
  /** Page sizes the device takes, one bit each. */
  readonly pageSizeCap: bigint;
  /** PCI vendor. */
  readonly vendorId: number;
  /** Part number of the vendor. */
  readonly vendorPartId: number;
  /** Version of the hardware. */
  readonly hwVer: number;
  /** Queue pairs. */
  readonly maxQp: number;
  /** Work requests of a work queue. */
  readonly maxQpWr: number;
  /** `IBV_DEVICE_…` bits. */
  readonly deviceCapFlags: number;
  /** Segments of a work request. */
  readonly maxSge: number;
  /** Segments of an RDMA read. */
  readonly maxSgeRd: number;
  /** Completion queues. */
  readonly maxCq: number;
  /** Entries of a completion queue. */
  readonly maxCqe: number;
  /** Memory regions. */
  readonly maxMr: number;
  /** Protection domains. */
  readonly maxPd: number;
  /** RDMA reads and atomics a queue pair takes at once as their target. */
  readonly maxQpRdAtom: number;
  /** The same for an end-to-end context. */
  readonly maxEeRdAtom: number;
  /** RDMA reads and atomics the device takes at once as their target. */
  readonly maxResRdAtom: number;
  /** RDMA reads and atomics a queue pair can have under way. */
  readonly maxQpInitRdAtom: number;
  /** The same for an end-to-end context. */
  readonly maxEeInitRdAtom: number;
  /** `NONE`, `HCA` (atomic among this device's) or `GLOB` (also with the processor's). */
  readonly atomicCap: string;
  /** End-to-end contexts. */
  readonly maxEe: number;
  /** Reliable datagram domains. */
  readonly maxRdd: number;
  /** Memory windows. */
  readonly maxMw: number;
  /** Raw IPv6 queue pairs. */
  readonly maxRawIpv6Qp: number;
  /** Raw Ethertype queue pairs. */
  readonly maxRawEthyQp: number;
  /** Multicast groups. */
  readonly maxMcastGrp: number;
  /** Queue pairs of a multicast group. */
  readonly maxMcastQpAttach: number;
  /** Queue pairs of all multicast groups. */
  readonly maxTotalMcastQpAttach: number;
  /** Address handles. */
  readonly maxAh: number;
  /** Fast memory regions. */
  readonly maxFmr: number;
  /** Remaps of a fast memory region. */
  readonly maxMapPerFmr: number;
  /** Shared receive queues. */
  readonly maxSrq: number;
  /** Work requests of a shared receive queue. */
  readonly maxSrqWr: number;
  /** Segments of a shared receive queue's requests. */
  readonly maxSrqSge: number;
  /** Partitions. */
  readonly maxPkeys: number;
  /** Delay of acknowledgements by the device: 4.096 us * 2^n. */
  readonly localCaAckDelay: number;
  /** Ports. */
  readonly physPortCnt: number;
}

/** `struct ibv_port_attr`: see ibv_query_port(3). */
export interface PortAttributes {
  /** `DOWN`, `INIT`, `ARMED`, `ACTIVE`, … */
  readonly state: string;
  /** Bytes. */
  readonly maxMtu: number;
  /** Bytes. */
  readonly activeMtu: number;
  /** Entries of the GID table. */
  readonly gidTblLen: number;
  /** `IBV_PORT_…` bits. */
  readonly portCapFlags: number;
  /** More of them. */
  readonly portCapFlags2: number;
  /** Largest message in bytes. */
  readonly maxMsgSz: number;
  /** Packets with a wrong P_Key. */
  readonly badPkeyCntr: number;
  /** Packets with a wrong Q_Key. */
  readonly qkeyViolCntr: number;
  /** Entries of the P_Key table. */
  readonly pkeyTblLen: number;
  /** Local identifier; 0 on Ethernet. */
  readonly lid: number;
  /** The subnet manager's. */
  readonly smLid: number;
  /** LID mask. */
  readonly lmc: number;
  /** Virtual lanes, as the number the specification gives them. */
  readonly maxVlNum: number;
  /** Service level of the subnet manager. */
  readonly smSl: number;
  /** Propagation delay of the subnet. */
  readonly subnetTimeout: number;
  /** How the port was initialised. */
  readonly initTypeReply: number;
  /** Width of the link, as the number the specification gives it. */
  readonly activeWidth: number;
  /** Speed of the link, as the number the specification gives it. */
  readonly activeSpeed: number;
  /** Physical state, as the number the specification gives it. */
  readonly physState: number;
  /** `INFINIBAND`, `ETHERNET` or `UNSPECIFIED`. */
  readonly linkLayer: string;
  /** `IBV_QPF_…` bits. */
  readonly flags: number;
}

/** A GUID as ibv_devinfo(1) prints it. */
export function formatGuid(bytes: Uint8Array): string {
  const hex = Array.from(bytes, (b) => b.toString(16).padStart(2, "0"));
  return [0, 2, 4, 6].map((i) => hex[i]! + hex[i + 1]!).join(":");
}

/** The bytes of an `enum ibv_mtu`. */
export function mtuBytes(mtu: number): number {
  return mtu in MTU_BYTES ? MTU_BYTES[mtu]! : 0;
}
const MTU_BYTES: Record<number, number> = Object.fromEntries(
  Object.entries(MTU).map(([bytes, number]) => [number, Number(bytes)]),
);

function unsigned64(view: DataView, offset: number): bigint {
  return view.getBigUint64(offset, true);
}

/** Reads a `struct ibv_device_attr`. */
export function readDeviceAttributes(bytes: Uint8Array): DeviceAttributes {
  const view = new DataView(bytes.buffer, bytes.byteOffset), at = IBV_DEVICE_ATTR;
  const u32 = (offset: number): number => view.getUint32(offset, true);
  const i32 = (offset: number): number => view.getInt32(offset, true);
  const end = bytes.indexOf(0);
  return {
    fwVer: new TextDecoder().decode(bytes.subarray(0, end < 0 || end > 64 ? 64 : end)),
    nodeGuid: formatGuid(bytes.subarray(at.nodeGuid, at.nodeGuid + 8)),
    sysImageGuid: formatGuid(bytes.subarray(at.sysImageGuid, at.sysImageGuid + 8)),
    maxMrSize: unsigned64(view, at.maxMrSize),
    pageSizeCap: unsigned64(view, at.pageSizeCap),
    vendorId: u32(at.vendorId),
    vendorPartId: u32(at.vendorPartId),
    hwVer: u32(at.hwVer),
    maxQp: i32(at.maxQp),
    maxQpWr: i32(at.maxQpWr),
    deviceCapFlags: u32(at.deviceCapFlags),
    maxSge: i32(at.maxSge),
    maxSgeRd: i32(at.maxSgeRd),
    maxCq: i32(at.maxCq),
    maxCqe: i32(at.maxCqe),
    maxMr: i32(at.maxMr),
    maxPd: i32(at.maxPd),
    maxQpRdAtom: i32(at.maxQpRdAtom),
    maxEeRdAtom: i32(at.maxEeRdAtom),
    maxResRdAtom: i32(at.maxResRdAtom),
    maxQpInitRdAtom: i32(at.maxQpInitRdAtom),
    maxEeInitRdAtom: i32(at.maxEeInitRdAtom),
    atomicCap: nameOf(ATOMIC_CAP, i32(at.atomicCap)),
    maxEe: i32(at.maxEe),
    maxRdd: i32(at.maxRdd),
    maxMw: i32(at.maxMw),
    maxRawIpv6Qp: i32(at.maxRawIpv6Qp),
    maxRawEthyQp: i32(at.maxRawEthyQp),
    maxMcastGrp: i32(at.maxMcastGrp),
    maxMcastQpAttach: i32(at.maxMcastQpAttach),
    maxTotalMcastQpAttach: i32(at.maxTotalMcastQpAttach),
    maxAh: i32(at.maxAh),
    maxFmr: i32(at.maxFmr),
    maxMapPerFmr: i32(at.maxMapPerFmr),
    maxSrq: i32(at.maxSrq),
    maxSrqWr: i32(at.maxSrqWr),
    maxSrqSge: i32(at.maxSrqSge),
    maxPkeys: view.getUint16(at.maxPkeys, true),
    localCaAckDelay: view.getUint8(at.localCaAckDelay),
    physPortCnt: view.getUint8(at.physPortCnt),
  };
}

/** Reads a `struct ibv_port_attr`. */
export function readPortAttributes(bytes: Uint8Array): PortAttributes {
  const view = new DataView(bytes.buffer, bytes.byteOffset), at = IBV_PORT_ATTR;
  const u8 = (offset: number): number => view.getUint8(offset);
  const u16 = (offset: number): number => view.getUint16(offset, true);
  const u32 = (offset: number): number => view.getUint32(offset, true);
  return {
    state: nameOf(PORT_STATE, u32(at.state)),
    maxMtu: mtuBytes(u32(at.maxMtu)),
    activeMtu: mtuBytes(u32(at.activeMtu)),
    gidTblLen: view.getInt32(at.gidTblLen, true),
    portCapFlags: u32(at.portCapFlags),
    portCapFlags2: u16(at.portCapFlags2),
    maxMsgSz: u32(at.maxMsgSz),
    badPkeyCntr: u32(at.badPkeyCntr),
    qkeyViolCntr: u32(at.qkeyViolCntr),
    pkeyTblLen: u16(at.pkeyTblLen),
    lid: u16(at.lid),
    smLid: u16(at.smLid),
    lmc: u8(at.lmc),
    maxVlNum: u8(at.maxVlNum),
    smSl: u8(at.smSl),
    subnetTimeout: u8(at.subnetTimeout),
    initTypeReply: u8(at.initTypeReply),
    activeWidth: u8(at.activeWidth),
    activeSpeed: u8(at.activeSpeed),
    physState: u8(at.physState),
    linkLayer: nameOf(LINK_LAYER, u8(at.linkLayer)),
    flags: u8(at.flags),
  };
}
