/**
 * Queue pairs.
 *
 * @module
 */
import type { MoatError } from "../../ffi/errors.ts";
import { type Helper, helper } from "../../ffi/helper.ts";
import { ibverbs } from "../../ffi/ibverbs.ts";
import { errno } from "../../ffi/libc.ts";
import { QP_ATTR_MASK as MASK, QP_STATE, WC_STATUS } from "../../ffi/verbs_enums.ts";
import { IBV_QP, IBV_QP_ATTR, IBV_QP_INIT_ATTR } from "../../ffi/verbs_layout.ts";
import type { CompletionQueue } from "./completion_queue.ts";
import type { Context } from "./context.ts";
import { completionError, verbError } from "./errors.ts";
import { accessBits, type RemoteAddress, type Segment } from "./memory_region.ts";
import { structAt } from "./native.ts";
import { Posted } from "./posted.ts";
import { PreparedSends } from "./prepared_sends.ts";
import type { ProtectionDomain } from "./protection_domain.ts";
import {
  type InitAttributes,
  mtuNumber,
  type QueuePairAttributes,
  type QueuePairCapacity,
  type QueuePairOptions,
  readAttributes,
  readCapacity,
  type RtrAttributes,
  type RtsAttributes,
  writeInitAttributes,
  writePath,
} from "./queue_pair_options.ts";
import { Resource } from "./resource.ts";
import { type RecvRequest, RequestSlab, type SendFlags, type SendRequest } from "./work_request.ts";

/** Segments of a request: one, several, or none. */
export type Segments = Segment | readonly Segment[];

/** How a queue pair came to be, and how it ends. */
export interface QueuePairOrigin {
  /** The address of the `struct ibv_qp`. */
  address: number;
  /** The limits it got. */
  capacity: QueuePairCapacity;
  /** What else it must not outlive. */
  parents: readonly Resource[];
  /** Destroys the native object. */
  destroy: () => void;
}

const ENOMEM = 12;

/**
 * A queue pair, `struct ibv_qp`: ibv_create_qp(3).
 *
 * @example Two queue pairs of this process, connected by hand
 * ```ts ignore
 * const gid = context.preferredGid(1)!;
 * for (const [qp, peer] of [[a, b], [b, a]]) {
 *   qp.init({ access: { remoteWrite: true } });
 *   qp.rtr({ destQpNum: peer.qpNum, remoteGid: gid, sgidIndex: gid.index });
 *   qp.rts();
 * }
 * b.postRecv({ id: 1, segments: inbox.segment() });
 * a.send(outbox.segment(0, 5), { id: 2 });
 * ```
 */
export class QueuePair extends Resource {
  /** The address of the `struct ibv_qp`. */
  readonly address: number;
  /** Its number, by which the peer and completions name it. */
  readonly qpNum: number;
  /** The limits it has. */
  readonly capacity: QueuePairCapacity;
  /** Where sends complete. */
  readonly sendCq: CompletionQueue;
  /** Where receives complete. */
  readonly recvCq: CompletionQueue;
  /** The protection domain. */
  readonly pd: ProtectionDomain;
  /** The other side, for errors. */
  peer: string | undefined;
  /** The first request that failed: the cause of those that were flushed after it. */
  firstError: MoatError | undefined;
  readonly #context: Context;
  readonly #helper: Helper;
  readonly #destroyNative: () => void;
  readonly #sends: RequestSlab;
  readonly #recvs: RequestSlab;
  readonly #sent: Posted;
  readonly #received: Posted;

  /** Use {@linkcode ProtectionDomain.createQp} or {@linkcode CmId.createQp}. */
  constructor(pd: ProtectionDomain, options: QueuePairOptions, origin: QueuePairOrigin) {
    const { sendCq, recvCq = sendCq } = options, { capacity } = origin;
    super([...origin.parents, pd, sendCq, recvCq]);
    this.pd = pd;
    this.sendCq = sendCq;
    this.recvCq = recvCq;
    this.address = origin.address;
    this.capacity = capacity;
    this.qpNum = structAt(origin.address + IBV_QP.qpNum, 4).getUint32(0, true);
    this.#context = pd.context;
    this.#destroyNative = origin.destroy;
    this.#helper = helper();
    this.#sends = new RequestSlab("send", Math.min(capacity.maxSendWr, 256), capacity.maxSendSge);
    this.#recvs = new RequestSlab("recv", Math.min(capacity.maxRecvWr, 256), capacity.maxRecvSge);
    this.#sent = new Posted(capacity.maxSendWr);
    this.#received = new Posted(capacity.maxRecvWr);
    sendCq.queuePairs.set(this.qpNum, this);
    recvCq.queuePairs.set(this.qpNum, this);
    this.#context.queuePairs.set(this.address, this);
  }

  /** For {@linkcode ProtectionDomain.createQp}. */
  static create(pd: ProtectionDomain, options: QueuePairOptions): QueuePair {
    pd.assertOpen();
    const init = writeInitAttributes(options);
    const address = ibverbs().ibv_create_qp(pd.address, init);
    if (address === 0) throw createError("ibv_create_qp", errno(), pd, options);
    return new QueuePair(pd, options, {
      address,
      capacity: readCapacity(init),
      parents: [],
      destroy(): void {
        const r = ibverbs().ibv_destroy_qp(address);
        if (r !== 0) throw verbError("ibv_destroy_qp", r);
      },
    });
  }

  // ---- states

  /** RESET to INIT: receives can be posted from here on. */
  init(attributes: InitAttributes = {}): void {
    const { port = 1, access = {}, pkeyIndex = 0 } = attributes;
    this.#modify("INIT", MASK.PKEY_INDEX | MASK.PORT | MASK.ACCESS_FLAGS, (view) => {
      view.setUint16(IBV_QP_ATTR.pkeyIndex, pkeyIndex, true);
      view.setUint8(IBV_QP_ATTR.portNum, port);
      view.setUint32(IBV_QP_ATTR.qpAccessFlags, accessBits(access), true);
    });
  }

  /** INIT to RTR, ready to receive: the peer is known. */
  rtr(attributes: RtrAttributes): void {
    const { destQpNum, rqPsn = 0, pathMtu = 1024, port = 1 } = attributes;
    const mask = MASK.AV | MASK.PATH_MTU | MASK.DEST_QPN | MASK.RQ_PSN | MASK.MAX_DEST_RD_ATOMIC |
      MASK.MIN_RNR_TIMER;
    this.peer ??= `QP ${destQpNum}`;
    this.#modify("RTR", mask, (view) => {
      view.setUint32(IBV_QP_ATTR.pathMtu, mtuNumber(pathMtu), true);
      view.setUint32(IBV_QP_ATTR.destQpNum, destQpNum, true);
      view.setUint32(IBV_QP_ATTR.rqPsn, rqPsn, true);
      view.setUint8(IBV_QP_ATTR.maxDestRdAtomic, attributes.maxDestRdAtomic ?? 1);
      view.setUint8(IBV_QP_ATTR.minRnrTimer, attributes.minRnrTimer ?? 12);
      writePath(view, IBV_QP_ATTR.ahAttr, attributes, port);
    }, attributes);
  }

  /** RTR to RTS, ready to send. */
  rts(attributes: RtsAttributes = {}): void {
    const mask = MASK.SQ_PSN | MASK.TIMEOUT | MASK.RETRY_CNT | MASK.RNR_RETRY |
      MASK.MAX_QP_RD_ATOMIC;
    this.#modify("RTS", mask, (view) => {
      view.setUint32(IBV_QP_ATTR.sqPsn, attributes.sqPsn ?? 0, true);
      view.setUint8(IBV_QP_ATTR.timeout, attributes.timeout ?? 14);
      view.setUint8(IBV_QP_ATTR.retryCnt, attributes.retryCount ?? 7);
      view.setUint8(IBV_QP_ATTR.rnrRetry, attributes.rnrRetry ?? 7);
      view.setUint8(IBV_QP_ATTR.maxRdAtomic, attributes.maxRdAtomic ?? 1);
    });
  }

  /** To the error state: every request under way completes, flushed. */
  error(): void {
    this.#modify("ERR", 0, () => {});
  }

  /** Back to RESET: requests under way are forgotten without completions. */
  reset(): void {
    this.#modify("RESET", 0, () => {});
    this.firstError = undefined;
    this.peer = undefined;
  }

  #modify(
    state: keyof typeof QP_STATE,
    mask: number,
    fill: (view: DataView) => void,
    to?: RtrAttributes,
  ): void {
    this.assertOpen();
    const bytes = new Uint8Array(IBV_QP_ATTR.size), view = new DataView(bytes.buffer);
    view.setInt32(IBV_QP_ATTR.qpState, QP_STATE[state], true);
    fill(view);
    const r = ibverbs().ibv_modify_qp(this.address, bytes, mask | MASK.STATE);
    if (r === 0) return;
    const number = r === -1 ? errno() : r;
    throw verbError("ibv_modify_qp", number, {
      device: this.#context.deviceName,
      qpNum: this.qpNum,
      what: `QP ${this.qpNum} to ${state}`,
      ...(to?.remoteGid === undefined ? {} : this.#gidDetails(to)),
    });
  }

  // The index is the usual mistake; unless it is in order, it is what to tell of.
  #gidDetails({ sgidIndex = 0, port = 1 }: RtrAttributes): {
    gidIndex?: number;
    gidType?: string;
  } {
    try {
      const entry = this.#context.gidTable(port).find(({ index }) => index === sgidIndex);
      return entry
        ? { gidIndex: sgidIndex, gidType: `${entry.type} ${entry.gid}` }
        : { gidIndex: sgidIndex };
    } catch {
      return { gidIndex: sgidIndex };
    }
  }

  /** All attributes: ibv_query_qp(3). */
  query(): QueuePairAttributes {
    this.assertOpen();
    const attr = new Uint8Array(IBV_QP_ATTR.size), init = new Uint8Array(IBV_QP_INIT_ATTR.size);
    const everything = Object.values(MASK).reduce((a, b) => a | b, 0) & ~MASK.RATE_LIMIT;
    const r = ibverbs().ibv_query_qp(this.address, attr, everything, init);
    if (r !== 0) {
      throw verbError("ibv_query_qp", r === -1 ? errno() : r, { qpNum: this.qpNum });
    }
    return readAttributes(attr, init);
  }

  // ---- posting

  /**
   * Posts requests to the send queue, in order: ibv_post_send(3). The memory belongs to the device until the
   * completion of the request, or of a later one on the same queue.
   *
   * @returns how many were posted: all of them
   * @throws {MoatError} `VERB_FAILED` when the queue is full or a request is wrong; those before the one
   * that is named were posted. `INVALID_ARGUMENT`
   */
  postSend(requests: SendRequest | readonly SendRequest[]): number {
    if (this.closed) this.assertOpen();
    const all = Array.isArray(requests) ? requests as readonly SendRequest[] : undefined;
    const slab = this.#sends, count = all?.length ?? 1;
    for (let from = 0; from < count; from += slab.slots) {
      const n = Math.min(count - from, slab.slots);
      for (let i = 0; i < n; i++) {
        slab.writeSend(i, all ? all[from + i]! : requests as SendRequest, i + 1 < n);
      }
      const r = this.#helper.moat_verbs_post_send(this.address, slab.address(0), slab.bad);
      const taken = r < 0 ? slab.badSlot(n) : n;
      for (let i = 0; i < taken; i++) {
        const { id = 0, opcode = "SEND" } = all ? all[from + i]! : requests as SendRequest;
        this.#sent.add(id, opcode, slab.bytes(i));
      }
      if (r < 0) this.refused("ibv_post_send", r, from + taken, count);
    }
    return count;
  }

  /**
   * Posts receives, in order: ibv_post_recv(3). The memory belongs to the device until their completion.
   *
   * @returns how many were posted: all of them
   * @throws {MoatError} as {@linkcode postSend}
   */
  postRecv(requests: RecvRequest | readonly RecvRequest[]): number {
    if (this.closed) this.assertOpen();
    const all = Array.isArray(requests) ? requests as readonly RecvRequest[] : undefined;
    const slab = this.#recvs, count = all?.length ?? 1;
    for (let from = 0; from < count; from += slab.slots) {
      const n = Math.min(count - from, slab.slots);
      for (let i = 0; i < n; i++) {
        slab.writeRecv(i, all ? all[from + i]! : requests as RecvRequest, i + 1 < n);
      }
      const r = this.#helper.moat_verbs_post_recv(this.address, slab.address(0), slab.bad);
      const taken = r < 0 ? slab.badSlot(n) : n;
      for (let i = 0; i < taken; i++) {
        const { id = 0 } = all ? all[from + i]! : requests as RecvRequest;
        this.#received.add(id, "RECV", slab.bytes(i));
      }
      if (r < 0) this.refused("ibv_post_recv", r, from + taken, count);
    }
    return count;
  }

  /** Throws the error of a request that was not taken, the one at `at` of `count`. */
  refused(verb: string, r: number, at: number, count: number): never {
    throw verbError(verb, r, {
      device: this.#context.deviceName,
      qpNum: this.qpNum,
      what: `request ${at + 1} of ${count} on QP ${this.qpNum}`,
      ...(-r === ENOMEM ? {} : { hint: this.#stateHint() }),
    });
  }

  #stateHint(): string {
    const { state } = this.query();
    const usual =
      "a request may have too much inline data, an atomic whose address is no multiple of " +
      "8, or an operation the device lacks";
    return state === "RTS" || state === "RTR" || state === "INIT"
      ? `the queue pair is in ${state}; ${usual}`
      : `the queue pair is in ${state}`;
  }

  /** Notes a request that was posted by other means than {@linkcode postSend}, for its error. */
  posted(id: number, opcode: string, bytes: number): void {
    this.#sent.add(id, opcode, bytes);
  }

  /** Writes requests into memory of their own, to be posted many times without writing them again. */
  prepareSend(requests: SendRequest | readonly SendRequest[]): PreparedSends {
    return new PreparedSends(this, Array.isArray(requests) ? requests : [requests as SendRequest]);
  }

  /** Sends a message: it goes into the memory of one receive of the peer. */
  send(segments: Segments, flags?: SendFlags): void {
    this.postSend({ ...flags, opcode: "SEND", segments });
  }

  /** Sends a message with 32 bits that the receiver's completion tells. */
  sendWithImmediate(segments: Segments, immediate: number, flags?: SendFlags): void {
    this.postSend({ ...flags, opcode: "SEND_WITH_IMM", segments, immediate });
  }

  /** Writes into the peer's memory, of which it does not hear. */
  rdmaWrite(segments: Segments, remote: RemoteAddress, flags?: SendFlags): void {
    this.postSend({ ...flags, opcode: "RDMA_WRITE", segments, remote });
  }

  /** Writes into the peer's memory and completes one of its receives. */
  rdmaWriteWithImmediate(
    segments: Segments,
    remote: RemoteAddress,
    immediate: number,
    flags?: SendFlags,
  ): void {
    this.postSend({ ...flags, opcode: "RDMA_WRITE_WITH_IMM", segments, remote, immediate });
  }

  /** Reads from the peer's memory. */
  rdmaRead(segments: Segments, remote: RemoteAddress, flags?: SendFlags): void {
    this.postSend({ ...flags, opcode: "RDMA_READ", segments, remote });
  }

  /** Adds to 8 bytes of the peer's memory and puts what they were into the segment. */
  fetchAndAdd(segment: Segment, remote: RemoteAddress, add: bigint, flags?: SendFlags): void {
    const opcode = "ATOMIC_FETCH_AND_ADD";
    this.postSend({ ...flags, opcode, segments: segment, remote, compareAdd: add });
  }

  /** Replaces 8 bytes of the peer's memory if they equal `compare`; what they were goes into the segment. */
  compareAndSwap(
    segment: Segment,
    remote: RemoteAddress,
    compare: bigint,
    swap: bigint,
    flags?: SendFlags,
  ): void {
    const opcode = "ATOMIC_CMP_AND_SWP";
    this.postSend({ ...flags, opcode, segments: segment, remote, compareAdd: compare, swap });
  }

  // ---- failures

  /** The error of a completion of this queue pair. The first that is no flush becomes the cause of the rest. */
  failure(cq: CompletionQueue, status: number, wrId: number, vendorError: number): MoatError {
    const request = this.#find(cq, status, wrId);
    const error = completionError({
      status,
      wrId,
      vendorError,
      qpNum: this.qpNum,
      opcode: request?.opcode,
      bytes: request?.bytes,
      peer: this.peer,
      cause: status === WC_STATUS.WR_FLUSH_ERR ? this.firstError : undefined,
    });
    if (status !== WC_STATUS.WR_FLUSH_ERR) this.firstError ??= error;
    return error;
  }

  // A completion that failed tells neither its operation nor its queue.
  #find(
    cq: CompletionQueue,
    status: number,
    wrId: number,
  ): { opcode: string; bytes: number } | undefined {
    const sent = cq === this.sendCq ? this.#sent.find(wrId) : undefined;
    const received = cq === this.recvCq ? this.#received.find(wrId) : undefined;
    if (!sent || !received) return sent ?? received;
    const receivers: number[] = [WC_STATUS.LOC_LEN_ERR, WC_STATUS.LOC_ACCESS_ERR];
    if (status === WC_STATUS.WR_FLUSH_ERR || status === WC_STATUS.LOC_PROT_ERR) return undefined;
    return receivers.includes(status) ? received : sent;
  }

  /** Frees the native object. Requests under way are forgotten without completions. */
  protected override destroy(): void {
    this.sendCq.queuePairs.delete(this.qpNum);
    this.recvCq.queuePairs.delete(this.qpNum);
    this.#context.queuePairs.delete(this.address);
    this.#destroyNative();
    this.#sends.close();
    this.#recvs.close();
  }
}

/** The error of a queue pair that could not be made. */
export function createError(
  verb: string,
  number: number,
  pd: ProtectionDomain,
  options: QueuePairOptions,
): MoatError {
  const { maxQp, maxQpWr, maxSge } = pd.context.queryDevice();
  const asked = `${options.maxSendWr ?? 128} sends, ${options.maxRecvWr ?? 128} receives, ` +
    `${Math.max(options.maxSendSge ?? 4, options.maxRecvSge ?? 4)} segments, ` +
    `${options.maxInlineData ?? 64} B inline`;
  return verbError(verb, number, {
    device: pd.context.deviceName,
    what: asked,
    ...([22, ENOMEM].includes(number)
      ? {
        hint: `the device has at most ${maxQp} queue pairs of ${maxQpWr} requests of ${maxSge} ` +
          "segments, and a limit of its own for inline data",
      }
      : {}),
  });
}
