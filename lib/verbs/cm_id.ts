/**
 * Ids of the connection manager: its sockets.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { errno } from "../../ffi/libc.ts";
import { rdmacm } from "../../ffi/rdmacm.ts";
import { runtime } from "../../ffi/runtime.ts";
import { CM_OPTION, PORT_SPACE } from "../../ffi/verbs_enums.ts";
import { RDMA_CM_ID, SOCKADDR_IN6 } from "../../ffi/verbs_layout.ts";
import { type CmEvent, eventError, type RawEvent } from "./cm_event.ts";
import { type ConnectionOptions, writeConnection } from "./connection_options.ts";
import { type Context, contextAt } from "./context.ts";
import { verbError } from "./errors.ts";
import { EventChannel, type EventTarget } from "./event_channel.ts";
import { AsyncQueue, within } from "./events.ts";
import { read64, structAt } from "./native.ts";
import type { ProtectionDomain } from "./protection_domain.ts";
import { createError, QueuePair } from "./queue_pair.ts";
import { type QueuePairOptions, readCapacity, writeInitAttributes } from "./queue_pair_options.ts";
import { Resource } from "./resource.ts";
import {
  formatAddress,
  numericHost,
  readAddress,
  type SocketAddress,
  writeAddress,
} from "./socket_address.ts";

/** The limits of a phase of connecting. */
export interface PhaseOptions {
  /** Milliseconds it may take. */
  timeout?: number;
  /** Ends the waiting; what the kernel has begun goes on until the id is closed. */
  signal?: AbortSignal;
}

/** A request to connect, that a listening id received. */
export interface ConnectRequest extends CmEvent {
  /** The id of the connection to be: accept or reject it, or close it, which rejects it as well. */
  readonly id: CmId;
}

interface Phase {
  readonly what: string;
  readonly wanted: string;
  readonly resolve: (event: CmEvent) => void;
  readonly reject: (error: MoatError) => void;
}

const FAILURES = [
  "ADDR_ERROR",
  "ROUTE_ERROR",
  "CONNECT_ERROR",
  "UNREACHABLE",
  "REJECTED",
  "DEVICE_REMOVAL",
  "DISCONNECTED",
];
// The kernel's own limits should come first: their errors say more.
const GRACE_MS = 500;
const EINVAL = 22, EADDRINUSE = 98, ENOTCONN = 107;
// ENODEV, EADDRNOTAVAIL, ENETUNREACH, EHOSTUNREACH
const NO_WAY = [19, 99, 101, 113];

/**
 * An id of the connection manager, `struct rdma_cm_id`: rdma_create_id(3). What a socket is to TCP.
 *
 * @example The active side
 * ```ts ignore
 * using id = CmId.create();
 * await id.resolveAddr("10.9.0.1", 7471, { timeout: 2000 });
 * await id.resolveRoute({ timeout: 2000 });
 * const pd = id.context.allocPd(), cq = id.context.createCq();
 * const qp = id.createQp(pd, { sendCq: cq });
 * await id.connect({ privateData: new TextEncoder().encode("hello"), timeout: 5000 });
 * ```
 */
export class CmId extends Resource implements EventTarget {
  /** The address of the `struct rdma_cm_id`. */
  readonly address: number;
  /** What the other side sent along last: with its request, its acceptance or its rejection. */
  privateData: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  /**
   * Resolves when the connection has ended, by either side or by the device, or the id is closed. Does not
   * keep the process alive; {@linkcode untilDisconnected} does.
   */
  readonly disconnected: Promise<void>;
  /** Called for every event of this id, from the event loop, before anything else is done with it. */
  onEvent: ((event: CmEvent) => void) | undefined;
  /** Gets every request to connect instead of those who wait. Does not keep the process alive. */
  onRequest: ((request: ConnectRequest) => void) | undefined;
  #channel: EventChannel;
  #phase: Phase | undefined;
  #leaving = false;
  #qp: QueuePair | undefined;
  #context: Context | undefined;
  #peer: string | undefined;
  readonly #requests = new AsyncQueue<ConnectRequest>();
  readonly #hangUp: () => void;

  /** Use {@linkcode CmId.create}. */
  constructor(channel: EventChannel, address: number) {
    super([channel]);
    this.#channel = channel;
    this.address = address;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.disconnected = promise;
    this.#hangUp = resolve;
    channel.targets.set(address, this);
  }

  /**
   * Makes an id for reliable connections.
   *
   * @param channel where its events come; by default one that all such ids share, closed with the last
   * @throws {MoatError} `LIBRARY_NOT_FOUND`, `VERB_FAILED`
   */
  static create(channel: EventChannel = EventChannel.shared()): CmId {
    const out = new Uint8Array(8);
    if (rdmacm().rdma_create_id(channel.address, out, 0, PORT_SPACE.TCP) !== 0) {
      throw verbError("rdma_create_id", errno());
    }
    return new CmId(channel, read64(new DataView(out.buffer), 0));
  }

  /** The event channel. */
  get channel(): EventChannel {
    return this.#channel;
  }

  /** The queue pair, once it was made. */
  get qp(): QueuePair | undefined {
    return this.#qp;
  }

  /**
   * The device the connection goes through, known after {@linkcode resolveAddr} or with a connect request. It
   * is opened by librdmacm, once for all ids of a device, and never closed.
   *
   * @throws {MoatError} `NO_DEVICE` before that
   */
  get context(): Context {
    if (this.#context && !this.#context.closed) return this.#context;
    const address = read64(this.#view(), RDMA_CM_ID.verbs);
    if (address === 0) {
      throw new MoatError("NO_DEVICE", "the id has no device yet", {
        hint: "resolveAddr() finds it, or bind() to an address of its interface",
      });
    }
    return this.#context = contextAt(address, false);
  }

  /** The port of the device. */
  get port(): number {
    return this.#view().getUint8(RDMA_CM_ID.portNum);
  }

  /** The own address, once bound or resolved; "" before. */
  get localAddress(): string {
    return this.#address(RDMA_CM_ID.srcAddr)?.host ?? "";
  }

  /** The own port, once bound or connected; 0 before. */
  get localPort(): number {
    return this.#address(RDMA_CM_ID.srcAddr)?.port ?? 0;
  }

  /** The other side's address, or "". */
  get peerAddress(): string {
    return this.#address(RDMA_CM_ID.dstAddr)?.host ?? "";
  }

  /** The other side's port, or 0. */
  get peerPort(): number {
    return this.#address(RDMA_CM_ID.dstAddr)?.port ?? 0;
  }

  #address(offset: number): SocketAddress | undefined {
    this.assertOpen();
    return readAddress(structAt(this.address + offset, SOCKADDR_IN6.size));
  }

  #view(): DataView {
    this.assertOpen();
    return structAt(this.address, RDMA_CM_ID.size);
  }

  #check(verb: string, r: number, what: string): void {
    if (r === 0) return;
    const number = errno(), peer = this.#peer;
    throw verbError(verb, number, {
      what,
      ...(peer === undefined ? {} : { peer }),
      ...(number === EADDRINUSE ? { code: "ADDRESS_IN_USE" as const } : {}),
      ...(NO_WAY.includes(number) ? { code: "ADDRESS_ERROR" as const } : {}),
    });
  }

  // ---- phases

  // Begins a phase and waits for the event that ends it.
  async #await(
    what: string,
    wanted: string,
    begin: () => void,
    limit: number,
    signal: AbortSignal | undefined,
  ): Promise<CmEvent> {
    this.assertOpen();
    signal?.throwIfAborted();
    if (this.#phase) {
      throw new MoatError("INVALID_ARGUMENT", `${what} during ${this.#phase.what}`, {
        hint: "await one before the next",
      });
    }
    const { promise, resolve, reject } = Promise.withResolvers<CmEvent>();
    const phase = this.#phase = { what, wanted, resolve, reject };
    try {
      begin();
      const peer = this.#peer === undefined ? "" : ` ${this.#peer}`;
      const hint = "the other side may be down, or busy, or not there";
      return await within(promise, `${what}${peer}`, limit, signal, hint);
    } finally {
      if (this.#phase === phase) this.#phase = undefined;
    }
  }

  /**
   * Finds the device and the own address that lead to a host: rdma_resolve_addr(3).
   *
   * @param options `timeout` is 2,000 ms by default; `source` an own address to bind to
   * @throws {MoatError} `ADDRESS_ERROR`, `NO_DEVICE`, `TIMED_OUT`, `VERB_FAILED`
   */
  async resolveAddr(
    host: string,
    port: number,
    options: PhaseOptions & { source?: string } = {},
  ): Promise<void> {
    const { timeout = 2000, signal, source } = options;
    const numeric = await numericHost(host);
    // In one block, so that the one which is passed keeps the other.
    const ends = new Uint8Array(2 * SOCKADDR_IN6.size);
    ends.set(writeAddress(numeric, port));
    if (source !== undefined) ends.set(writeAddress(source, 0), SOCKADDR_IN6.size);
    this.#peer = formatAddress({ host: numeric, port });
    await this.#await(
      "resolving",
      "ADDR_RESOLVED",
      () => {
        const r = rdmacm().rdma_resolve_addr(
          this.address,
          source === undefined ? 0 : runtime().addressOf(ends) + SOCKADDR_IN6.size,
          ends,
          timeout,
        );
        this.#check("rdma_resolve_addr", r, this.#peer!);
      },
      timeout + GRACE_MS,
      signal,
    );
  }

  /**
   * Finds the path to the address: rdma_resolve_route(3).
   *
   * @param options `timeout` is 2,000 ms by default
   * @throws {MoatError} `ADDRESS_ERROR`, `TIMED_OUT`, `VERB_FAILED`
   */
  async resolveRoute(options: PhaseOptions = {}): Promise<void> {
    const { timeout = 2000, signal } = options;
    await this.#await(
      "finding a route to",
      "ROUTE_RESOLVED",
      () => {
        this.#check("rdma_resolve_route", rdmacm().rdma_resolve_route(this.address, timeout), "");
      },
      timeout + GRACE_MS,
      signal,
    );
  }

  /**
   * Makes the id's queue pair, which connecting takes through its states: rdma_create_qp(3). Receives can be
   * posted at once, and should be.
   *
   * @param pd of {@linkcode context}
   * @throws {MoatError} `VERB_FAILED`
   */
  createQp(pd: ProtectionDomain, options: QueuePairOptions): QueuePair {
    this.assertOpen();
    pd.assertOpen();
    const init = writeInitAttributes(options), id = this.address;
    if (rdmacm().rdma_create_qp(id, pd.address, init) !== 0) {
      throw createError("rdma_create_qp", errno(), pd, options);
    }
    const qp = new QueuePair(pd, options, {
      address: read64(this.#view(), RDMA_CM_ID.qp),
      capacity: readCapacity(init),
      parents: [this],
      destroy: () => {
        this.#qp = undefined;
        rdmacm().rdma_destroy_qp(id);
      },
    });
    qp.peer = this.#peer;
    return this.#qp = qp;
  }

  /**
   * Connects to the resolved address: rdma_connect(3). Needs a queue pair.
   *
   * @param options `timeout` is 10,000 ms by default
   * @returns the private data of the other side's acceptance
   * @throws {MoatError} `CONNECTION_REFUSED` (nobody listens), `REJECTED` (see {@linkcode privateData}),
   * `UNREACHABLE`, `TIMED_OUT`, `VERB_FAILED`
   */
  async connect(options: ConnectionOptions & PhaseOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    this.#needQp("connect");
    const parameters = writeConnection(options);
    const { privateData } = await this.#await(
      "connecting to",
      "ESTABLISHED",
      () => {
        this.#check("rdma_connect", rdmacm().rdma_connect(this.address, parameters), "");
      },
      options.timeout ?? 10_000,
      options.signal,
    );
    return privateData;
  }

  #needQp(what: string): void {
    this.assertOpen();
    if (this.#qp) return;
    throw new MoatError("INVALID_ARGUMENT", `${what}() of an id without a queue pair`, {
      hint: "make it with id.createQp() first",
    });
  }

  // ---- the passive side

  /**
   * Binds to an own address: rdma_bind_addr(3).
   *
   * @param host "" for any
   * @param port 0 for any
   * @throws {MoatError} `ADDRESS_IN_USE`, `VERB_FAILED`
   */
  bind(host: string, port: number): void {
    this.assertOpen();
    const r = rdmacm().rdma_bind_addr(this.address, writeAddress(host, port));
    this.#check("rdma_bind_addr", r, formatAddress({ host: host || "*", port }));
  }

  /**
   * Binds to an own address and listens: rdma_bind_addr(3), rdma_listen(3). Requests come to
   * {@linkcode onRequest}, or else by {@linkcode nextRequest} and {@linkcode requests}.
   *
   * @param host "" for any
   * @param port 0 for any: see {@linkcode localPort}
   * @param backlog requests the kernel keeps that nobody has taken
   * @throws {MoatError} `ADDRESS_IN_USE`, `ADDRESS_ERROR`, `VERB_FAILED`
   */
  async listen(host: string, port: number, backlog = 128): Promise<void> {
    this.bind(host === "" ? "" : await numericHost(host), port);
    this.#check("rdma_listen", rdmacm().rdma_listen(this.address, backlog), `backlog ${backlog}`);
  }

  /** The next request to connect; `undefined` when the id is closed. Waiting keeps the process alive. */
  nextRequest(signal?: AbortSignal): Promise<ConnectRequest | undefined> {
    return this.#requests.next(signal);
  }

  /** Requests to connect, as they come, until the id is closed. Waiting keeps the process alive. */
  async *requests(signal?: AbortSignal): AsyncGenerator<ConnectRequest, void> {
    for (let request; (request = await this.nextRequest(signal)) !== undefined;) yield request;
  }

  /**
   * Accepts the request this id came with, and waits until the connection is up: rdma_accept(3). Needs a
   * queue pair; post receives before.
   *
   * @param options `timeout` is 10,000 ms by default
   * @throws {MoatError} `UNREACHABLE`, `REJECTED`, `TIMED_OUT`, `VERB_FAILED`
   */
  async accept(options: ConnectionOptions & PhaseOptions = {}): Promise<void> {
    this.#needQp("accept");
    const parameters = writeConnection(options);
    await this.#await(
      "accepting",
      "ESTABLISHED",
      () => {
        this.#check("rdma_accept", rdmacm().rdma_accept(this.address, parameters), "");
      },
      options.timeout ?? 10_000,
      options.signal,
    );
  }

  /**
   * Rejects the request this id came with: rdma_reject(3).
   *
   * @param privateData for the other side, at most 148 bytes
   */
  reject(privateData: Uint8Array = new Uint8Array(0)): void {
    this.assertOpen();
    const r = rdmacm().rdma_reject(this.address, privateData, privateData.byteLength);
    this.#check("rdma_reject", r, `${privateData.byteLength} bytes of private data`);
  }

  // ---- the end

  /**
   * Ends the connection: rdma_disconnect(3). The queue pair goes to the error state at once, and what is
   * posted is flushed. {@linkcode disconnected} resolves when the other side has answered or is given up; an
   * id answers by itself, and its queue pair goes to the error state then.
   * Does nothing if there is no connection.
   *
   * @throws {MoatError} `VERB_FAILED`
   */
  disconnect(): void {
    this.assertOpen();
    if (rdmacm().rdma_disconnect(this.address) === 0) {
      this.#leaving = true;
      void this.untilDisconnected();
      return;
    }
    const number = errno();
    if (number !== EINVAL && number !== ENOTCONN) throw verbError("rdma_disconnect", number);
  }

  /**
   * Waits for the end of the connection, and keeps the process alive as long.
   *
   * @throws {MoatError} `TIMED_OUT` if there is a limit, or the signal's reason
   */
  async untilDisconnected(options: PhaseOptions = {}): Promise<void> {
    const { timeout = 0, signal } = options;
    await within(
      this.disconnected,
      "waiting for the other side to disconnect",
      timeout,
      signal,
      "",
    );
  }

  /** For the event channel. */
  handle(event: RawEvent): void {
    const { type } = event;
    this.onEvent?.(event);
    if (this.closed) return;
    if (type === "CONNECT_REQUEST") {
      this.#requested(event);
      return;
    }
    if (event.privateData.length > 0) this.privateData = event.privateData;
    // The other side waits for an answer; its event of the answer would come after minutes without.
    if (type === "DISCONNECTED" && !this.#leaving) rdmacm().rdma_disconnect(this.address);
    if (type === "DISCONNECTED" || type === "DEVICE_REMOVAL") this.#hangUp();
    const phase = this.#phase;
    if (!phase) return;
    if (type === phase.wanted) {
      this.#phase = undefined;
      phase.resolve(event);
    } else if (FAILURES.includes(type)) {
      this.#phase = undefined;
      phase.reject(eventError(phase.what, event, this.#peer));
    }
  }

  #requested(event: RawEvent): void {
    const id = new CmId(this.#channel, event.id);
    id.privateData = event.privateData;
    id.#peer = formatAddress({ host: id.peerAddress, port: id.peerPort });
    const request = { ...event, id };
    if (this.onRequest) this.onRequest(request);
    else this.#requests.push(request);
  }

  /**
   * Moves the id's events to another channel: rdma_migrate_id(3).
   *
   * Closing that channel closes the id.
   */
  migrate(channel: EventChannel): void {
    this.assertOpen();
    channel.assertOpen();
    this.#check("rdma_migrate_id", rdmacm().rdma_migrate_id(this.address, channel.address), "");
    this.#channel.targets.delete(this.address);
    this.#channel = channel;
    channel.targets.set(this.address, this);
    this.adopt(channel);
  }

  // ---- options: rdma_set_option(3)

  /** Lets another id bind to the same address. */
  setReuseAddress(on = true): void {
    const value = new Uint8Array(new Int32Array([on ? 1 : 0]).buffer);
    this.#option(CM_OPTION.REUSEADDR, value, "REUSEADDR");
  }

  /** Listens on IPv6 only. */
  setIPv6Only(on = true): void {
    const value = new Uint8Array(new Int32Array([on ? 1 : 0]).buffer);
    this.#option(CM_OPTION.AFONLY, value, "AFONLY");
  }

  /** The type of service of packets (RFC 2474). Before the route is resolved. */
  setTypeOfService(tos: number): void {
    this.#option(CM_OPTION.TOS, Uint8Array.of(tos), "TOS");
  }

  /** How long the queue pair waits for acknowledgements: 4.096 us * 2^n, n up to 31. Before connecting. */
  setAckTimeout(n: number): void {
    this.#option(CM_OPTION.ACK_TIMEOUT, Uint8Array.of(n), "ACK_TIMEOUT");
  }

  #option(option: number, value: Uint8Array, name: string): void {
    this.assertOpen();
    const r = rdmacm().rdma_set_option(this.address, 0, option, value, value.byteLength);
    this.#check("rdma_set_option", r, name);
  }

  /** Frees the native object, and rejects requests nobody took. */
  protected override destroy(): void {
    this.#channel.targets.delete(this.address);
    this.#hangUp();
    this.#phase?.reject(
      new MoatError("RESOURCE_CLOSED", `${this.#phase.what}: the id was closed meanwhile`),
    );
    this.#phase = undefined;
    rdmacm().rdma_destroy_id(this.address);
    for (const request of this.#requests.end()) request.id.close();
  }
}
