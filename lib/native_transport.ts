/**
 * What the transports have in common whose protocol is in the helper (ffi/helper/conn.c), because a fault
 * handler that waits must be able to move it on.
 *
 * @module
 */
import { systemError } from "../ffi/errors.ts";
import { DESC, DESC_KIND, OP, OP_PARKED } from "../ffi/layout.ts";
import { runtime } from "../ffi/runtime.ts";
import { NO_HEADER } from "./header.ts";
import type { PoolCore } from "./memory/core.ts";
import type { Arrival, Ended, Transport, TransportState } from "./transport.ts";

const STATES: readonly TransportState[] = [
  "open",
  "ended",
  "lost",
  "broken",
  "aborted",
  "peer-aborted",
];

// Where in the report next() and taken() look.
const TAKEN = 0;
const DONE = OP.size;

/** The memory of a message. */
export type Opened = Omit<Arrival, "header">;

/** A connection of the helper. */
export abstract class NativeTransport implements Transport {
  abstract readonly name: string;
  abstract readonly peer: string;
  abstract readonly eagerMax: number;
  abstract readonly fd: number;
  protected readonly core: PoolCore;
  /** The operation that was taken, and behind it the one that ended last. */
  protected report!: DataView;
  #conn = -1;
  #scratch!: Uint8Array;

  constructor(core: PoolCore) {
    this.core = core;
  }

  /** The connection's number. */
  get conn(): number {
    return this.#conn;
  }

  /** Takes what the helper answered when the connection was added. */
  protected attach(conn: number, eagerMax: number): void {
    if (conn < 0) throw systemError("adding a connection", -conn);
    this.#conn = conn;
    const report = this.core.helper.moat_conn_report(conn);
    this.report = new DataView(runtime().viewOf(report, OP.size * 2));
    this.#scratch = new Uint8Array(eagerMax);
  }

  /** Forgets the connection. Nothing may be under way. */
  protected detach(): void {
    const r = this.core.helper.moat_conn_remove(this.conn);
    if (r < 0) throw systemError("removing a connection", -r);
    (this.report.buffer as ArrayBuffer).transfer(0);
  }

  eager(bytes: Uint8Array): number {
    return this.core.helper.moat_conn_eager(this.conn, bytes, bytes.byteLength);
  }

  send(op: number): void {
    this.core.helper.moat_conn_send(this.conn, op);
  }

  recv(op: number, _bytes: number): boolean {
    return this.core.helper.moat_conn_recv(this.conn, op) !== 1;
  }

  cancel(op: number): void {
    this.core.helper.moat_conn_cancel(op);
  }

  take(spin: number): number {
    return this.core.helper.moat_conn_take(this.conn, spin);
  }

  next(): Ended | undefined {
    const op = this.core.helper.moat_conn_next(this.conn);
    if (op < 0) return undefined;
    return {
      op,
      status: this.report.getInt32(DONE + OP.status, true),
      got: Number(this.report.getBigUint64(DONE + OP.got, true)),
    };
  }

  state(): TransportState {
    return STATES[this.core.helper.moat_conn_state(this.conn)] ?? "aborted";
  }

  arm(): boolean {
    return this.core.helper.moat_conn_arm(this.conn) === 1;
  }

  busy(): boolean {
    return this.core.helper.moat_conn_busy(this.conn) > 0;
  }

  end(abort: boolean): void {
    this.core.helper.moat_conn_end(this.conn, abort ? 1 : 0);
  }

  taken(): Arrival {
    return this.#arrival(-1, TAKEN);
  }

  arrived(op: number): Arrival {
    return this.#arrival(op, DONE);
  }

  collect(op: number, to: Uint8Array): number {
    const { report, core } = this, at = op < 0 ? TAKEN : DONE;
    const length = Number(report.getBigUint64(at + OP.got, true));
    if (length > to.byteLength) return -1;
    const kind = report.getUint32(at + OP.desc + DESC.kind, true);
    const parked = (report.getUint16(at + OP.flags, true) & OP_PARKED) !== 0;
    if (parked) core.helper.moat_msg_unpark(op, to);
    else if (kind === DESC_KIND.eager) core.helper.moat_msg_copy(this.conn, op, to);
    else if (!this.copyPages(op, at, to)) return -1;
    core.counters.bytesReceived += length;
    core.counters.bytesCopiedIn += length;
    return length;
  }

  /** Copies a message that does not lie in pages of this side; false if it does. */
  protected copyPages(_op: number, _at: number, _to: Uint8Array): boolean {
    return false;
  }

  #arrival(op: number, at: number): Arrival {
    const header = this.#header(op, at), opened = this.open(op, at);
    const { bytes, copied, detaches, device, release } = opened; // each by its name: one shape of object
    return { bytes, header, copied, detaches, device, release };
  }

  header(op: number): Uint8Array<ArrayBuffer> {
    return this.#header(op, DONE);
  }

  #header(op: number, at: number): Uint8Array<ArrayBuffer> {
    const length = this.report.getUint32(at + OP.headLength, true);
    if (length === 0) return NO_HEADER;
    const bytes = new Uint8Array(length);
    this.core.helper.moat_msg_header(this.conn, op, bytes);
    return bytes;
  }

  abstract destroy(): void | Promise<void>;

  /** Ends a connection that nobody has used. */
  async giveUp(): Promise<void> {
    this.end(true);
    await this.destroy();
  }

  /** Opens the message described at `at` of the report: that of operation `op`, or the one taken (-1). */
  protected abstract open(op: number, at: number): Opened;

  /** A copy of a small message, or `undefined` if it is not one. */
  protected copyOf(op: number, at: number): Opened | undefined {
    const { report, core } = this;
    const length = Number(report.getBigUint64(at + OP.got, true));
    const kind = report.getUint32(at + OP.desc + DESC.kind, true);
    const parked = (report.getUint16(at + OP.flags, true) & OP_PARKED) !== 0;
    if (!parked && kind !== DESC_KIND.eager) return undefined;
    core.counters.bytesReceived += length;
    core.counters.bytesCopiedIn += length;
    // A fresh small array of its own costs more than a slice of one that is there.
    const short = length <= 256, to = short ? this.#scratch : new Uint8Array(length);
    if (parked) core.helper.moat_msg_unpark(op, to);
    else core.helper.moat_msg_copy(this.conn, op, to);
    const bytes = short ? to.slice(0, length) : to;
    return { bytes: bytes as Uint8Array<ArrayBuffer>, copied: true, release: nothing };
  }
}

/** The release of a message that was copied. */
export function nothing(): void {}
