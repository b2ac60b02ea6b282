/**
 * Memory regions: memory a device may use.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { ibverbs } from "../../ffi/ibverbs.ts";
import { errno } from "../../ffi/libc.ts";
import { ACCESS } from "../../ffi/verbs_enums.ts";
import { IBV_MR } from "../../ffi/verbs_layout.ts";
import { verbError } from "./errors.ts";
import { type NativeMemory, structAt } from "./native.ts";
import type { ProtectionDomain } from "./protection_domain.ts";
import { Resource } from "./resource.ts";

/** What a device may do with a region, or with a queue pair's peer's requests. Reading locally is always allowed. */
export interface AccessFlags {
  /** Receives and RDMA reads may write it. */
  readonly localWrite?: boolean;
  /** The peer may write it; needs `localWrite`. */
  readonly remoteWrite?: boolean;
  /** The peer may read it. */
  readonly remoteRead?: boolean;
  /** The peer may do atomics on it; needs `localWrite`. */
  readonly remoteAtomic?: boolean;
}

/** The bits of `enum ibv_access_flags`. */
export function accessBits(access: AccessFlags): number {
  return (access.localWrite ? ACCESS.LOCAL_WRITE : 0) |
    (access.remoteWrite ? ACCESS.REMOTE_WRITE : 0) |
    (access.remoteRead ? ACCESS.REMOTE_READ : 0) |
    (access.remoteAtomic ? ACCESS.REMOTE_ATOMIC : 0);
}

/** The bits by their names. */
export function accessFlags(bits: number): AccessFlags {
  return {
    localWrite: (bits & ACCESS.LOCAL_WRITE) !== 0,
    remoteWrite: (bits & ACCESS.REMOTE_WRITE) !== 0,
    remoteRead: (bits & ACCESS.REMOTE_READ) !== 0,
    remoteAtomic: (bits & ACCESS.REMOTE_ATOMIC) !== 0,
  };
}

/** A scatter/gather element, `struct ibv_sge`: a piece of registered memory. */
export interface Segment {
  /** Where it begins. */
  readonly address: number;
  /** Bytes. */
  readonly length: number;
  /** The local key of its region. */
  readonly lkey: number;
}

/** Where an RDMA read, write or atomic goes at the peer. */
export interface RemoteAddress {
  /** An address inside the peer's region. */
  readonly address: number;
  /** The region's remote key. */
  readonly rkey: number;
}

/** A memory region, `struct ibv_mr`: ibv_reg_mr(3). */
export class MemoryRegion extends Resource {
  /** The address of the `struct ibv_mr`. */
  readonly address: number;
  /** The address of the region's first byte. */
  readonly addr: number;
  /** Bytes. */
  readonly length: number;
  /** The local key, for segments. */
  readonly lkey: number;
  /** The remote key, for the peer's requests. */
  readonly rkey: number;
  /** The memory that was allocated with the region, if it was. */
  readonly memory: NativeMemory | undefined;
  readonly #release: (() => void) | undefined;

  /** Use the methods of {@linkcode ProtectionDomain}. */
  constructor(
    pd: ProtectionDomain,
    addr: number,
    length: number,
    access: AccessFlags,
    release?: () => void,
    memory?: NativeMemory,
  ) {
    const fine = (n: number): boolean => Number.isSafeInteger(n) && n > 0;
    if (!fine(addr) || !fine(length)) {
      throw new MoatError("INVALID_ARGUMENT", `a memory region of ${length} bytes at ${addr}`, {
        hint: "pass an address and a number of bytes",
      });
    }
    super([pd]);
    this.addr = addr;
    this.length = length;
    this.memory = memory;
    this.address = ibverbs().ibv_reg_mr(pd.address, addr, length, accessBits(access));
    if (this.address === 0) {
      const number = errno();
      this.lkey = this.rkey = 0;
      this.close();
      throw verbError("ibv_reg_mr", number, {
        device: pd.context.deviceName,
        bytes: length,
        what: `${length} bytes`,
      });
    }
    this.#release = release;
    const view = structAt(this.address, IBV_MR.size);
    this.lkey = view.getUint32(IBV_MR.lkey, true);
    this.rkey = view.getUint32(IBV_MR.rkey, true);
  }

  /** The bytes, if the memory was allocated with the region by {@linkcode ProtectionDomain.allocate}. */
  get bytes(): Uint8Array<ArrayBuffer> {
    if (!this.memory) {
      throw new MoatError("INVALID_ARGUMENT", "this memory region has no bytes of its own", {
        hint: "use the buffer it was registered for",
      });
    }
    return this.memory.bytes;
  }

  /** A piece of the region as a scatter/gather element; all of it by default. */
  segment(offset = 0, length: number = this.length - offset): Segment {
    this.#check(offset, length);
    return { address: this.addr + offset, length, lkey: this.lkey };
  }

  /** A place in the region, for the peer's requests. */
  remote(offset = 0): RemoteAddress {
    this.#check(offset, 0);
    return { address: this.addr + offset, rkey: this.rkey };
  }

  #check(offset: number, length: number): void {
    this.assertOpen();
    if (offset >= 0 && length >= 0 && offset + length <= this.length) return;
    throw new MoatError(
      "INVALID_ARGUMENT",
      `${length} bytes at ${offset} of a memory region of ${this.length}`,
      { hint: "a segment lies inside its region" },
    );
  }

  /** Unregisters the memory. */
  protected override destroy(): void {
    if (this.address === 0) return;
    const r = ibverbs().ibv_dereg_mr(this.address);
    this.#release?.();
    if (r !== 0) throw verbError("ibv_dereg_mr", r);
  }
}
