/**
 * The io_uring ring of a pool (ffi/helper/uring.h): made at its first use, watched by the doorbell.
 *
 * @module
 */
import { MoatError } from "../ffi/errors.ts";
import { URING_QUERY } from "../ffi/helper.ts";
import type { PoolCore } from "./memory/core.ts";
import { reactor } from "./reactor.ts";

/** A pool's ring, or why there is none. */
export interface Ring {
  /** Its descriptor; less than 0 if io_uring cannot be had. */
  readonly fd: number;
  /** True if the pool's memory is registered with it. */
  readonly fixed: boolean;
  /** Why it cannot be had, for people. */
  readonly refused?: MoatError;
}

const EPERM = 1, ENOMEM = 12, ENOSYS = 38;

const rings = new WeakMap<PoolCore, Ring>();

/** The ring of a pool, made at the first call. Where there can be none, it says why. */
export function ringOf(core: PoolCore): Ring {
  let ring = rings.get(core);
  if (!ring) {
    ring = open(core);
    rings.set(core, ring);
  }
  return ring;
}

/** Whether a pool's ring has been made. */
export function hasRing(core: PoolCore): boolean {
  return (rings.get(core)?.fd ?? -1) >= 0;
}

function open(core: PoolCore): Ring {
  const { helper, index } = core;
  core.collapseAll();
  const fd = helper.moat_uring_open(index);
  if (fd < 0) return { fd, fixed: false, refused: refusal(-fd) };
  const r = helper.moat_uring_watch(index, reactor().bell);
  if (r < 0) return { fd: r, fixed: false, refused: refusal(-r) };
  return { fd, fixed: helper.moat_uring_query(index, URING_QUERY.registered) > 0 };
}

function refusal(errno: number): MoatError {
  const [why, hint] = errno === EPERM
    ? [
      "EPERM: io_uring is forbidden here",
      "by a container's seccomp profile, or by sysctl kernel.io_uring_disabled",
    ]
    : errno === ENOSYS
    ? ["ENOSYS: the kernel has no io_uring, or one from before Linux 5.5", "use a newer kernel"]
    : errno === ENOMEM
    ? ["ENOMEM", "raise RLIMIT_MEMLOCK (ulimit -l)"]
    : [`errno ${errno}`, "the limit may be descriptors or memory"];
  return new MoatError("SYSTEM", `io_uring_setup failed: ${why}`, { errno, hint });
}
