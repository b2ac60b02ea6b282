/**
 * Channels: messages of any size, many in flight.
 *
 * @module
 */
import { describe, MoatError } from "../ffi/errors.ts";
import { endError } from "./channel_errors.ts";
import type {
  CloseOptions,
  Data,
  ReceiveOptions,
  ReceiveResult,
  SendOptions,
  SendResult,
} from "./channel_options.ts";
import { giveHeader, headerBytes } from "./header.ts";
import type { PoolCore } from "./memory/core.ts";
import { resolveData } from "./memory/resolve.ts";
import type { Guard } from "./memory/guard.ts";
import { assertGuard, assertWhole, startOut } from "./memory/outgoing.ts";
import type { Pool } from "./memory/pool.ts";
import { assertVerify, sealed } from "./memory/verify.ts";
import { Leases } from "./leases.ts";
import type { Message } from "./message.ts";
import { type Pending, PendingList, PendingSend } from "./pending.ts";
import { reactor, type Source } from "./reactor.ts";
import { ByteChannel } from "./stream/byte_channel.ts";
import { Bytes } from "./stream/bytes.ts";
import type { Receiver } from "./stream/carrier.ts";
import type { Transport } from "./transport.ts";

const EAGAIN = 11, EPIPE = 32, ECANCELED = 125;

// What small sends that are over at once resolve to, by their lengths: the program may keep any number of the promises,
// and the garbage collector has nothing to look at.
const COPIED = new Array<Promise<SendResult> | undefined>(1025);

// Messages that are handed over one after another without a turn of the event loop: a program that receives in a loop
// as fast as another sends shall not starve its timers and sockets.
const AT_ONCE = 128;

let make: (
  core: PoolCore,
  transport: Transport,
  spin: number,
  onDestroy: () => void,
) => Channel;

/**
 * A connection that carries whole messages, in order.
 *
 * Any number of sends and receives may be in flight. A receiver that does not receive holds the sender
 * back: its sends queue, guarded, until there is room. `for await (using message of channel)` receives
 * until the peer closes.
 */
export class Channel extends ByteChannel implements AsyncDisposable, AsyncIterable<Message> {
  readonly #core: PoolCore;
  readonly #transport: Transport;
  readonly #spin: number;
  readonly #pending = new PendingList();
  readonly #leases = new Leases();
  readonly #onDestroy: () => void;
  readonly #source: Source = {
    poll: () => {
      this.#atOnce = 0;
      return this.#poll();
    },
    arm: () => !this.#destroyed && this.#transport.arm(),
  };
  readonly #messages: Receiver<Message | null> = {
    arrived: (op) => this.#open(op),
    ended: () => null,
    failed: () => {},
  };
  readonly #bytes: Bytes;
  #receives: "recv" | "read" | undefined;
  // Receives since the event loop had a turn, and those under way.
  #atOnce = 0;
  #receiving = 0;
  #phase: "open" | "closing" | "closed" | "aborted" = "open";
  #reason: unknown;
  #referenced = true;
  #drained: (() => void)[] = [];
  #destroyed = false;
  #destroying: Promise<void> | undefined;

  static {
    make = (core, transport, spin, onDestroy) => new Channel(core, transport, spin, onDestroy);
  }

  private constructor(core: PoolCore, transport: Transport, spin: number, onDestroy: () => void) {
    const bytes = new Bytes({
      core,
      transport,
      take: (receiver) => this.#take(receiver, "read"),
      open: (op) => this.#open(op),
      cancel: (reason) => {
        this.#takeBack(reason);
        this.#poll();
      },
      eager: (bytes) => {
        this.#assertOpen("write");
        return this.#eager(bytes);
      },
      send: (bytes) => this.send(bytes),
      abort: (reason) => this.abort(reason),
    });
    super(bytes);
    this.#bytes = bytes;
    this.#core = core;
    this.#transport = transport;
    this.#spin = spin * 1000;
    this.#onDestroy = onDestroy;
    reactor().add(this.#source, transport.fd, transport.conn);
  }

  /** The pool whose buffers it sends and receives. */
  get pool(): Pool {
    return this.#core.pool;
  }

  /** What carries it: `"shm"`, `"rdma"`, or `"tcp"` with how it does its I/O, and if need be why. */
  get transport(): string {
    return this.#transport.name;
  }

  /** The other side, for people to read. */
  get peer(): string {
    return this.#transport.peer;
  }

  /** True once the channel has been closed or aborted here, or its connection has ended. */
  get closed(): boolean {
    return this.#phase !== "open" || this.#transport.state() !== "open";
  }

  // ---- sending

  /**
   * Sends a message. What is sent is what `data` holds at the call; `data` may be touched at once.
   *
   * Resolves when the data is no longer needed: for copied data at once, else when the receiver has
   * released the message (`shm://`) or read it (`rdma://`), or the kernel has let go of it (`tcp://`).
   *
   * @param data pool memory (a buffer, or any view of one) is sent from where it is; other memory is copied
   * @throws {MoatError} As a rejection: `INVALID_ARGUMENT`, `BUFFER_FREED`, `DETACHED_VIEW`, `FOREIGN_BUFFER`
   * or `MESSAGE_TOO_LARGE` for what cannot be sent; `CHANNEL_CLOSED`, `ABORTED`, `PEER_ABORTED`, `PEER_LOST`
   * or `PEER_PROTOCOL` for how the channel ended; `TOO_MANY_OPERATIONS`; `GUARD_TIMEOUT` in the one case
   * where a write could neither wait nor get a private page; or `signal.reason`.
   */
  send(data: Data, options: SendOptions = {}): Promise<SendResult> {
    try {
      return this.#send(data, options);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  #send(data: Data, options: SendOptions): Promise<SendResult> {
    const { guard: asked = "auto" } = options;
    assertGuard("send", asked);
    assertVerify("send", options.verify);
    options.signal?.throwIfAborted();
    this.#assertOpen("send");
    const core = this.#core;
    const resolved = resolveData(core, data, "send", this.#transport.reaches?.out);
    const { region, bytes } = resolved, header = headerBytes(options.header);
    const length = bytes.byteLength;
    if (asked === "move") assertWhole("send", region);
    const small = length <= this.#transport.eagerMax;

    if (!header && (length === 0 || (small && (asked === "auto" || asked === "copy" || !region)))) {
      if (this.#eager(bytes)) {
        resolved.mapping?.assertUsable("send"); // its bytes were read just now
        if (asked === "move" && region) core.retire(region.state);
        return length < COPIED.length
          ? COPIED[length] ??= Promise.resolve(Object.freeze(copied(length)))
          : Promise.resolve(copied(length));
      }
    }

    const started = startOut(core, resolved, { what: "send", asked, small }),
      { op, guard } = started;
    const keep = header ? [started.keep, giveHeader(core, op, header)] : started.keep;
    this.#count(guard, length, guard === "copy" ? length : 0);
    const state = guard === "copy" ? undefined : region?.state, stack = core.stack();
    const seal = sealed(core, started, region, options.verify, "send");
    const result = new Promise<SendResult>((resolve) => {
      const pending = new PendingSend(op, length, guard, state, stack, keep, seal, resolve);
      this.#begin(pending, options.signal);
    });
    if (asked === "move") core.retire(region!.state);
    this.#transport.send(op);
    reactor().wake(this.#source);
    return result;
  }

  // Sends a small message by copying it, if there is room now.
  #eager(bytes: Uint8Array): boolean {
    const r = this.#transport.eager(bytes), length = bytes.byteLength;
    if (r === 0) this.#count("copy", length, length);
    else if (r !== -EAGAIN) throw this.#errorOf(r, "send");
    return r === 0;
  }

  #count(guard: Exclude<Guard, "auto">, bytes: number, copiedBytes: number): void {
    const counters = this.#core.counters;
    counters.sends[guard]++;
    counters.bytesSent += bytes;
    counters.bytesCopiedOut += copiedBytes;
  }

  // ---- receiving

  /**
   * Receives the next message, or `null` when the peer has closed.
   *
   * @throws {MoatError} As a rejection: `POOL_EXHAUSTED` if the pool has no room for it (it stays for the next
   * receive), how the channel ended, or `signal.reason`.
   */
  recv(options?: Pick<ReceiveOptions, "signal">): Promise<Message | null>;
  /**
   * Receives the next message into a buffer. An access to the buffer waits until the message is there.
   * Resolves to `null`, with the buffer as it was, when the peer has closed.
   *
   * @throws {MoatError} As a rejection: `MESSAGE_TOO_LARGE` if the message does not fit (it stays for the
   * next receive), `GUARD_TIMEOUT` if an access waited in vain (likewise), how the channel
   * ended, or `signal.reason`.
   */
  recv(into: Data, options?: ReceiveOptions): Promise<ReceiveResult | null>;
  recv(
    into?: Data | ReceiveOptions,
    options: ReceiveOptions = {},
  ): Promise<Message | ReceiveResult | null> {
    try {
      return into === undefined || isOptions(into)
        ? this.#recvMessage(into ?? options)
        : this.#recvInto(into, options);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  // Messages and bytes are received in one order: who mixes them would find parts of messages gone.
  #by(how: "recv" | "read"): void {
    if ((this.#receives ??= how) === how) return;
    const other = this.#receives;
    throw new MoatError("INVALID_ARGUMENT", `${how}() on a channel that uses ${other}()`, {
      hint: "receive messages with recv(), or bytes with read() or readable, but not both",
    });
  }

  #open(op: number): Message {
    const transport = this.#transport;
    return this.#leases.message(op < 0 ? transport.taken() : transport.arrived(op));
  }

  #recvMessage({ signal }: ReceiveOptions): Promise<Message | null> {
    signal?.throwIfAborted();
    return this.#take(this.#messages, "recv", signal);
  }

  #take<T>(receiver: Receiver<T>, what: "recv" | "read", signal?: AbortSignal): Promise<T> {
    this.#by(what);
    this.#assertOpen(what);
    // Receives are told in their order: none is at once while another waits, or has ended and nobody has looked.
    const atOnce = this.#receiving === 0 && ++this.#atOnce < AT_ONCE;
    const got = atOnce ? this.#transport.take(this.#spin) : 0;
    if (got === 1) return Promise.resolve(receiver.arrived(-1));
    if (got === -EPIPE) return Promise.resolve(receiver.ended());
    if (got < 0) throw this.#errorOf(got, what);
    const op = this.#core.helper.moat_take_new(this.#core.index);
    if (op < 0) throw this.#core.refusal("recv", op);
    return new Promise<T>((resolve, reject) => {
      this.#post({
        ...receiving(op, undefined),
        stack: this.#core.stack(),
        bytes: 0,
        keep: undefined,
        resolve: (ended) =>
          resolve(ended.status === -EPIPE ? receiver.ended() : receiver.arrived(ended.op)),
        reject: (reason) => {
          receiver.failed();
          reject(reason);
        },
      }, signal);
    });
  }

  #recvInto(into: Data, { guard = "wait", signal }: ReceiveOptions): Promise<ReceiveResult | null> {
    if (guard !== "wait" && guard !== "none") {
      throw new MoatError("INVALID_ARGUMENT", `recv with the guard ${describe(guard)}`, {
        hint: 'use "wait" or "none"',
      });
    }
    signal?.throwIfAborted();
    this.#by("recv");
    this.#assertOpen("recv");
    const core = this.#core,
      { region, bytes, mapping } = resolveData(core, into, "recv", this.#transport.reaches?.in);
    if (bytes.byteLength === 0) {
      throw new MoatError("INVALID_ARGUMENT", "recv into a buffer of 0 bytes", {
        hint: "call recv() without a buffer to receive a message of any size",
      });
    }
    mapping?.assertWritable("recv");
    // Memory outside the pool gets its bytes from a buffer of the pool, once they are there.
    const through = region ? undefined : core.pool.alloc(bytes.byteLength);
    let target = region;
    if (through) target = resolveData(core, through, "recv").region;
    const op = target!.state.core.in(target!, through ? "none" : guard);
    return new Promise<ReceiveResult | null>((resolve, reject) => {
      this.#post({
        ...receiving(op, target!.state),
        stack: core.stack(),
        bytes: bytes.byteLength,
        guard: through ? "none" : guard,
        keep: bytes,
        resolve: ({ op, status, got }) => {
          if (status === -EPIPE) resolve(null);
          else {
            const header = this.#transport.header(op);
            core.counters.bytesReceived += got;
            core.counters.bytesCopiedIn += got;
            if (through) bytes.set(through.bytes.subarray(0, got));
            mapping?.assertUsable("recv");
            const copied = mapping && through ? { copied: true } : {};
            resolve({ bytes: got, header, ...copied });
          }
          through?.free();
        },
        reject: (reason) => {
          through?.free();
          reject(reason);
        },
      }, signal);
    });
  }

  #post(pending: Pending, signal: AbortSignal | undefined): void {
    this.#receiving++;
    this.#begin(pending, signal);
    const looks = this.#transport.recv(pending.op, pending.bytes);
    // One for which it is the event loop's turn is told by that, and those behind it are.
    if (looks && this.#atOnce < AT_ONCE) this.#poll();
    reactor().wake(this.#source);
  }

  /** Receives message after message, until the peer closes or the channel is closed here. */
  async *[Symbol.asyncIterator](): AsyncIterableIterator<Message> {
    while (this.#phase === "open") {
      let message: Message | null;
      try {
        message = await this.recv();
      } catch (error) {
        if (error instanceof MoatError && error.code === "CHANNEL_CLOSED") return;
        throw error;
      }
      if (message === null) return;
      yield message;
    }
  }

  #takeBack(reason?: unknown): void {
    for (const pending of this.#pending) {
      if (pending.kind !== "recv") continue;
      if (reason !== undefined) pending.cancelled = { reason };
      this.#transport.cancel(pending.op);
    }
  }

  // ---- operations in flight

  #begin(pending: Pending, signal: AbortSignal | undefined): void {
    this.#core.began(pending.op, pending);
    this.#pending.add(pending);
    if (this.#referenced) this.#hold(pending);
    if (!signal) return;
    const abort = (): void => {
      if (pending.settled) return;
      if (pending.kind === "send") {
        if (this.#settle(pending)) pending.reject(signal.reason);
        return;
      }
      pending.cancelled = { reason: signal.reason };
      this.#transport.cancel(pending.op); // unless its message is there already
      this.#poll();
    };
    signal.addEventListener("abort", abort, { once: true });
    const resolve = pending.resolve.bind(pending), reject = pending.reject.bind(pending);
    const done = (): void => signal.removeEventListener("abort", abort);
    pending.resolve = (ended) => (done(), resolve(ended));
    pending.reject = (reason) => (done(), reject(reason));
  }

  #hold(pending: Pending): void {
    pending.held = true;
    reactor().hold(1);
  }

  // True if who waits for it is to be told now.
  #settle(pending: Pending): boolean {
    if (pending.settled) return false;
    pending.settled = true;
    if (pending.held) reactor().hold(-1);
    return true;
  }

  // Collects what has ended.
  #poll(): boolean {
    if (this.#destroyed) return false;
    let any = false;
    for (let ended; (ended = this.#transport.next());) {
      any = true;
      const pending = this.#core.operation(ended.op) as Pending | undefined;
      if (pending) {
        this.#pending.remove(pending);
        if (pending.kind === "recv") this.#receiving--;
        const { op, status, got } = ended;
        if (status === 0 || (status === -EPIPE && pending.kind === "recv")) {
          // A message for nobody: its receive was given up just as it came. It must not be lost unseen.
          if (pending.settled && pending.kind === "recv" && !pending.state && status === 0) {
            try {
              const arrival = this.#transport.arrived(op);
              if (!arrival.copied) arrival.release(false);
            } catch {
              // It could not be opened, and nobody waits to be told.
            }
          }
          if (this.#settle(pending)) {
            try {
              pending.resolve(ended);
            } catch (error) { // the message could not be opened
              pending.reject(error);
            }
          }
        } else {
          const { kind, bytes, cancelled } = pending;
          const reason = cancelled && status === -ECANCELED
            ? cancelled.reason
            : this.#errorOf(status, kind, bytes, got);
          if (this.#settle(pending)) pending.reject(reason);
        }
      }
      this.#core.ended(ended.op);
    }
    if (!this.#transport.busy()) {
      for (const resolve of this.#drained.splice(0)) resolve();
      if (this.#phase === "aborted") this.#destroy().catch(() => {}); // there is nobody to tell
    }
    return any;
  }

  // ---- the end

  #assertOpen(what: string): void {
    this.#core.assertOpen();
    if (this.#phase === "aborted") {
      throw new MoatError("ABORTED", `${what} on a channel that was aborted`, {
        cause: this.#reason,
      });
    }
    if (this.#phase !== "open") {
      throw new MoatError("CHANNEL_CLOSED", `${what} on a closed channel`, {
        hint: "connect again",
      });
    }
  }

  #errorOf(status: number, what: string, room = 0, got = 0): MoatError {
    const aborted = this.#phase === "aborted" ? { reason: this.#reason } : undefined;
    return endError(this.#core, this.#transport, { status, what, room, got, aborted });
  }

  /**
   * Waits until the peer has received and released everything that was sent, then closes. Receives that
   * wait end with `CHANNEL_CLOSED`; messages not yet released are.
   */
  async close(options: CloseOptions = {}): Promise<void> {
    if (this.#phase === "aborted" || this.#phase === "closed") return;
    if (this.#phase === "open") this.#phase = "closing";
    this.#bytes.drop();
    this.#takeBack();
    this.#transport.stopReceiving?.();
    this.#poll();
    const { signal } = options;
    const abort = (): void => this.abort(signal?.reason);
    signal?.addEventListener("abort", abort, { once: true });
    if (signal?.aborted) abort();
    while (this.#phase === "closing" && this.#transport.busy()) {
      reactor().hold(1);
      reactor().wake(this.#source);
      await new Promise<void>((resolve) => this.#drained.push(resolve));
      reactor().hold(-1);
    }
    signal?.removeEventListener("abort", abort);
    if (this.#phase !== "closing") return;
    this.#phase = "closed";
    this.#letGo();
    this.#transport.end(false);
    this.#poll();
    await this.#destroy();
  }

  /**
   * Ends the channel at once: everything pending is rejected with `ABORTED`. Pages the peer is still
   * reading stay guarded until it has let go of them or is gone.
   *
   * @param reason becomes the `cause` of the errors
   */
  abort(reason?: unknown): void {
    if (this.#phase === "aborted" || this.#phase === "closed") return;
    this.#phase = "aborted";
    this.#reason = reason;
    this.#letGo();
    for (const pending of this.#pending) {
      if (this.#settle(pending)) pending.reject(this.#errorOf(-ECANCELED, pending.kind));
    }
    this.#transport.end(true);
    for (const resolve of this.#drained.splice(0)) resolve();
    reactor().wake(this.#source);
    this.#poll();
  }

  #letGo(): void {
    this.#leases.end();
  }

  #destroy(): Promise<void> {
    return this.#destroying ??= this.#giveBack();
  }

  async #giveBack(): Promise<void> {
    this.#destroyed = true;
    reactor().remove(this.#source, this.#transport.fd);
    const returned = this.#leases.returned();
    const soon = returned
      ? returned.then(() => this.#transport.destroy())
      : this.#transport.destroy();
    if (soon) {
      reactor().hold(1);
      try {
        await soon;
      } finally {
        reactor().hold(-1);
      }
    }
    this.#onDestroy();
  }

  /** The same as {@linkcode close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Lets pending operations keep the process alive. The default. */
  ref(): void {
    this.#referenced = true;
    for (const pending of this.#pending) {
      if (!pending.held && !pending.settled) this.#hold(pending);
    }
  }

  /** Lets the process end though operations are pending. */
  unref(): void {
    this.#referenced = false;
    for (const pending of this.#pending) {
      if (!pending.held || pending.settled) continue;
      pending.held = false;
      reactor().hold(-1);
    }
  }
}

/**
 * Makes a channel of a connection.
 *
 * @param spin microseconds that `recv()` looks for a message before it sleeps
 * @param onDestroy called when the channel has ended
 */
export function makeChannel(
  core: PoolCore,
  transport: Transport,
  spin: number,
  onDestroy: () => void,
): Channel {
  return make(core, transport, spin, onDestroy);
}

// What all receives begin with.
function receiving(
  op: number,
  state: Pending["state"],
): Omit<Pending, "stack" | "bytes" | "keep" | "resolve" | "reject"> {
  return {
    op,
    kind: "recv",
    state,
    settled: false,
    held: false,
    cancelled: undefined,
    previous: undefined,
    next: undefined,
  };
}

function copied(bytes: number): SendResult {
  return { bytes, guard: "copy", zeroCopy: false };
}

function isOptions(value: unknown): value is ReceiveOptions {
  return typeof value === "object" && value !== null &&
    Object.getPrototypeOf(value) === Object.prototype;
}
