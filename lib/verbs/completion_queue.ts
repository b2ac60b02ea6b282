/**
 * Completion queues.
 *
 * @module
 */
import { setImmediate } from "node:timers";
import { MoatError } from "../../ffi/errors.ts";
import { type Helper, helper } from "../../ffi/helper.ts";
import { ibverbs } from "../../ffi/ibverbs.ts";
import { errno } from "../../ffi/libc.ts";
import { nameOf, WC_FLAGS, WC_OPCODE, WC_STATUS } from "../../ffi/verbs_enums.ts";
import { IBV_CQ, IBV_WC } from "../../ffi/verbs_layout.ts";
import type { CompletionChannel } from "./completion_channel.ts";
import type { Context } from "./context.ts";
import { completionError, verbError } from "./errors.ts";
import { AsyncQueue } from "./events.ts";
import { get64, NativeMemory, structAt } from "./native.ts";
import type { QueuePair } from "./queue_pair.ts";
import { Resource } from "./resource.ts";

/** Settings of a completion queue. */
export interface CompletionQueueOptions {
  /** Completions it holds at least; 256 by default. When it overflows, completions are lost. */
  entries?: number;
  /** Where it tells of completions. Without one it can only be polled. */
  channel?: CompletionChannel;
  /** Which of the device's interrupt vectors it uses; 0 by default. */
  vector?: number;
  /** Completions one {@linkcode CompletionQueue.poll} takes at most; 64 by default. */
  batch?: number;
}

/** A completion as an object: ibv_poll_cq(3). */
export interface WorkCompletion {
  /** The number the request was given. */
  readonly wrId: number;
  /** `SUCCESS`, `WR_FLUSH_ERR`, …: `IBV_WC_…` without the prefix. */
  readonly status: string;
  /** `SEND`, `RDMA_READ`, `RECV`, …; meaningless unless the status is `SUCCESS`. */
  readonly opcode: string;
  /** Bytes that were received, read, or exchanged. */
  readonly byteLength: number;
  /** The immediate data of a message that had some. */
  readonly immediate: number | undefined;
  /** The queue pair here. */
  readonly qpNum: number;
  /** The error if the status is not `SUCCESS`. */
  readonly error: MoatError | undefined;
}

const WORDS = IBV_WC.size / 4;
const EMPTY = 0;
// Completions that next() hands over without a turn of the event loop.
const AT_ONCE = 128;

/**
 * A completion queue, `struct ibv_cq`: ibv_create_cq(3).
 *
 * {@linkcode poll} takes completions in batches into memory that is used again, and allocates nothing; they
 * are then read by {@linkcode wrId}, {@linkcode status} and so on until the next poll. {@linkcode next} and
 * `for await` are the comfortable way, an object for each, and wait through the completion channel.
 */
export class CompletionQueue extends Resource {
  /** The address of the `struct ibv_cq`. */
  readonly address: number;
  /** Completions it holds. */
  readonly entries: number;
  /** The device. */
  readonly context: Context;
  /** Where it tells of completions. */
  readonly channel: CompletionChannel | undefined;
  /** Queue pairs whose requests complete here, by their numbers. */
  readonly queuePairs: Map<number, QueuePair> = new Map();
  /**
   * Called from the event loop for every event on the channel, instead of waking those who wait. The queue
   * is not armed any more then.
   */
  onEvent: (() => void) | undefined;
  readonly #helper: Helper;
  readonly #memory: NativeMemory;
  readonly #words: Uint32Array;
  readonly #batch: number;
  readonly #ready: WorkCompletion[] = [];
  #atOnce = 0;
  readonly #told = new AsyncQueue<true>();
  #count = EMPTY;
  #waiting = 0;

  /** Use {@linkcode Context.createCq}. */
  constructor(context: Context, options: CompletionQueueOptions) {
    const { entries = 256, channel, vector = 0, batch = 64 } = options;
    for (const [name, value] of Object.entries({ entries, batch })) {
      if (!Number.isSafeInteger(value) || value < 1 || value >= 2 ** 31) {
        throw new MoatError("INVALID_ARGUMENT", `createCq with ${name} ${value}`, {
          hint: "pass a whole number, at least 1",
        });
      }
    }
    super(channel ? [context, channel] : [context]);
    this.context = context;
    this.channel = channel;
    this.#helper = helper();
    this.#batch = batch;
    this.#memory = new NativeMemory(batch * IBV_WC.size);
    this.#words = new Uint32Array(this.#memory.bytes.buffer);
    this.address = ibverbs().ibv_create_cq(
      context.address,
      entries,
      0,
      channel?.address ?? 0,
      vector,
    );
    if (this.address === 0) {
      const number = errno();
      this.entries = 0;
      this.close();
      throw verbError("ibv_create_cq", number, {
        device: context.deviceName,
        what: `${entries} entries, vector ${vector}`,
      });
    }
    this.entries = structAt(this.address + IBV_CQ.cqe, 4).getInt32(0, true);
    context.completionQueues.set(this.address, this);
  }

  // ---- polling

  /**
   * Takes what has completed, at most `max` and one batch, and returns how many: ibv_poll_cq(3). What the
   * poll before gave is gone.
   *
   * @throws {MoatError} `VERB_FAILED`, `RESOURCE_CLOSED`
   */
  poll(max: number = this.#batch): number {
    if (this.closed) this.assertOpen();
    const n = max < this.#batch ? max : this.#batch;
    const count = this.#helper.moat_verbs_poll_cq(this.address, n, this.#memory.address);
    if (count < 0) {
      this.#count = EMPTY;
      throw verbError("ibv_poll_cq", count, {
        device: this.context.deviceName,
        hint: "the queue overflowed or the device failed",
      });
    }
    return this.#count = count;
  }

  /** The number of the request of completion `i` of the last poll. */
  wrId(i: number): number {
    return get64(this.#words, i * WORDS);
  }
  /** Its status, a number: 0 for success; see {@linkcode statusName}. */
  status(i: number): number {
    return this.#words[i * WORDS + IBV_WC.status / 4]!;
  }
  /** The name of its status, `IBV_WC_…` without the prefix. */
  statusName(i: number): string {
    return nameOf(WC_STATUS, this.status(i));
  }
  /** Its operation, a number of `enum ibv_wc_opcode`; 128 and above are receives. Only if it succeeded. */
  opcode(i: number): number {
    return this.#words[i * WORDS + IBV_WC.opcode / 4]!;
  }
  /** The device's own code for an error. */
  vendorError(i: number): number {
    return this.#words[i * WORDS + IBV_WC.vendorErr / 4]!;
  }
  /** Bytes received or read. */
  byteLength(i: number): number {
    return this.#words[i * WORDS + IBV_WC.byteLen / 4]!;
  }
  /** Whether a message that was received has immediate data. */
  hasImmediate(i: number): boolean {
    return (this.#words[i * WORDS + IBV_WC.wcFlags / 4]! & WC_FLAGS.WITH_IMM) !== 0;
  }
  /** The immediate data, if it has some. */
  immediate(i: number): number {
    return swap32(this.#words[i * WORDS + IBV_WC.immData / 4]!);
  }
  /** The number of the queue pair here. */
  qpNum(i: number): number {
    return this.#words[i * WORDS + IBV_WC.qpNum / 4]!;
  }

  /** The error of completion `i` of the last poll, or `undefined` if it succeeded. */
  error(i: number): MoatError | undefined {
    const status = this.status(i);
    if (status === WC_STATUS.SUCCESS) return undefined;
    const qpNum = this.qpNum(i), wrId = this.wrId(i), vendorError = this.vendorError(i);
    const qp = this.queuePairs.get(qpNum);
    return qp?.failure(this, status, wrId, vendorError) ??
      completionError({ status, qpNum, wrId, vendorError });
  }

  /** Completion `i` of the last poll as an object. */
  completion(i: number): WorkCompletion {
    const received = (this.opcode(i) & WC_OPCODE.RECV) !== 0; // some devices flag sends as well
    return {
      wrId: this.wrId(i),
      status: this.statusName(i),
      opcode: nameOf(WC_OPCODE, this.opcode(i)),
      byteLength: this.byteLength(i),
      immediate: received && this.hasImmediate(i) ? this.immediate(i) : undefined,
      qpNum: this.qpNum(i),
      error: this.error(i),
    };
  }

  // ---- waiting

  /**
   * Asks for one event on the channel when the next completion comes: ibv_req_notify_cq(3). Poll once more
   * afterwards: what came before it gives no event.
   *
   * @param solicitedOnly only for messages that were sent `solicited`, and for errors
   */
  arm(solicitedOnly = false): void {
    this.assertOpen();
    this.channel?.watch();
    const r = this.#helper.moat_verbs_req_notify_cq(this.address, solicitedOnly ? 1 : 0);
    if (r < 0) throw verbError("ibv_req_notify_cq", r, { device: this.context.deviceName });
  }

  /** For the channel: an event came. True if somebody here wanted it. */
  told(): boolean {
    if (this.onEvent) this.onEvent();
    else if (this.#waiting > 0) this.#told.push(true);
    else return false;
    return true;
  }

  /**
   * The next completion, whatever its status; `undefined` when the queue is closed.
   *
   * @throws {MoatError} `INVALID_ARGUMENT` without a channel, or the signal's reason
   */
  async next(signal?: AbortSignal): Promise<WorkCompletion | undefined> {
    if (!this.channel) {
      throw new MoatError("INVALID_ARGUMENT", "next() of a completion queue without a channel", {
        hint: "make it with context.createCq({ channel }), or poll()",
      });
    }
    while (!this.closed) {
      if (this.#ready.length > 0 || this.#take()) {
        if (++this.#atOnce > AT_ONCE) {
          this.#atOnce = 0;
          await new Promise((resolve) => setImmediate(resolve)); // with none in hand: others may ask meanwhile
          continue;
        }
        if (this.#waiting > 0) this.#told.push(true); // another waiter, and nobody armed it for that one
        return this.#ready.shift();
      }
      this.arm();
      if (this.#take()) continue;
      this.#waiting++;
      this.#atOnce = 0;
      try {
        await this.#told.next(signal);
      } finally {
        this.#waiting--;
      }
    }
    return undefined;
  }

  #take(): boolean {
    const count = this.poll();
    for (let i = 0; i < count; i++) this.#ready.push(this.completion(i));
    return count > 0;
  }

  /** Completions as they come, until the queue is closed. */
  async *[Symbol.asyncIterator](): AsyncGenerator<WorkCompletion, void> {
    for (let wc; (wc = await this.next()) !== undefined;) yield wc;
  }

  /** Frees the native object. */
  protected override destroy(): void {
    this.#told.end();
    this.#memory?.close();
    if (this.address === 0) return;
    this.channel?.acknowledge(this);
    this.context.completionQueues.delete(this.address);
    const r = ibverbs().ibv_destroy_cq(this.address);
    if (r !== 0) throw verbError("ibv_destroy_cq", r);
  }
}

/** Between the order of the network and of the processor. */
export function swap32(x: number): number {
  return (x << 24 | (x & 0xff00) << 8 | x >>> 8 & 0xff00 | x >>> 24) >>> 0;
}
