/**
 * A pool at a device: registered once, for all connections.
 *
 * @module
 */
import type { PoolCore } from "../memory/core.ts";
import type { CmId } from "../verbs/cm_id.ts";
import type { Context } from "../verbs/context.ts";
import type { MemoryRegion } from "../verbs/memory_region.ts";
import type { ProtectionDomain } from "../verbs/protection_domain.ts";

/** A pool's protection domain and memory region at one device. */
export interface PoolDevice {
  readonly context: Context;
  readonly pd: ProtectionDomain;
  readonly mr: MemoryRegion;
}

interface Entry extends PoolDevice {
  /** Connections that use it, and 1 for the pool while that is open. */
  users: number;
}

const entries = new WeakMap<PoolCore, Map<number, Entry>>();

/**
 * The pool's registration at the device an id is bound to, made at the first use. It may be read by peers and
 * written only by receives of ours. To be given back by {@linkcode release}.
 */
export function poolDevice(core: PoolCore, id: CmId): PoolDevice {
  let devices = entries.get(core);
  if (!devices) entries.set(core, devices = new Map());
  const context = id.context, key = context.address;
  let entry = devices.get(key);
  if (!entry) {
    const pd = context.allocPd();
    try {
      const mr = pd.registerPool(core.pool, { localWrite: true, remoteRead: true });
      entry = { context, pd, mr, users: 1 };
    } catch (error) {
      pd.close();
      throw error;
    }
    // A page that is registered is never moved, so huge pages can only be made before.
    core.hugePages = false;
    devices.set(key, entry);
    const made = entry;
    core.onClose(() => {
      devices.delete(key);
      release(made);
    });
  }
  entry.users++;
  return entry;
}

/** Ends a use. The last one takes the registration down. */
export function release(device: PoolDevice): void {
  const entry = device as Entry;
  if (--entry.users === 0) entry.pd.close();
}
