/**
 * Event channels of the connection manager.
 *
 * @module
 */
import type { MoatError } from "../../ffi/errors.ts";
import { errno } from "../../ffi/libc.ts";
import { rdmacm } from "../../ffi/rdmacm.ts";
import { RDMA_EVENT_CHANNEL } from "../../ffi/verbs_layout.ts";
import { type RawEvent, readEvent } from "./cm_event.ts";
import { HOW_TO_MAKE_A_DEVICE, verbError } from "./errors.ts";
import { Watch } from "./events.ts";
import { read64, structAt } from "./native.ts";
import { Resource } from "./resource.ts";

/** What an event is for: an id. */
export interface EventTarget {
  /** Takes an event, which has been acknowledged. */
  handle(event: RawEvent): void;
}

let shared: EventChannel | undefined;

const ENODEV = 19, ENOENT = 2;

// The connection manager is not there at all without a device or its module.
function unavailable(number: number): MoatError {
  const verb = "rdma_create_event_channel";
  return number === ENODEV || number === ENOENT
    ? verbError(verb, number, {
      code: "NO_DEVICE",
      hint: `this host has no RDMA device, or lacks the module rdma_ucm; ${HOW_TO_MAKE_A_DEVICE}`,
    })
    : verbError(verb, number);
}

/**
 * An event channel, `struct rdma_event_channel`, in the event loop: rdma_create_event_channel(3). Events are
 * copied and acknowledged as they are read, so that destroying an id never waits.
 */
export class EventChannel extends Resource {
  /** The address of the `struct rdma_event_channel`. */
  readonly address: number;
  /** Its descriptor, which does not block. */
  readonly fd: number;
  /** The ids by their addresses. */
  readonly targets: Map<number, EventTarget> = new Map();
  readonly #watch: Watch;
  readonly #out = new Uint8Array(8);

  /** Makes a channel. It stays until it is closed; {@linkcode EventChannel.shared} is closed with its last id. */
  constructor() {
    super([]);
    this.address = rdmacm().rdma_create_event_channel();
    if (this.address === 0) throw unavailable(errno());
    this.fd = structAt(this.address, RDMA_EVENT_CHANNEL.size).getInt32(RDMA_EVENT_CHANNEL.fd, true);
    this.#watch = new Watch(this.fd, () => this.#drain());
  }

  /** The channel for ids that were not given one. It is closed when the last of them is. */
  static shared(): EventChannel {
    return shared ??= new EventChannel();
  }

  #drain(): boolean {
    let any = false;
    while (!this.closed && rdmacm().rdma_get_cm_event(this.address, this.#out) === 0) {
      any = true;
      const address = read64(new DataView(this.#out.buffer), 0);
      const event = readEvent(address);
      rdmacm().rdma_ack_cm_event(address);
      const target = this.targets.get(event.listenId) ?? this.targets.get(event.id);
      if (target) target.handle(event);
      else if (event.type === "CONNECT_REQUEST") rdmacm().rdma_destroy_id(event.id);
    }
    return any;
  }

  /** Closes the shared channel. */
  protected override onUnused(): void {
    if (shared === this) this.close();
  }

  /** Frees the native object. */
  protected override destroy(): void {
    if (shared === this) shared = undefined;
    this.#watch?.end();
    rdmacm().rdma_destroy_event_channel(this.address);
  }
}
