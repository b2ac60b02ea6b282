/**
 * `listen` and `connect`.
 *
 * @module
 */
import { describe, MoatError } from "../ffi/errors.ts";
import { type Address, parseAddress } from "./address.ts";
import { type Channel, makeChannel } from "./channel.ts";
import type { PoolCore } from "./memory/core.ts";
import { coreOf, Pool } from "./memory/pool.ts";
import { reactor } from "./reactor.ts";
import { connectRdma, RdmaListener } from "./rdma/connect.ts";
import { connectShm, ShmListener } from "./shm/connect.ts";
import { connectTcp, TcpListener } from "./tcp/connect.ts";
import type { Acceptor, ConnectSettings, Transport } from "./transport.ts";

/** Settings of {@linkcode connect} and {@linkcode listen}. */
export interface ConnectOptions {
  /** The pool whose buffers are sent and received. By default one of 64 MiB of its own. */
  pool?: Pool;
  /** Milliseconds each step of connecting may take: the address, the route, the greeting. 10,000 by default. */
  timeout?: number;
  /** Stops waiting. */
  signal?: AbortSignal;
  /** `shm://`: user ids, besides that of this process, that may be at the other end. */
  uids?: readonly number[];
  /**
   * Microseconds that `recv()` looks for a message before it goes to sleep, blocking this thread. 0 by
   * default. Some tens make the shortest round trips.
   */
  spin?: number;
  /**
   * `rdma://`: `"raw"` talks to programs that are not Moat. A message is one SEND and one RECV, receives have to
   * be waiting before the peer sends, nothing holds a sender back, and messages are as large as the device
   * allows. `"moat"` by default.
   */
  protocol?: "moat" | "raw";
  /** The largest message, in bytes, for `recv()` without a buffer over `"raw"`. 65,536 by default. */
  rawMessageBytes?: number;
}

function settings(options: ConnectOptions): ConnectSettings & { spin: number } {
  const { timeout = 10_000, spin = 0, uids = [], signal } = options;
  const { protocol = "moat", rawMessageBytes = 65536 } = options;
  if (protocol !== "moat" && protocol !== "raw") {
    throw new MoatError("INVALID_ARGUMENT", `the protocol ${describe(protocol)}`, {
      hint: 'use "moat" or "raw"',
    });
  }
  if (!Number.isSafeInteger(rawMessageBytes) || rawMessageBytes < 1 || rawMessageBytes > 2 ** 31) {
    throw new MoatError("INVALID_ARGUMENT", `rawMessageBytes of ${describe(rawMessageBytes)}`, {
      hint: "pass a number of bytes, from 1 to 2147483648",
    });
  }
  if (typeof timeout !== "number" || !(timeout > 0) || timeout > 0x7fffffff) {
    throw new MoatError("INVALID_ARGUMENT", `a timeout of ${describe(timeout)}`, {
      hint: "pass milliseconds, more than 0",
    });
  }
  if (typeof spin !== "number" || !(spin >= 0) || spin > 1e6) {
    throw new MoatError("INVALID_ARGUMENT", `spin of ${describe(spin)}`, {
      hint: "pass microseconds, from 0 to 1000000",
    });
  }
  if (options.pool !== undefined && !(options.pool instanceof Pool)) {
    throw new MoatError("INVALID_ARGUMENT", `${describe(options.pool)} is not a Pool`, {
      hint: "pass what Pool.create() returned",
    });
  }
  const raw = protocol === "raw" ? { messageBytes: rawMessageBytes } : undefined;
  return { timeout, spin, uids, signal, raw };
}

interface OwnPool {
  core: PoolCore;
  done(): void;
}

// A pool made for one channel or listener is closed with it.
function poolFor(options: ConnectOptions): OwnPool {
  if (options.pool) {
    const core = coreOf(options.pool);
    core.assertOpen();
    return { core, done: () => {} };
  }
  const pool = Pool.create();
  return { core: coreOf(pool), done: () => void pool.close() };
}

function open(core: PoolCore, to: Address, settings: ConnectSettings): Promise<Transport> {
  if (to.transport === "shm") {
    noRaw(to, settings);
    return connectShm(core, to.name, to.text, settings);
  }
  if (to.transport === "rdma") return connectRdma(core, to, settings);
  noRaw(to, settings);
  return connectTcp(core, to, settings);
}

function noRaw(to: Address, { raw }: ConnectSettings): void {
  if (!raw) return;
  throw new MoatError("INVALID_ARGUMENT", `the protocol "raw" for ${to.text}`, {
    hint: "it is for rdma://",
  });
}

/**
 * Connects to a listener.
 *
 * @example
 * ```ts ignore
 * await using channel = await connect("shm://files", { pool });
 * ```
 *
 * @param address `shm://name`, or `shm:///absolute/path` of a socket; or `rdma://host:port` or `tcp://host:port`
 * @throws {MoatError} `INVALID_ARGUMENT`, `CONNECTION_REFUSED`, `PERMISSION_DENIED`, `TIMED_OUT`, `PEER_LOST`
 * or `PEER_PROTOCOL`; with a host also `ADDRESS_ERROR` and `UNREACHABLE`; for `rdma://` also
 * `LIBRARY_NOT_FOUND`, `NO_DEVICE` and `VERB_FAILED`; or `signal.reason`.
 */
export async function connect(address: string, options: ConnectOptions = {}): Promise<Channel> {
  const parsed = parseAddress(address);
  const { spin, ...rest } = settings(options);
  rest.signal?.throwIfAborted();
  const { core, done } = poolFor(options);
  reactor().hold(1);
  try {
    const transport = await open(core, parsed, rest);
    return makeChannel(core, transport, spin, done);
  } catch (error) {
    done();
    throw error;
  } finally {
    reactor().hold(-1);
  }
}

/**
 * Listens for connections.
 *
 * @example
 * ```ts ignore
 * await using listener = await listen("shm://files", { pool });
 * for await (const channel of listener) serve(channel);
 * ```
 *
 * @param address `shm://name`, or `shm:///absolute/path` of a socket; or `rdma://host:port` or `tcp://host:port`,
 * where an empty host means every address, and port 0 a free one: see {@linkcode Listener.address}
 * @throws {MoatError} `INVALID_ARGUMENT`, `ADDRESS_IN_USE`, `LIBRARY_NOT_FOUND`, `NO_DEVICE` or `PERMISSION_DENIED`
 */
export function listen(address: string, options: ConnectOptions = {}): Promise<Listener> {
  return Promise.resolve().then(async () => {
    const parsed = parseAddress(address), { spin, ...rest } = settings(options);
    rest.signal?.throwIfAborted();
    const own = poolFor(options);
    try {
      const inner = await acceptor(own.core, parsed, rest);
      return make(own.core, inner, inner.address, spin, own.done);
    } catch (error) {
      own.done();
      throw error;
    }
  });
}

function acceptor(
  core: PoolCore,
  at: Address,
  settings: ConnectSettings,
): Acceptor | Promise<Acceptor> {
  if (at.transport === "rdma") return RdmaListener.open(core, at, settings);
  noRaw(at, settings);
  if (at.transport !== "shm") return TcpListener.open(core, at, settings);
  return new ShmListener(core, at.name, at.text, settings);
}

interface Waiter {
  resolve(channel: Channel): void;
  reject(reason: unknown): void;
  held: boolean;
}

let make: (
  core: PoolCore,
  inner: Acceptor,
  address: string,
  spin: number,
  done: () => void,
) => Listener;

/** Accepts connections. Made by {@linkcode listen}. */
export class Listener implements AsyncDisposable, AsyncIterable<Channel> {
  /** The address it listens at. */
  readonly address: string;
  readonly #core: PoolCore;
  readonly #inner: Acceptor;
  readonly #spin: number;
  readonly #done: () => void;
  readonly #waiters: Waiter[] = [];
  #referenced = true;
  #closed = false;

  static {
    make = (core, inner, address, spin, done) => new Listener(core, inner, address, spin, done);
  }

  private constructor(
    core: PoolCore,
    inner: Acceptor,
    address: string,
    spin: number,
    done: () => void,
  ) {
    this.#core = core;
    this.#inner = inner;
    this.address = address;
    this.#spin = spin;
    this.#done = done;
    inner.onready = () => this.#hand();
  }

  /** The pool of the channels it accepts. */
  get pool(): Pool {
    return this.#core.pool;
  }

  /**
   * The next connection.
   *
   * @throws {MoatError} `CHANNEL_CLOSED` when the listener is closed, `SYSTEM` when the process has no more
   * descriptors; or `signal.reason`.
   */
  accept(options: { signal?: AbortSignal } = {}): Promise<Channel> {
    const { signal } = options;
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (this.#closed) return Promise.reject(closedError(this.address));
    return new Promise((resolve, reject) => {
      const waiter: Waiter = { resolve, reject, held: this.#referenced };
      if (waiter.held) reactor().hold(1);
      signal?.addEventListener("abort", () => {
        const index = this.#waiters.indexOf(waiter);
        if (index < 0) return;
        this.#waiters.splice(index, 1);
        this.#release(waiter);
        reject(signal.reason);
      }, { once: true });
      this.#waiters.push(waiter);
      this.#hand();
    });
  }

  #release(waiter: Waiter): void {
    if (waiter.held) reactor().hold(-1);
    waiter.held = false;
  }

  #hand(): void {
    while (this.#waiters.length > 0) {
      const transport = this.#inner.take();
      if (!transport) break;
      const waiter = this.#waiters.shift()!;
      this.#release(waiter);
      try {
        waiter.resolve(makeChannel(this.#core, transport, this.#spin, () => {}));
      } catch (error) {
        waiter.reject(error);
      }
    }
    if (this.#inner.error === undefined) return;
    const error = this.#inner.error;
    this.#inner.error = undefined;
    for (const waiter of this.#waiters.splice(0)) {
      this.#release(waiter);
      waiter.reject(error);
    }
  }

  /** Accepts connection after connection, until the listener is closed. */
  async *[Symbol.asyncIterator](): AsyncIterableIterator<Channel> {
    while (!this.#closed) {
      let channel;
      try {
        channel = await this.accept();
      } catch (error) {
        if (this.#closed) return;
        throw error;
      }
      yield channel;
    }
  }

  /** Stops listening. Channels that were accepted go on. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const waiter of this.#waiters.splice(0)) {
      this.#release(waiter);
      waiter.reject(closedError(this.address));
    }
    await this.#inner.close();
    this.#done();
  }

  /** The same as {@linkcode close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Lets a pending `accept()` keep the process alive. The default. */
  ref(): void {
    this.#referenced = true;
    for (const waiter of this.#waiters) {
      if (!waiter.held) reactor().hold(1);
      waiter.held = true;
    }
  }

  /** Lets the process end though `accept()` is pending. */
  unref(): void {
    this.#referenced = false;
    for (const waiter of this.#waiters) this.#release(waiter);
  }
}

function closedError(address: string): MoatError {
  return new MoatError("CHANNEL_CLOSED", `accept: the listener at ${address} is closed`);
}
