/**
 * The transport over TCP: one connection. The protocol is in ffi/helper/tcp.c; here are places for large
 * messages, and the end.
 *
 * @module
 */
import { errnoName } from "../../ffi/errors.ts";
import { helper } from "../../ffi/helper.ts";
import { OP, TCP } from "../../ffi/layout.ts";
import { libc, readText } from "../../ffi/libc.ts";
import { type Identity, threadHere } from "../identity.ts";
import { Landings } from "../landings.ts";
import { worthNotCopying } from "../memory/calibrate.ts";
import type { PoolCore } from "../memory/core.ts";
import { NativeTransport, type Opened } from "../native_transport.ts";
import { hasRing, ringOf } from "../ring.ts";
import type { Ended } from "../transport.ts";
import { isLocal, resetOnClose } from "./socket.ts";

/** Milliseconds the peer's kernel may take to acknowledge the last bytes. */
const FAREWELL = 2000;

const RING = "io_uring";
// A ring pins all of its pool's memory, which takes a second for some hundred MiB, and would be for nothing.
const LOCAL = "sockets: the peer is on this host, where the kernel copies in any case";
const EPERM = 1, ENOSYS = 38;
let refused: string | undefined;

// How data gets into a socket, as far as it can be known without making a ring.
function engine(): string {
  if (refused === undefined) {
    const r = helper().moat_uring_probe();
    refused = r < 0 ? whyNot(-r) : "";
  }
  return refused || RING;
}

function whyNot(errno: number): string {
  const setting = readText("/proc/sys/kernel/io_uring_disabled").trim();
  if (errno === EPERM && setting !== "" && setting !== "0") {
    return `sockets: io_uring is forbidden: kernel.io_uring_disabled=${setting}`;
  }
  if (errno === EPERM) return "sockets: io_uring is forbidden: EPERM, by a seccomp profile";
  if (errno === ENOSYS) return "sockets: io_uring is missing: ENOSYS";
  return `sockets: io_uring cannot be had: ${errnoName(errno)}`;
}

/** Bytes from which the pool's ring is used; tests set them. */
export const RING_FROM: { send: number | undefined; receive: number } = {
  /** To send without a copy; calibrated at first use. */
  send: undefined,
  /** To receive what is left of a message. */
  receive: 64 << 10,
};

// A send without a copy costs a request, two completions and the waking of a thread: four times what a request
// that does nothing costs.
function zeroCopyFrom(core: PoolCore): number {
  const { helper, index } = core;
  return RING_FROM.send ??= worthNotCopying(4 * helper.moat_uring_round_trip(index));
}

/** What moat_tcp_done() says. */
const WAIT = 0, RESET = 2;

/** One `tcp://` connection. */
export class TcpTransport extends NativeTransport {
  readonly peer: string;
  readonly eagerMax = TCP.eagerMax;
  readonly reaches = { out: true, in: true }; // the kernel reads and writes any page of this process
  readonly fd: number;
  readonly #landings: Landings;
  #engine: string;
  #began = false;

  /** Takes over a connected socket on which both sides have greeted; closes it if it throws. */
  constructor(core: PoolCore, fd: number, identity: Identity, peer: string) {
    super(core);
    this.fd = fd;
    this.peer = peer;
    this.#engine = engine();
    if (this.#engine === RING && isLocal(fd) && !hasRing(core)) this.#engine = LOCAL;
    try {
      this.attach(core.helper.moat_tcp_add(core.index, fd, threadHere(identity)), TCP.eagerMax);
    } catch (error) {
      libc().close(fd);
      throw error;
    }
    this.#landings = new Landings(core, this.conn);
  }

  alignTo(offset: number): void {
    this.#landings.align = offset;
  }

  override next(): Ended | undefined {
    for (;;) {
      if (this.#landings.find() && !this.#began) this.#begin();
      const ended = super.next();
      if (!ended || !this.#landings.drop(ended.op)) return ended;
    }
  }

  /** `"tcp (io_uring)"`, or `"tcp (sockets: WHY)"`. */
  get name(): string {
    return `tcp (${this.#engine})`;
  }

  override send(op: number): void {
    if (!this.#began) this.#begin();
    super.send(op);
  }

  override recv(op: number, bytes: number): boolean {
    if (!this.#began && bytes >= RING_FROM.receive) this.#begin();
    return super.recv(op, bytes);
  }

  // The pool's ring pins the pool's memory: it is made when there is something that it may be good for.
  #begin(): void {
    this.#began = true;
    if (this.#engine !== RING) return;
    const { core } = this, ring = ringOf(core);
    if (ring.refused) this.#engine = `sockets: ${ring.refused.message}`;
    else core.helper.moat_tcp_ring(this.conn, zeroCopyFrom(core), RING_FROM.receive);
  }

  protected open(op: number, at: number): Opened {
    const { report } = this, got = Number(report.getBigUint64(at + OP.got, true));
    return this.copyOf(op, at) ?? this.#landings.open(report.getUint32(at + OP.seq, true), got);
  }

  stopReceiving(): void {
    this.core.helper.moat_tcp_drop(this.conn);
  }

  async destroy(): Promise<void> {
    const { helper } = this.core, patience = performance.now() + FAREWELL;
    let done: number;
    // Input that nobody reads would make close(2) a reset, which takes what is on its way with it.
    while ((done = helper.moat_tcp_done(this.conn)) === WAIT && performance.now() < patience) {
      await pause();
    }
    while (this.next()); // places that were found for nobody
    this.detach();
    if (done === RESET) resetOnClose(this.fd);
    libc().close(this.fd);
  }
}

function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 1));
}
