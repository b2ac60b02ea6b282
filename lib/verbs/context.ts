/**
 * An open device.
 *
 * @module
 */
import { ibverbs } from "../../ffi/ibverbs.ts";
import { cText } from "../../ffi/libc.ts";
import {
  IBV_CONTEXT,
  IBV_DEVICE,
  IBV_DEVICE_ATTR,
  IBV_DEVICE_ATTR_EX,
  IBV_PORT_ATTR,
} from "../../ffi/verbs_layout.ts";
import { type AsyncEvent, AsyncEvents } from "./async_events.ts";
import {
  type DeviceAttributes,
  type PortAttributes,
  readDeviceAttributes,
  readPortAttributes,
} from "./attributes.ts";
import { CompletionChannel } from "./completion_channel.ts";
import { CompletionQueue, type CompletionQueueOptions } from "./completion_queue.ts";
import { verbError } from "./errors.ts";
import { type ExtendedAttributes, queryExtended, readExtended } from "./extended_attributes.ts";
import { type GidEntry, isIPv4, readGidTable } from "./gid.ts";
import { read64, structAt } from "./native.ts";
import { ProtectionDomain } from "./protection_domain.ts";
import type { QueuePair } from "./queue_pair.ts";
import { Resource } from "./resource.ts";

const EOPNOTSUPP = 95;

/**
 * An open device, `struct ibv_context`. Everything else is made of it, and is closed with it.
 *
 * @example Looking at a device
 * ```ts ignore
 * using context = openDevice();
 * console.log(context.queryDevice().maxQp, context.queryPort(1).state);
 * for (const { index, gid, type } of context.gidTable(1)) console.log(index, gid, type);
 * ```
 */
export class Context extends Resource {
  /** The address of the `struct ibv_context`. */
  readonly address: number;
  /** The device's name. */
  readonly deviceName: string;
  /** How many interrupt vectors completions can be spread over. */
  readonly completionVectors: number;
  /** The queue pairs made here, by their addresses. For asynchronous events. */
  readonly queuePairs: Map<number, QueuePair> = new Map();
  /** The completion queues made here, by their addresses. */
  readonly completionQueues: Map<number, CompletionQueue> = new Map();
  readonly #owned: boolean;
  #events: AsyncEvents | undefined;
  readonly #asyncFd: number;

  /**
   * Use {@linkcode openDevice}, or {@linkcode CmId.context}.
   *
   * @param owned whether it is to be closed with this object; the connection manager's are not
   */
  constructor(address: number, owned: boolean) {
    super([]);
    const view = structAt(address, IBV_CONTEXT.numCompVectors + 4);
    this.address = address;
    this.deviceName = cText(read64(view, IBV_CONTEXT.device) + IBV_DEVICE.name);
    this.completionVectors = view.getInt32(IBV_CONTEXT.numCompVectors, true);
    this.#asyncFd = view.getInt32(IBV_CONTEXT.asyncFd, true);
    this.#owned = owned;
  }

  /** The device's limits and identity: ibv_query_device(3). */
  queryDevice(): DeviceAttributes {
    this.assertOpen();
    const bytes = new Uint8Array(IBV_DEVICE_ATTR.size);
    const r = ibverbs().ibv_query_device(this.address, bytes);
    if (r !== 0) throw verbError("ibv_query_device", r, { device: this.deviceName });
    return readDeviceAttributes(bytes);
  }

  /** The device's newer abilities: ibv_query_device_ex(3). All 0 where the driver knows none. */
  queryDeviceEx(): ExtendedAttributes {
    this.assertOpen();
    const bytes = new Uint8Array(IBV_DEVICE_ATTR_EX.size);
    const r = queryExtended(this.address, bytes);
    if (r !== 0 && r !== EOPNOTSUPP) {
      throw verbError("ibv_query_device_ex", r, { device: this.deviceName });
    }
    return readExtended(bytes);
  }

  /** The state of a port, the first by default: ibv_query_port(3). */
  queryPort(port = 1): PortAttributes {
    this.assertOpen();
    const bytes = new Uint8Array(IBV_PORT_ATTR.size);
    const r = ibverbs().ibv_query_port(this.address, port, bytes);
    if (r !== 0) {
      const { physPortCnt } = this.queryDevice();
      throw verbError("ibv_query_port", r, {
        device: this.deviceName,
        what: `port ${port}`,
        ...(port < 1 || port > physPortCnt ? { hint: `ports are 1 to ${physPortCnt}` } : {}),
      });
    }
    return readPortAttributes(bytes);
  }

  /** The entries of a port's GID table that are not empty: ibv_query_gid_table(3). */
  gidTable(port = 1): GidEntry[] {
    const { gidTblLen, linkLayer } = this.queryPort(port);
    return readGidTable(this.address, this.deviceName, port, gidTblLen, linkLayer);
  }

  /**
   * The entry a connection by hand would best use: RoCE v2 of an IPv4 address, then of an IPv6 address, then
   * RoCE v1; the first entry on InfiniBand.
   */
  preferredGid(port = 1): GidEntry | undefined {
    const table = this.gidTable(port), v2 = table.filter((entry) => entry.type === "RoCE v2");
    return v2.find((entry) => isIPv4(entry.bytes)) ??
      v2.find((entry) => !(entry.bytes[0] === 0xfe && entry.bytes[1] === 0x80)) ?? v2[0] ??
      table[0];
  }

  /** The P_Key table of a port, without invalid entries: ibv_query_pkey(3). */
  pkeys(port = 1): { index: number; pkey: number }[] {
    const { pkeyTblLen } = this.queryPort(port), found = [], bytes = new Uint8Array(2);
    for (let index = 0; index < pkeyTblLen; index++) {
      if (ibverbs().ibv_query_pkey(this.address, port, index, bytes) !== 0) continue;
      const pkey = bytes[0]! << 8 | bytes[1]!;
      if (pkey !== 0) found.push({ index, pkey });
    }
    return found;
  }

  /** Makes a protection domain: ibv_alloc_pd(3). */
  allocPd(): ProtectionDomain {
    return new ProtectionDomain(this);
  }

  /** Makes a completion channel: ibv_create_comp_channel(3). */
  createCompletionChannel(): CompletionChannel {
    return new CompletionChannel(this);
  }

  /** Makes a completion queue: ibv_create_cq(3). */
  createCq(options: CompletionQueueOptions = {}): CompletionQueue {
    return new CompletionQueue(this, options);
  }

  /**
   * Called for every asynchronous event, from the event loop: ibv_get_async_event(3). Events are
   * acknowledged before. Does not keep the process alive.
   */
  get onAsyncEvent(): ((event: AsyncEvent) => void) | undefined {
    return this.#events?.listener;
  }
  set onAsyncEvent(listener: ((event: AsyncEvent) => void) | undefined) {
    if (listener || this.#events) this.#asyncEvents().listener = listener;
  }

  /**
   * Asynchronous events, as they come. Waiting for one keeps the process alive.
   *
   * @param signal ends the waiting
   */
  async *asyncEvents(signal?: AbortSignal): AsyncGenerator<AsyncEvent, void> {
    const { queue } = this.#asyncEvents();
    for (let event; (event = await queue.next(signal)) !== undefined;) yield event;
  }

  #asyncEvents(): AsyncEvents {
    this.assertOpen();
    return this.#events ??= new AsyncEvents(this, this.#asyncFd);
  }

  /** Closes the device, if it was opened here. */
  protected override destroy(): void {
    this.#events?.end();
    contexts.delete(this.address);
    if (this.#owned) ibverbs().ibv_close_device(this.address);
  }
}

const contexts = new Map<number, Context>();

/** The object for a native context: the same one each time, while it is open. */
export function contextAt(address: number, owned: boolean): Context {
  let context = contexts.get(address);
  if (!context) contexts.set(address, context = new Context(address, owned));
  return context;
}
