/**
 * Completion channels: how the event loop hears of completions.
 *
 * @module
 */
import { ibverbs } from "../../ffi/ibverbs.ts";
import { errno } from "../../ffi/libc.ts";
import { IBV_COMP_CHANNEL } from "../../ffi/verbs_layout.ts";
import type { CompletionQueue } from "./completion_queue.ts";
import type { Context } from "./context.ts";
import { verbError } from "./errors.ts";
import { AsyncQueue, Watch } from "./events.ts";
import { read64, structAt } from "./native.ts";
import { Resource } from "./resource.ts";

// Acknowledging takes a lock, so it is done for many events at once; man ibv_ack_cq_events(3).
const ACK_AFTER = 64;

/**
 * A completion channel, `struct ibv_comp_channel`: ibv_create_comp_channel(3). Its descriptor is in the event
 * loop while anything waits for it.
 */
export class CompletionChannel extends Resource {
  /** The address of the `struct ibv_comp_channel`. */
  readonly address: number;
  /** Its descriptor, which does not block. */
  readonly fd: number;
  readonly #context: Context;
  readonly #queue = new AsyncQueue<CompletionQueue>();
  readonly #cq = new BigUint64Array(2);
  readonly #out = new Uint8Array(this.#cq.buffer, 0, 8);
  readonly #user = new Uint8Array(this.#cq.buffer, 8, 8);
  readonly #unacked = new Map<CompletionQueue, number>();
  #watch: Watch | undefined;

  /** Use {@linkcode Context.createCompletionChannel}. */
  constructor(context: Context) {
    super([context]);
    this.#context = context;
    this.address = ibverbs().ibv_create_comp_channel(context.address);
    if (this.address === 0) {
      const number = errno();
      this.fd = -1;
      this.close();
      throw verbError("ibv_create_comp_channel", number, { device: context.deviceName });
    }
    this.fd = structAt(this.address, IBV_COMP_CHANNEL.size).getInt32(IBV_COMP_CHANNEL.fd, true);
  }

  /** The device. */
  get context(): Context {
    return this.#context;
  }

  /**
   * The next completion queue with an event, once for each {@linkcode CompletionQueue.arm};
   * `undefined` when the channel is closed. Queues with an `onEvent` do not come here.
   * ibv_get_cq_event(3), without blocking.
   */
  next(signal?: AbortSignal): Promise<CompletionQueue | undefined> {
    this.watch();
    return this.#queue.next(signal);
  }

  /** Puts the descriptor into the event loop. */
  watch(): void {
    this.assertOpen();
    this.#watch ??= new Watch(this.fd, () => this.#drain());
  }

  #drain(): boolean {
    let any = false;
    while (
      !this.closed && ibverbs().ibv_get_cq_event(this.address, this.#out, this.#user) === 0
    ) {
      any = true;
      const address = read64(new DataView(this.#cq.buffer), 0);
      const cq = this.#context.completionQueues.get(address);
      if (!cq) { // not one of ours
        ibverbs().ibv_ack_cq_events(address, 1);
        continue;
      }
      const count = (this.#unacked.get(cq) ?? 0) + 1;
      this.#unacked.set(cq, count);
      if (count >= ACK_AFTER) this.acknowledge(cq);
      if (!cq.told()) this.#queue.push(cq);
    }
    return any;
  }

  /** Acknowledges the events of a queue, without which destroying it waits for ever. */
  acknowledge(cq: CompletionQueue): void {
    const count = this.#unacked.get(cq);
    if (count === undefined) return;
    this.#unacked.delete(cq);
    ibverbs().ibv_ack_cq_events(cq.address, count);
  }

  /** Frees the native object. */
  protected override destroy(): void {
    this.#watch?.end();
    this.#queue.end();
    if (this.address === 0) return;
    const r = ibverbs().ibv_destroy_comp_channel(this.address);
    if (r !== 0) throw verbError("ibv_destroy_comp_channel", r);
  }
}
