/**
 * The transport over verbs: one connection. The protocol is in ffi/helper/rdma.c; here are what it needs of
 * libibverbs and librdmacm, places for large messages, and the end.
 *
 * @module
 */
import { RDMA_QUERY } from "../../ffi/helper.ts";
import { OP, RDMA } from "../../ffi/layout.ts";
import { threadHere } from "../identity.ts";
import { Landings } from "../landings.ts";
import type { PoolCore } from "../memory/core.ts";
import { NativeTransport, type Opened } from "../native_transport.ts";
import type { Ended } from "../transport.ts";
import type { Endpoint } from "./endpoint.ts";
import type { Hello } from "./hello.ts";

/** Bytes of the largest message that is copied through a slot. */
const EAGER_MAX = RDMA.slotBytes - RDMA.headerBytes;
const RAW_EAGER_MAX = RDMA.slotBytes;

/** Milliseconds a goodbye may take to arrive. */
const FAREWELL = 2000;

/** One `rdma://` connection. */
export class RdmaTransport extends NativeTransport {
  readonly name = "rdma";
  readonly peer: string;
  readonly eagerMax: number;
  readonly fd: number;
  readonly #endpoint: Endpoint;
  readonly #raw: { messageBytes: number } | undefined;
  readonly #landings: Landings;
  #detached = false;
  #failure: unknown;

  /**
   * Takes over an endpoint whose queue pair takes receives already.
   *
   * @param raw plain SEND and RECV, and how large the messages for `recv()` may be
   */
  constructor(
    core: PoolCore,
    endpoint: Endpoint,
    peer: string,
    raw: { messageBytes: number } | undefined,
  ) {
    super(core);
    this.#endpoint = endpoint;
    this.peer = peer;
    this.#raw = raw;
    this.fd = endpoint.eventFd;
    this.eagerMax = raw ? RAW_EAGER_MAX : EAGER_MAX;
    this.attach(endpoint.addTo(core, raw !== undefined), this.eagerMax);
    this.#landings = new Landings(core, this.conn);
  }

  /** It is connected. Raw peers say nothing of themselves. */
  begin(hello: Hello | undefined): void {
    const { helper } = this.core;
    if (hello) {
      const { base, frames, rkey } = hello;
      helper.moat_rdma_begin(this.conn, base, frames, rkey, threadHere(hello));
    } else {
      helper.moat_rdma_begin(this.conn, 0, 0, 0, 0);
    }
    this.#endpoint.setRnrTimer();
    this.#endpoint.ondisconnect(() => {
      if (!this.#detached) helper.moat_rdma_hangup(this.conn);
    });
  }

  alignTo(offset: number): void {
    this.#landings.align = offset;
  }

  override next(): Ended | undefined {
    for (;;) {
      this.#landings.find(this.#raw?.messageBytes);
      const ended = super.next();
      if (!ended) {
        if (this.#query("stuck")) this.#destroyQueuePair();
        return undefined;
      }
      if (!this.#landings.drop(ended.op)) return ended;
    }
  }

  protected open(op: number, at: number): Opened {
    const { report } = this, got = Number(report.getBigUint64(at + OP.got, true));
    return this.copyOf(op, at) ?? this.#landings.open(report.getUint32(at + OP.seq, true), got);
  }

  #query(what: keyof typeof RDMA_QUERY): number {
    return this.core.helper.moat_rdma_query(this.conn, RDMA_QUERY[what]);
  }

  /** The first completion that failed. */
  failure(): unknown {
    if (this.#failure === undefined && this.#query("hasError") === 1) {
      this.#failure = this.#endpoint.completionError(this.#query("error"), this.peer);
    }
    return this.#failure;
  }

  // The device does not give everything back by itself. It must, without its queue pair.
  #destroyQueuePair(): void {
    this.core.helper.moat_rdma_kill(this.conn); // from here on nobody posts to it, on any thread
    this.#endpoint.destroyQueuePair();
    this.core.helper.moat_rdma_gone(this.conn);
  }

  async destroy(): Promise<void> {
    const { helper } = this.core, patience = performance.now() + FAREWELL;
    // The goodbye must have arrived before the queue pair goes.
    while (this.#query("byeDone") === 0 && performance.now() < patience) {
      helper.moat_conn_next(this.conn);
      await pause();
    }
    this.failure();
    this.#endpoint.disconnect();
    this.#destroyQueuePair();
    while (this.next()); // what was read ahead for nobody
    const events = this.#query("events");
    this.#detached = true; // the number may be another connection's from here on
    this.detach();
    this.#endpoint.close(events);
  }
}

function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 1));
}
