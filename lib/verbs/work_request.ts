/**
 * Work requests: what is posted to a queue pair.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { SEND_FLAGS, WR_OPCODE } from "../../ffi/verbs_enums.ts";
import { IBV_RECV_WR, IBV_SEND_WR, IBV_SGE } from "../../ffi/verbs_layout.ts";
import { swap32 } from "./completion_queue.ts";
import type { RemoteAddress, Segment } from "./memory_region.ts";
import { NativeMemory, put64 } from "./native.ts";

/** An operation of the send queue, `enum ibv_wr_opcode`. */
export type SendOpcode =
  | "SEND"
  | "SEND_WITH_IMM"
  | "RDMA_WRITE"
  | "RDMA_WRITE_WITH_IMM"
  | "RDMA_READ"
  | "ATOMIC_CMP_AND_SWP"
  | "ATOMIC_FETCH_AND_ADD";

/** How a request of the send queue behaves. */
export interface SendFlags {
  /** A number below 2^53 that its completion will bear; 0 by default. */
  id?: number;
  /** Gives a completion; true by default. Failures always do. */
  signaled?: boolean;
  /** Raises an event at a receiver that armed for solicited ones only. */
  solicited?: boolean;
  /**
   * Takes the data out of the segments at the call, which need no lkey then: the memory can be used again at
   * once. At most `maxInlineData` bytes.
   */
  inline?: boolean;
  /** Waits for RDMA reads and atomics posted before it. */
  fence?: boolean;
}

/** A request of the send queue: ibv_post_send(3). */
export interface SendRequest extends SendFlags {
  /** What to do; `SEND` by default. */
  opcode?: SendOpcode;
  /** Memory to send from, or to read into; none for an empty message. */
  segments?: Segment | readonly Segment[];
  /** 32 bits for the receiver's completion, with `SEND_WITH_IMM` and `RDMA_WRITE_WITH_IMM`. */
  immediate?: number;
  /** Where at the peer, for RDMA and atomics. */
  remote?: RemoteAddress;
  /** What is compared (`ATOMIC_CMP_AND_SWP`) or added (`ATOMIC_FETCH_AND_ADD`). */
  compareAdd?: bigint;
  /** What is stored if it compares equal. */
  swap?: bigint;
}

/** A receive: ibv_post_recv(3). */
export interface RecvRequest {
  /** A number below 2^53 that its completion will bear; 0 by default. */
  id?: number;
  /** Memory for the message; none for messages without data. */
  segments?: Segment | readonly Segment[];
}

function list(segments: Segment | readonly Segment[] | undefined): readonly Segment[] {
  return segments === undefined ? [] : Array.isArray(segments) ? segments : [segments as Segment];
}

/**
 * Native memory for work requests of one kind, one after another and chained, each with room for its segments.
 * The device's driver reads them while they are posted and not afterwards.
 */
export class RequestSlab {
  /** How many there is room for. */
  readonly slots: number;
  readonly #memory: NativeMemory;
  readonly #words: Uint32Array;
  readonly #wide: BigUint64Array;
  readonly #stride: number;
  readonly #header: number;
  readonly #maxSge: number;
  readonly #bytes: Float64Array;

  /** Makes room for `slots` requests of at most `maxSge` segments. */
  constructor(kind: "send" | "recv", slots: number, maxSge: number) {
    this.slots = Math.max(1, slots);
    this.#bytes = new Float64Array(this.slots);
    this.#maxSge = maxSge;
    this.#header = kind === "send" ? IBV_SEND_WR.size : IBV_RECV_WR.size;
    this.#stride = this.#header + Math.max(1, maxSge) * IBV_SGE.size;
    this.#memory = new NativeMemory(this.slots * this.#stride + 8);
    const { buffer } = this.#memory.bytes;
    this.#words = new Uint32Array(buffer, 0, Math.floor(buffer.byteLength / 4));
    this.#wide = new BigUint64Array(buffer, 0, Math.floor(buffer.byteLength / 8));
  }

  /** The address of a request. */
  address(slot: number): number {
    return this.#memory.address + slot * this.#stride;
  }

  /** Where ibv_post_send puts the address of the first request it did not take. */
  get bad(): number {
    return this.#memory.address + this.slots * this.#stride;
  }

  /** The slot of the first of `n` requests that was not taken. */
  badSlot(n: number): number {
    const at = this.slots * this.#stride / 4;
    const address = this.#words[at]! + this.#words[at + 1]! * 2 ** 32;
    const slot = (address - this.#memory.address) / this.#stride;
    return slot >= 0 && slot < n ? Math.floor(slot) : 0;
  }

  #checkId(id: number): void {
    if (!(id >= 0 && id <= Number.MAX_SAFE_INTEGER)) {
      throw new MoatError("INVALID_ARGUMENT", `a work request with the id ${id}`, {
        hint: "pass a whole number from 0 to 2^53 - 1",
      });
    }
  }

  #common(slot: number, id: number, segments: readonly Segment[], next: boolean): number {
    const words = this.#words, at = slot * this.#stride / 4;
    if (segments.length > this.#maxSge) {
      throw new MoatError("INVALID_ARGUMENT", `a work request with ${segments.length} segments`, {
        hint: `the queue pair was made for ${this.#maxSge}: see maxSendSge and maxRecvSge`,
      });
    }
    this.#checkId(id);
    put64(words, at + IBV_SEND_WR.wrId / 4, id);
    put64(words, at + IBV_SEND_WR.next / 4, next ? this.address(slot + 1) : 0);
    const first = slot * this.#stride + this.#header;
    put64(words, at + IBV_SEND_WR.sgList / 4, this.#memory.address + first);
    words[at + IBV_SEND_WR.numSge / 4] = segments.length;
    let bytes = 0;
    for (let i = 0, sge = first / 4; i < segments.length; i++, sge += IBV_SGE.size / 4) {
      const segment = segments[i]!;
      put64(words, sge, segment.address);
      words[sge + IBV_SGE.length / 4] = segment.length;
      words[sge + IBV_SGE.lkey / 4] = segment.lkey;
      bytes += segment.length;
    }
    this.#bytes[slot] = bytes;
    return at;
  }

  /** Bytes of a request's segments. */
  bytes(slot: number): number {
    return this.#bytes[slot]!;
  }

  /** Writes a receive. `struct ibv_recv_wr` begins as `struct ibv_send_wr`. */
  writeRecv(slot: number, request: RecvRequest, next: boolean): void {
    this.#common(slot, request.id ?? 0, list(request.segments), next);
  }

  /** Writes a request of the send queue. */
  writeSend(slot: number, request: SendRequest, next: boolean): void {
    const { opcode = "SEND", remote, immediate } = request, words = this.#words;
    const segments = list(request.segments);
    const at = this.#common(slot, request.id ?? 0, segments, next);
    words[at + IBV_SEND_WR.opcode / 4] = WR_OPCODE[opcode];
    words[at + IBV_SEND_WR.sendFlags / 4] = (request.signaled === false ? 0 : SEND_FLAGS.SIGNALED) |
      (request.solicited ? SEND_FLAGS.SOLICITED : 0) |
      (request.inline ? SEND_FLAGS.INLINE : 0) |
      (request.fence ? SEND_FLAGS.FENCE : 0);
    words[at + IBV_SEND_WR.immData / 4] = swap32(immediate ?? 0);
    if (opcode !== "SEND" && opcode !== "SEND_WITH_IMM") {
      if (remote === undefined) {
        throw new MoatError("INVALID_ARGUMENT", `${opcode} without a remote address`, {
          hint: "pass remote: { address, rkey } of the peer's memory region",
        });
      }
      put64(words, at + IBV_SEND_WR.remoteAddr / 4, remote.address);
      if (opcode === "ATOMIC_CMP_AND_SWP" || opcode === "ATOMIC_FETCH_AND_ADD") {
        this.#wide[(at + IBV_SEND_WR.atomicCompareAdd / 4) / 2] = request.compareAdd ?? 0n;
        this.#wide[(at + IBV_SEND_WR.atomicSwap / 4) / 2] = request.swap ?? 0n;
        words[at + IBV_SEND_WR.atomicRkey / 4] = remote.rkey;
      } else {
        words[at + IBV_SEND_WR.rkey / 4] = remote.rkey;
      }
    }
  }

  /** Changes the number of a request that was written. */
  setId(slot: number, id: number): void {
    this.#checkId(id);
    put64(this.#words, (slot * this.#stride + IBV_SEND_WR.wrId) / 4, id);
  }

  /** Frees the memory. */
  close(): void {
    this.#memory.close();
  }
}
