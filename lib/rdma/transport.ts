/**
 * The transport over verbs: one connection. The protocol is in ffi/helper/rdma.c; here are what it needs of
 * libibverbs and librdmacm, places for large messages, and the end.
 *
 * @module
 */
import { RDMA_QUERY } from "../../ffi/helper.ts";
import { OP, RDMA } from "../../ffi/layout.ts";
import { type PoolCore, type Region, resolveData } from "../memory/core.ts";
import type { PoolBuffer } from "../memory/buffer.ts";
import { NativeTransport, type Opened } from "../native_transport.ts";
import type { Ended } from "../transport.ts";
import type { Endpoint } from "./endpoint.ts";
import { type Hello, threadHere } from "./hello.ts";

const ECANCELED = 125;

/** Bytes of the largest message that is copied through a slot. */
const EAGER_MAX = RDMA.slotBytes - RDMA.headerBytes;
const RAW_EAGER_MAX = RDMA.slotBytes;

/** Milliseconds a goodbye may take to arrive. */
const FAREWELL = 2000;

/** A place for a message: a buffer made for it, and the receive into that. */
interface Landing {
  readonly buffer: PoolBuffer;
  readonly region: Region;
  /** Read before the program asked for it. */
  readonly ahead: boolean;
}

/** The part of a pool that messages read ahead may take. */
const AHEAD = 1 / 4;

/** One `rdma://` connection. */
export class RdmaTransport extends NativeTransport {
  readonly name = "rdma";
  readonly peer: string;
  readonly eagerMax: number;
  readonly fd: number;
  readonly #endpoint: Endpoint;
  readonly #raw: { messageBytes: number } | undefined;
  readonly #landings = new Map<number, Landing>();
  #bytesAhead = 0;
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

  override next(): Ended | undefined {
    for (;;) {
      while (this.core.helper.moat_conn_wants(this.conn) !== 0) this.#land();
      const ended = super.next();
      if (!ended) {
        if (this.#query("stuck")) this.#destroyQueuePair();
        return undefined;
      }
      if (!this.#landings.has(ended.op)) return ended;
      this.#landed(ended.op).buffer.free(); // nobody has asked for it, or it was not read
    }
  }

  // An announced message gets a buffer of its own in the pool, which is then received into.
  #land(): void {
    const { core, conn } = this, { helper } = core;
    const wanted = helper.moat_conn_wants(conn), ahead = wanted < 0;
    const length = this.#raw?.messageBytes ?? Math.abs(wanted);
    let buffer: PoolBuffer | undefined, region: Region | undefined, op = -1;
    if (!ahead || this.#bytesAhead + length <= core.pool.byteLength * AHEAD) {
      try {
        buffer = core.pool.alloc(length);
        region = resolveData(core, buffer, "recv").region!;
        op = core.in(region, "none");
      } catch {
        buffer?.free(); // no room: a receive that waits fails, and the message stays for the next
      }
    }
    const r = helper.moat_conn_land(conn, op);
    if (op < 0) return;
    if (r === 0) {
      this.#landings.set(op, { buffer: buffer!, region: region!, ahead });
      if (ahead) this.#bytesAhead += length;
    } else {
      helper.moat_op_done(op, -ECANCELED);
      helper.moat_op_free(op);
      buffer!.free();
    }
  }

  // Forgets a receive that has ended.
  #landed(op: number): Landing {
    const landing = this.#landings.get(op)!;
    this.#landings.delete(op);
    this.core.helper.moat_op_free(op);
    if (landing.ahead) this.#bytesAhead -= landing.buffer.byteLength;
    return landing;
  }

  protected open(op: number, at: number): Opened {
    const copy = this.copyOf(op, at);
    if (copy) return copy;
    const { core, report } = this;
    const { buffer, region: { state } } = this.#landed(report.getUint32(at + OP.seq, true));
    const got = Number(report.getBigUint64(at + OP.got, true));
    core.counters.bytesReceived += got;
    // The release must not hold the buffer: a message that is dropped is released when it is collected.
    const release = (): void => {
      if (!state.freed) core.retire(state);
    };
    return { bytes: buffer.bytes.subarray(0, got), copied: false, detaches: true, release };
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

  /** Ends a connection that nobody has used. */
  async giveUp(): Promise<void> {
    this.end(true);
    await this.destroy();
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
