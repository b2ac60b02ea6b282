/**
 * Received messages whose pages are not this program's for good.
 *
 * @module
 */
import { lend, type Lent } from "./memory/lent.ts";
import { Message } from "./message.ts";
import type { Arrival } from "./transport.ts";

/** A message that this side has not released. Nothing here keeps its view alive. */
interface Lease {
  readonly memory: WeakRef<ArrayBuffer>;
  readonly detaches: boolean;
  readonly release: (escaped: boolean) => void;
  /** Operations that read it, and what to do when the last has ended. */
  readers: number;
  ended: (() => void) | undefined;
}

/** The messages of a channel that have not been released. One that is dropped is, when it is collected. */
export class Leases {
  readonly #leases = new Set<Lease>();
  readonly #borrowed = new Set<Lease>();
  #returned = nothing;
  readonly #dropped = new FinalizationRegistry<Lease>((lease) => this.#end(lease));

  /** Makes the message of an arrival. */
  message({ bytes, header, copied, detaches = false, release, device }: Arrival): Message {
    if (copied) return new Message(bytes, header, true, nothing);
    const memory = new WeakRef(bytes.buffer);
    const lease: Lease = { memory, detaches, release, readers: 0, ended: undefined };
    if (device !== undefined) lend(bytes.buffer, borrowed(lease, device));
    this.#leases.add(lease);
    this.#dropped.register(bytes.buffer, lease, lease);
    return new Message(bytes, header, false, () => this.#end(lease));
  }

  // Detaches the view, then tells the transport that nobody reads the pages any more.
  #end(lease: Lease): void {
    if (!this.#leases.delete(lease)) return;
    this.#dropped.unregister(lease);
    const memory = lease.memory.deref(), escaped = memory?.detached ?? false;
    if (!escaped && !lease.detaches) memory?.transfer(0);
    if (lease.readers === 0) return lease.release(escaped);
    this.#borrowed.add(lease); // by a file that is written from it
    lease.ended = () => {
      lease.release(escaped);
      this.#borrowed.delete(lease);
      if (this.#borrowed.size === 0) this.#returned();
    };
  }

  /** Releases all of them. */
  end(): void {
    for (const lease of [...this.#leases]) this.#end(lease);
  }

  /** Resolves when no file is written from one any more; `undefined` if none is. */
  returned(): Promise<void> | undefined {
    return this.#borrowed.size > 0
      ? new Promise<void>((resolve) => this.#returned = resolve)
      : undefined;
  }
}

// What a file needs of a message to be written from where it lies.
function borrowed(lease: Lease, address: number): Lent {
  return {
    address,
    hold: () => void lease.readers++,
    drop: () => {
      if (--lease.readers === 0) lease.ended?.();
    },
  };
}

function nothing(): void {}
