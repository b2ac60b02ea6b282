/**
 * Asynchronous events of a device.
 *
 * @module
 */
import { ibverbs } from "../../ffi/ibverbs.ts";
import { EVENT_TYPE, nameOf } from "../../ffi/verbs_enums.ts";
import { IBV_ASYNC_EVENT } from "../../ffi/verbs_layout.ts";
import type { CompletionQueue } from "./completion_queue.ts";
import type { Context } from "./context.ts";
import { AsyncQueue, Watch } from "./events.ts";
import { read64 } from "./native.ts";
import type { QueuePair } from "./queue_pair.ts";

/** What ibv_get_async_event(3) tells. */
export interface AsyncEvent {
  /** `QP_FATAL`, `COMM_EST`, `CQ_ERR`, `PORT_ERR`, …: `IBV_EVENT_…` without the prefix. */
  readonly type: string;
  /** The queue pair it is about. */
  readonly qp?: QueuePair;
  /** The completion queue it is about. */
  readonly cq?: CompletionQueue;
  /** The port it is about. */
  readonly port?: number;
}

/** Reads a context's events and hands them on. */
export class AsyncEvents {
  /** Events nobody listened to. */
  readonly queue: AsyncQueue<AsyncEvent> = new AsyncQueue();
  /** Gets every event instead of the queue. */
  listener: ((event: AsyncEvent) => void) | undefined;
  readonly #context: Context;
  readonly #watch: Watch;
  readonly #event = new Uint8Array(IBV_ASYNC_EVENT.size);
  readonly #view = new DataView(this.#event.buffer);

  /** Starts reading. */
  constructor(context: Context, fd: number) {
    this.#context = context;
    this.#watch = new Watch(fd, () => this.#drain());
  }

  #drain(): boolean {
    let any = false;
    while (ibverbs().ibv_get_async_event(this.#context.address, this.#event) === 0) {
      any = true;
      const event = this.#read();
      // Destroying what it is about would wait for this.
      ibverbs().ibv_ack_async_event(this.#event);
      if (this.listener) this.listener(event);
      else this.queue.push(event);
      if (this.#context.closed) break;
    }
    return any;
  }

  #read(): AsyncEvent {
    const type = nameOf(EVENT_TYPE, this.#view.getInt32(IBV_ASYNC_EVENT.eventType, true));
    const element = read64(this.#view, IBV_ASYNC_EVENT.element);
    if (type === "CQ_ERR") {
      const cq = this.#context.completionQueues.get(element);
      return cq ? { type, cq } : { type };
    }
    if (/^(QP|COMM|SQ|PATH)_/.test(type)) {
      const qp = this.#context.queuePairs.get(element);
      return qp ? { type, qp } : { type };
    }
    return /^(PORT|LID|PKEY|SM|CLIENT|GID)_/.test(type)
      ? { type, port: this.#view.getInt32(IBV_ASYNC_EVENT.element, true) }
      : { type };
  }

  /** Stops reading. */
  end(): void {
    this.#watch.end();
    this.queue.end();
  }
}
