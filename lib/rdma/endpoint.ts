/**
 * What one connection has of the device: a queue pair, its completion queue and channel, and the slots of
 * small messages.
 *
 * @module
 */
import process from "node:process";
import { isMainThread } from "node:worker_threads";
import { ibverbs, symbolAddress } from "../../ffi/ibverbs.ts";
import { RDMA } from "../../ffi/layout.ts";
import { QP_ATTR_MASK } from "../../ffi/verbs_enums.ts";
import { IBV_QP_ATTR, IBV_WC } from "../../ffi/verbs_layout.ts";
import type { MoatError } from "../../ffi/errors.ts";
import type { PoolCore } from "../memory/core.ts";
import type { CmId } from "../verbs/cm_id.ts";
import type { CompletionChannel } from "../verbs/completion_channel.ts";
import type { CompletionQueue } from "../verbs/completion_queue.ts";
import { completionError, verbError } from "../verbs/errors.ts";
import { makeNonblocking } from "../verbs/events.ts";
import type { MemoryRegion } from "../verbs/memory_region.ts";
import { structAt } from "../verbs/native.ts";
import type { QueuePair } from "../verbs/queue_pair.ts";
import { type PoolDevice, poolDevice, release } from "./pool_device.ts";

/** Bytes that one RDMA read asks for at most: one that is retried does not begin far back. */
const READ_BYTES = 1 << 20;
/** Reads at the device at a time, of which it carries out `initiatorDepth`. */
const MAX_READS = 32;
/** Bytes below which a message is handed to the device in its work request. */
const INLINE = 188;

/** 0.64 ms, in the specification's numbers. */
const RNR_TIMER = 12;

/** RDMA reads that the two sides ask the device to carry out at once. */
export const READ_DEPTH = 16;

// What ffi/helper/rdma.h calls what an entry of the send queue was for.
const SENT: Record<number, string> = { 3: "RDMA_READ", 5: "RDMA_READ" };
const RECV = 128;

let leaves = false;

// In a Worker, "exit" is only the Worker's.
function leaveAtExit(core: PoolCore): void {
  if (leaves || !isMainThread) return;
  leaves = true;
  process.on("exit", () => void core.helper.moat_rdma_leave());
}

/** The device's part of a connection. */
export class Endpoint {
  readonly device: PoolDevice;
  readonly id: CmId;
  readonly #channel: CompletionChannel;
  readonly #cq: CompletionQueue;
  readonly #qp: QueuePair;
  readonly #slots: MemoryRegion;
  #closed = false;

  /** @param id has its device: its address is resolved, or it is a request's. It is this object's from here on. */
  constructor(core: PoolCore, id: CmId, raw: boolean) {
    leaveAtExit(core);
    this.id = id;
    this.device = poolDevice(core, id);
    const undo: (() => void)[] = [() => release(this.device)];
    try {
      const { context, pd } = this.device, limits = context.queryDevice();
      const receives = raw ? RDMA.rawReceives : RDMA.recvSlots;
      this.#channel = context.createCompletionChannel();
      undo.push(() => this.#channel.close());
      makeNonblocking(this.#channel.fd);
      const entries = RDMA.sendQueue + receives;
      this.#cq = context.createCq({ channel: this.#channel, entries, batch: 1 });
      undo.push(() => this.#cq.close());
      this.#slots = pd.allocate((RDMA.recvSlots + RDMA.sendSlots) * RDMA.slotBytes + 8);
      undo.push(() => this.#slots.close());
      const sges = Math.min(RDMA.maxSge, limits.maxSge, limits.maxSgeRd || RDMA.maxSge);
      this.#qp = id.createQp(pd, {
        sendCq: this.#cq,
        maxSendWr: RDMA.sendQueue,
        maxRecvWr: receives,
        maxSendSge: sges,
        maxRecvSge: sges,
        maxInlineData: INLINE,
      });
    } catch (error) {
      for (const step of undo.reverse()) step();
      id.close();
      throw error;
    }
  }

  /** Tells of completions. */
  get eventFd(): number {
    return this.#channel.fd;
  }

  /** Adds the connection to the helper, which posts the receives. Returns its number, or -errno. */
  addTo(core: PoolCore, raw: boolean): number {
    const { capacity } = this.#qp, { mr } = this.device;
    const sges = Math.min(capacity.maxSendSge, capacity.maxRecvSge);
    // The order is that of moat_rdma_add in ffi/helper/rdma.c.
    const config = BigUint64Array.from([
      this.#qp.address,
      this.#cq.address,
      symbolAddress("ibverbs", "ibv_modify_qp"),
      symbolAddress("ibverbs", "ibv_get_cq_event"),
      this.#channel.address,
      this.#slots.addr,
      this.#slots.lkey,
      mr.lkey,
      Math.min(INLINE, capacity.maxInlineData),
      sges,
      MAX_READS,
      READ_BYTES,
      raw ? 1 : 0,
    ], BigInt);
    const bytes = new Uint8Array(config.buffer);
    return core.helper.moat_rdma_add(core.index, this.#channel.fd, bytes);
  }

  /**
   * How long a sender that met no receive is to wait before it tries again. The connection manager leaves it at
   * 0, which means 655 ms.
   */
  setRnrTimer(): void {
    const attributes = new Uint8Array(IBV_QP_ATTR.size);
    attributes[IBV_QP_ATTR.minRnrTimer] = RNR_TIMER;
    const r = ibverbs().ibv_modify_qp(this.#qp.address, attributes, QP_ATTR_MASK.MIN_RNR_TIMER);
    if (r !== 0) throw verbError("ibv_modify_qp", r, { what: "MIN_RNR_TIMER" });
  }

  /** Calls `fn` when the connection manager says that the peer has gone, also if it has already. */
  ondisconnect(fn: () => void): void {
    this.id.disconnected.then(fn, fn);
  }

  /** The error of the failed completion at an address. */
  completionError(address: number, peer: string): MoatError {
    const wc = structAt(address, IBV_WC.size), kind = wc.getUint32(IBV_WC.opcode, true);
    return completionError({
      status: wc.getUint32(IBV_WC.status, true),
      opcode: kind === RECV ? "RECV" : SENT[kind] ?? "SEND",
      qpNum: this.#qp.qpNum,
      vendorError: wc.getUint32(IBV_WC.vendorErr, true),
      peer,
    });
  }

  /** Tells the peer's connection manager. Brings the queue pair to error. */
  disconnect(): void {
    if (!this.id.closed) this.id.disconnect();
  }

  /** Destroys the queue pair: after this the device has nothing of ours in hand. */
  destroyQueuePair(): void {
    this.#qp.close();
  }

  /**
   * Gives everything back.
   *
   * @param events those of the completion channel that the helper took
   */
  close(events: number): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#qp.close();
    // Without this, destroying the queue would wait for ever.
    ibverbs().ibv_ack_cq_events(this.#cq.address, events);
    this.#cq.close();
    this.#channel.close();
    this.#slots.close();
    this.id.close();
    release(this.device);
  }
}
