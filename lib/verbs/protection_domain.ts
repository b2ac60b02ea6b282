/**
 * Protection domains: which queue pairs may use which memory.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { ibverbs } from "../../ffi/ibverbs.ts";
import { errno } from "../../ffi/libc.ts";
import { DESC, OP } from "../../ffi/layout.ts";
import type { PoolBuffer } from "../memory/buffer.ts";
import { resolveData } from "../memory/resolve.ts";
import { coreOf, type Pool } from "../memory/pool.ts";
import type { Context } from "./context.ts";
import { verbError } from "./errors.ts";
import { type AccessFlags, MemoryRegion } from "./memory_region.ts";
import { NativeMemory, structAt } from "./native.ts";
import { QueuePair } from "./queue_pair.ts";
import type { QueuePairOptions } from "./queue_pair_options.ts";
import { Resource } from "./resource.ts";

/** A protection domain, `struct ibv_pd`: ibv_alloc_pd(3). */
export class ProtectionDomain extends Resource {
  /** The address of the `struct ibv_pd`. */
  readonly address: number;
  /** The device. */
  readonly context: Context;

  /** Use {@linkcode Context.allocPd}. */
  constructor(context: Context) {
    super([context]);
    this.context = context;
    this.address = ibverbs().ibv_alloc_pd(context.address);
    if (this.address === 0) {
      this.close();
      throw verbError("ibv_alloc_pd", errno(), { device: context.deviceName });
    }
  }

  /**
   * Registers all memory of a pool, once for any number of buffers: ibv_reg_mr(3). What is registered is the
   * pool's view for devices, which no guard ever protects. Close the region before the pool.
   *
   * @throws {MoatError} `VERB_FAILED`, with the limit of locked memory where that is the likely cause
   */
  registerPool(pool: Pool, access: AccessFlags = { localWrite: true }): MemoryRegion {
    const core = coreOf(pool);
    core.assertOpen();
    return new MemoryRegion(this, core.device, core.frames * core.pageSize, access);
  }

  /**
   * Registers a buffer of a pool or a part of it, with an access of its own. The addresses are those of the
   * pool's view for devices. The buffer's pages stay its own until the region is closed, even if it is freed.
   *
   * @throws {MoatError} `INVALID_ARGUMENT` for memory that is no pool's, or whose pages guards have
   * scattered; `VERB_FAILED`
   */
  register(
    buffer: PoolBuffer | Uint8Array,
    access: AccessFlags = { localWrite: true },
    pool?: Pool,
  ): MemoryRegion {
    const owner = pool ?? ("pool" in buffer ? buffer.pool : undefined);
    if (owner === undefined) {
      throw new MoatError("INVALID_ARGUMENT", "register() of bytes without their pool", {
        hint:
          "pass a PoolBuffer, or the pool as the third argument; other memory is registered with " +
          "registerMemory()",
      });
    }
    const core = coreOf(owner), { region, bytes } = resolveData(core, buffer, "register");
    if (!region) {
      throw new MoatError("INVALID_ARGUMENT", "register() of bytes that are not the pool's", {
        hint: "allocate them with pool.alloc(), or register native memory with registerMemory()",
      });
    }
    const op = core.out(region, bytes, "none"); // holds the frames
    if (op < 0) throw core.refusal("register", op);
    core.began(op, { kind: "send", state: region.state, stack: undefined });
    try {
      const desc = structAt(core.helper.moat_op_address(op) + OP.desc, DESC.size);
      if (desc.getUint32(DESC.nruns, true) !== 1) {
        throw new MoatError(
          "INVALID_ARGUMENT",
          "register() of a buffer whose pages are scattered",
          {
            hint:
              "guarded sends gave it private pages: register the whole pool with registerPool(), or a " +
              "buffer that was not sent yet",
          },
        );
      }
      const start = core.device + desc.getUint32(DESC.runs, true) * core.pageSize +
        desc.getUint32(DESC.off, true);
      return new MemoryRegion(this, start, region.length, access, () => core.ended(op));
    } catch (error) {
      core.ended(op);
      throw error;
    }
  }

  /** Registers memory at an address: ibv_reg_mr(3). It must stay mapped as long as the region. */
  registerMemory(
    address: number,
    bytes: number,
    access: AccessFlags = { localWrite: true },
  ): MemoryRegion {
    return new MemoryRegion(this, address, bytes, access);
  }

  /** New memory with a region over it, which goes with the region. For experiments without a pool. */
  allocate(bytes: number, access: AccessFlags = { localWrite: true }): MemoryRegion {
    const memory = new NativeMemory(bytes);
    try {
      return new MemoryRegion(this, memory.address, bytes, access, () => memory.close(), memory);
    } catch (error) {
      memory.close();
      throw error;
    }
  }

  /** Makes a queue pair: ibv_create_qp(3). */
  createQp(options: QueuePairOptions): QueuePair {
    return QueuePair.create(this, options);
  }

  /** Frees the native object. */
  protected override destroy(): void {
    if (this.address === 0) return;
    const r = ibverbs().ibv_dealloc_pd(this.address);
    if (r !== 0) throw verbError("ibv_dealloc_pd", r, { device: this.context.deviceName });
  }
}
