/**
 * The attributes of queue pairs.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { MIG_STATE, MTU, nameOf, QP_STATE, QP_TYPE } from "../../ffi/verbs_enums.ts";
import { IBV_AH_ATTR, IBV_QP_ATTR, IBV_QP_INIT_ATTR } from "../../ffi/verbs_layout.ts";
import { mtuBytes } from "./attributes.ts";
import type { CompletionQueue } from "./completion_queue.ts";
import type { GidEntry } from "./gid.ts";
import { type AccessFlags, accessFlags } from "./memory_region.ts";
import { write64 } from "./native.ts";

/** What a queue pair is made with: ibv_create_qp(3). */
export interface QueuePairOptions {
  /** Where requests of the send queue complete. */
  sendCq: CompletionQueue;
  /** Where receives complete; the same by default. */
  recvCq?: CompletionQueue;
  /** `RC`, the default (reliable connection), or `UC` (unreliable connection). */
  type?: "RC" | "UC";
  /** Requests the send queue holds; 128 by default. */
  maxSendWr?: number;
  /** Receives the receive queue holds; 128 by default. */
  maxRecvWr?: number;
  /** Segments of a send; 4 by default. */
  maxSendSge?: number;
  /** Segments of a receive; 4 by default. */
  maxRecvSge?: number;
  /** Bytes that can be sent inline; 64 by default. */
  maxInlineData?: number;
  /** Every send completes with an entry in the queue, signalled or not; false by default. */
  signalAll?: boolean;
}

/** The limits a queue pair really has: at least what was asked for. */
export interface QueuePairCapacity {
  /** Requests the send queue holds. */
  readonly maxSendWr: number;
  /** Receives the receive queue holds. */
  readonly maxRecvWr: number;
  /** Segments of a send. */
  readonly maxSendSge: number;
  /** Segments of a receive. */
  readonly maxRecvSge: number;
  /** Bytes that can be sent inline. */
  readonly maxInlineData: number;
}

/** Attributes of the transition to INIT. */
export interface InitAttributes {
  /** The port; 1 by default. */
  port?: number;
  /** What the peer may do; nothing but send by default. */
  access?: AccessFlags;
  /** The partition's index; 0 by default. */
  pkeyIndex?: number;
}

/** Attributes of the transition to RTR, ready to receive. */
export interface RtrAttributes {
  /** The peer's queue pair. */
  destQpNum: number;
  /** The number of the peer's first packet, its `sqPsn`; 0 by default. */
  rqPsn?: number;
  /** Bytes: 256, 512, 1024 (default), 2048 or 4096; no more than the ports' active MTU. */
  pathMtu?: 256 | 512 | 1024 | 2048 | 4096;
  /** RDMA reads and atomics of the peer to be served at once; 1 by default. RC only. */
  maxDestRdAtomic?: number;
  /** How long the peer is to wait when no receive is posted, as a number of the specification: 12 is 0.64 ms. RC only. */
  minRnrTimer?: number;
  /** The peer's GID, 16 bytes or an entry of its table. Needed on Ethernet. */
  remoteGid?: Uint8Array | GidEntry;
  /** The index of the own GID, which must be of the same type as the peer's; 0 by default. */
  sgidIndex?: number;
  /** The peer's LID, on InfiniBand; 0 by default. */
  lid?: number;
  /** Service level; 0 by default. */
  sl?: number;
  /** The port; 1 by default. */
  port?: number;
  /** Hops a packet may take; 64 by default. */
  hopLimit?: number;
  /** The traffic class (DSCP and ECN); 0 by default. */
  trafficClass?: number;
  /** The flow label; 0 by default. */
  flowLabel?: number;
}

/** Attributes of the transition to RTS, ready to send. */
export interface RtsAttributes {
  /** The number of the first packet; 0 by default. */
  sqPsn?: number;
  /** How long to wait for an acknowledgement: 4.096 us * 2^n; 14 (67 ms) by default. */
  timeout?: number;
  /** How often to try again, 0 to 7; 7 by default. */
  retryCount?: number;
  /** How often to try again when the peer has no receive posted, 0 to 6; 7, the default, is for ever. */
  rnrRetry?: number;
  /** RDMA reads and atomics under way at once; 1 by default. */
  maxRdAtomic?: number;
}

/** Where packets go: `struct ibv_ah_attr`. */
export interface PathAttributes {
  /** The peer's GID. */
  readonly remoteGid: Uint8Array;
  /** Whether the GID is used, as always on Ethernet. */
  readonly isGlobal: boolean;
  /** The index of the own GID. */
  readonly sgidIndex: number;
  /** Hops. */
  readonly hopLimit: number;
  /** The traffic class. */
  readonly trafficClass: number;
  /** The flow label. */
  readonly flowLabel: number;
  /** The peer's LID. */
  readonly lid: number;
  /** Service level. */
  readonly sl: number;
  /** Low bits of the own LID. */
  readonly srcPathBits: number;
  /** Limit of the rate, as `enum ibv_rate`. */
  readonly staticRate: number;
  /** The port. */
  readonly port: number;
}

/** What ibv_query_qp(3) tells. */
export interface QueuePairAttributes extends QueuePairCapacity {
  /** `RESET`, `INIT`, `RTR`, `RTS`, `SQD`, `SQE` or `ERR`. */
  readonly state: string;
  /** The state the device assumed. */
  readonly curState: string;
  /** Bytes. */
  readonly pathMtu: number;
  /** `MIGRATED`, `REARM` or `ARMED`. */
  readonly pathMigState: string;
  /** The Q_Key. */
  readonly qkey: number;
  /** The packet number expected next. */
  readonly rqPsn: number;
  /** The packet number sent next. */
  readonly sqPsn: number;
  /** The peer's queue pair. */
  readonly destQpNum: number;
  /** What the peer may do. */
  readonly access: AccessFlags;
  /** The path. */
  readonly path: PathAttributes;
  /** The alternative path. */
  readonly altPath: PathAttributes;
  /** The partition's index. */
  readonly pkeyIndex: number;
  /** The alternative partition's index. */
  readonly altPkeyIndex: number;
  /** Whether an event tells when the send queue is drained. */
  readonly enSqdAsyncNotify: boolean;
  /** Whether the send queue is draining. */
  readonly sqDraining: boolean;
  /** RDMA reads and atomics under way at once. */
  readonly maxRdAtomic: number;
  /** RDMA reads and atomics served at once. */
  readonly maxDestRdAtomic: number;
  /** See {@linkcode RtrAttributes.minRnrTimer}. */
  readonly minRnrTimer: number;
  /** The port. */
  readonly port: number;
  /** See {@linkcode RtsAttributes.timeout}. */
  readonly timeout: number;
  /** See {@linkcode RtsAttributes.retryCount}. */
  readonly retryCount: number;
  /** See {@linkcode RtsAttributes.rnrRetry}. */
  readonly rnrRetry: number;
  /** The alternative port. */
  readonly altPort: number;
  /** The alternative timeout. */
  readonly altTimeout: number;
  /** Limit of the rate in kbit/s. */
  readonly rateLimit: number;
  /** Whether every send completes with an entry. */
  readonly signalAll: boolean;
}

/**
 * The `enum ibv_mtu` of a number of bytes.
 *
 * @throws {MoatError} `INVALID_ARGUMENT`
 */
export function mtuNumber(bytes: number): number {
  const number = (MTU as Record<number, number>)[bytes];
  if (number !== undefined) return number;
  throw new MoatError("INVALID_ARGUMENT", `pathMtu of ${bytes} bytes`, {
    hint: "pass 256, 512, 1024, 2048 or 4096",
  });
}

/** Writes a `struct ibv_qp_init_attr`. */
export function writeInitAttributes(options: QueuePairOptions): Uint8Array {
  const { sendCq, recvCq = sendCq, type = "RC" } = options, at = IBV_QP_INIT_ATTR;
  sendCq.assertOpen();
  recvCq.assertOpen();
  const bytes = new Uint8Array(at.size), view = new DataView(bytes.buffer);
  const count = (name: keyof QueuePairCapacity, standard: number): void => {
    const value = options[name] ?? standard;
    if (!Number.isInteger(value) || value < 0 || value >= 2 ** 31) {
      throw new MoatError("INVALID_ARGUMENT", `createQp with ${name} ${value}`, {
        hint: "pass a whole number within the limits of context.queryDevice()",
      });
    }
    view.setUint32(at[name], value, true);
  };
  write64(view, at.sendCq, sendCq.address);
  write64(view, at.recvCq, recvCq.address);
  count("maxSendWr", 128);
  count("maxRecvWr", 128);
  count("maxSendSge", 4);
  count("maxRecvSge", 4);
  count("maxInlineData", 64);
  view.setInt32(at.qpType, QP_TYPE[type], true);
  view.setInt32(at.sqSigAll, options.signalAll ? 1 : 0, true);
  return bytes;
}

/** Reads the limits out of a `struct ibv_qp_init_attr`. */
export function readCapacity(bytes: Uint8Array): QueuePairCapacity {
  const view = new DataView(bytes.buffer, bytes.byteOffset), at = IBV_QP_INIT_ATTR;
  return {
    maxSendWr: view.getUint32(at.maxSendWr, true),
    maxRecvWr: view.getUint32(at.maxRecvWr, true),
    maxSendSge: view.getUint32(at.maxSendSge, true),
    maxRecvSge: view.getUint32(at.maxRecvSge, true),
    maxInlineData: view.getUint32(at.maxInlineData, true),
  };
}

/** Writes a `struct ibv_ah_attr` for a path. */
export function writePath(view: DataView, offset: number, to: RtrAttributes, port: number): void {
  const at = IBV_AH_ATTR, { remoteGid } = to;
  if (remoteGid !== undefined) {
    const gid = remoteGid instanceof Uint8Array ? remoteGid : remoteGid.bytes;
    if (gid.length !== 16) {
      throw new MoatError("INVALID_ARGUMENT", `remoteGid of ${gid.length} bytes`, {
        hint: "a GID has 16",
      });
    }
    gid.forEach((b, i) => view.setUint8(offset + at.dgid + i, b));
    view.setUint8(offset + at.isGlobal, 1);
  }
  view.setUint32(offset + at.flowLabel, to.flowLabel ?? 0, true);
  view.setUint8(offset + at.sgidIndex, to.sgidIndex ?? 0);
  view.setUint8(offset + at.hopLimit, to.hopLimit ?? 64);
  view.setUint8(offset + at.trafficClass, to.trafficClass ?? 0);
  view.setUint16(offset + at.dlid, to.lid ?? 0, true);
  view.setUint8(offset + at.sl, to.sl ?? 0);
  view.setUint8(offset + at.portNum, port);
}

function readPath(view: DataView, offset: number): PathAttributes {
  const at = IBV_AH_ATTR, u8 = (field: number): number => view.getUint8(offset + field);
  return {
    remoteGid: Uint8Array.from({ length: 16 }, (_, i) => u8(at.dgid + i)),
    isGlobal: u8(at.isGlobal) !== 0,
    sgidIndex: u8(at.sgidIndex),
    hopLimit: u8(at.hopLimit),
    trafficClass: u8(at.trafficClass),
    flowLabel: view.getUint32(offset + at.flowLabel, true),
    lid: view.getUint16(offset + at.dlid, true),
    sl: u8(at.sl),
    srcPathBits: u8(at.srcPathBits),
    staticRate: u8(at.staticRate),
    port: u8(at.portNum),
  };
}

/** Reads what ibv_query_qp filled. */
export function readAttributes(attr: Uint8Array, init: Uint8Array): QueuePairAttributes {
  const view = new DataView(attr.buffer, attr.byteOffset), at = IBV_QP_ATTR;
  const u8 = (offset: number): number => view.getUint8(offset);
  const u16 = (offset: number): number => view.getUint16(offset, true);
  const u32 = (offset: number): number => view.getUint32(offset, true);
  return {
    state: nameOf(QP_STATE, u32(at.qpState)),
    curState: nameOf(QP_STATE, u32(at.curQpState)),
    pathMtu: mtuBytes(u32(at.pathMtu)),
    pathMigState: nameOf(MIG_STATE, u32(at.pathMigState)),
    qkey: u32(at.qkey),
    rqPsn: u32(at.rqPsn),
    sqPsn: u32(at.sqPsn),
    destQpNum: u32(at.destQpNum),
    access: accessFlags(u32(at.qpAccessFlags)),
    ...readCapacity(init),
    path: readPath(view, at.ahAttr),
    altPath: readPath(view, at.altAhAttr),
    pkeyIndex: u16(at.pkeyIndex),
    altPkeyIndex: u16(at.altPkeyIndex),
    enSqdAsyncNotify: u8(at.enSqdAsyncNotify) !== 0,
    sqDraining: u8(at.sqDraining) !== 0,
    maxRdAtomic: u8(at.maxRdAtomic),
    maxDestRdAtomic: u8(at.maxDestRdAtomic),
    minRnrTimer: u8(at.minRnrTimer),
    port: u8(at.portNum),
    timeout: u8(at.timeout),
    retryCount: u8(at.retryCnt),
    rnrRetry: u8(at.rnrRetry),
    altPort: u8(at.altPortNum),
    altTimeout: u8(at.altTimeout),
    rateLimit: u32(at.rateLimit),
    signalAll: new DataView(init.buffer).getInt32(IBV_QP_INIT_ATTR.sqSigAll, true) !== 0,
  };
}
