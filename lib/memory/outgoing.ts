/**
 * Starting an operation that sends or writes memory: which guard it gets, and what happens when there is no
 * frame or mapping for it.
 *
 * @module
 */
import { describe, MoatError } from "../../ffi/errors.ts";
import type { PoolCore, Region } from "./core.ts";
import type { Resolved } from "./resolve.ts";
import { type Guard, isGuard } from "./guard.ts";
import { type Lent, lentOf } from "./lent.ts";

const ENOMEM = 12, ENOBUFS = 105;

/** An operation that has been started. */
export interface Outgoing {
  /** Its number. */
  readonly op: number;
  /** The guard it has. */
  readonly guard: Exclude<Guard, "auto">;
  /** What has to be kept until it ends. */
  readonly keep: unknown;
  /** To be called when it has ended. */
  readonly done?: () => void;
}

/** What is to be started. */
export interface Outbound {
  /** What it is called in errors. */
  readonly what: string;
  /** The guard that was asked for. */
  readonly asked: Guard;
  /** True if the transport can send it by the way for small messages, so that `"auto"` copies it. */
  readonly small: boolean;
  /** True if messages that are read in place can be sent from there. */
  readonly lent?: boolean;
}

/** Starts an operation with the guard that was asked for, or the nearest that can be had. */
export function startOut(
  core: PoolCore,
  { region, bytes, mapping }: Resolved,
  { what, asked, small, lent }: Outbound,
): Outgoing {
  const message = lent && asked !== "copy" ? lentOf(bytes) : undefined;
  if (message) return startLent(core, message, bytes, what);
  let guard: Exclude<Guard, "auto"> = !region || bytes.byteLength === 0
    ? "copy"
    : asked === "auto"
    ? (small ? "copy" : region.state.core.chooseAuto(region))
    : asked;
  let op = -ENOBUFS, keep: unknown;
  if (guard !== "copy") {
    op = region!.state.core.out(region!, bytes, guard);
    if (op === -ENOMEM || op === -ENOBUFS) { // no mapping or no frame: the copy is as safe
      core.counters.toCopy++;
      guard = "copy";
    } else if (op < 0) throw core.refusal(what, op);
  }
  if (guard === "copy") {
    op = core.outCopy(bytes, region);
    if (op === -ENOBUFS && asked === "auto" && region && !small) { // better guarded than copied twice
      const guarded = region.state.core.out(region, bytes, "cow");
      if (guarded >= 0) {
        op = guarded;
        guard = "cow";
      }
    }
    if (op === -ENOBUFS) {
      const staged = bytes.slice();
      op = core.outStaged(staged);
      keep = staged;
    }
    if (op < 0) throw core.refusal(what, op);
    if (mapping) assertCopied(core, op, () => mapping.assertUsable(what));
  }
  return { op, guard, keep };
}

// Nobody can change what is read in place: that is what its sender's guard is for, and the program's own writes go
// to private pages. So it is as good as guarded.
function startLent(core: PoolCore, lent: Lent, bytes: Uint8Array, what: string): Outgoing {
  const at = lent.address + bytes.byteOffset;
  const op = core.helper.moat_out_lent(core.index, at, bytes.byteLength);
  if (op < 0) throw core.refusal(what, op);
  lent.hold();
  return { op, guard: "cow", keep: undefined, done: () => lent.drop() };
}

// The file may have been cut off while its bytes were copied.
function assertCopied(core: PoolCore, op: number, check: () => void): void {
  try {
    check();
  } catch (error) {
    core.helper.moat_op_done(op, 0);
    core.helper.moat_op_free(op);
    throw error;
  }
}

/** Checks the guard that was asked for. */
export function assertGuard(what: string, asked: unknown): asserts asked is Guard {
  if (isGuard(asked)) return;
  throw new MoatError("INVALID_ARGUMENT", `${what} with the guard ${describe(asked)}`, {
    hint: 'use "auto", "cow", "wait", "move", "copy" or "none"',
  });
}

/** Checks that what is to be given away is a whole buffer. */
export function assertWhole(
  what: string,
  region: Region | undefined,
): asserts region is Region {
  const { version, byteLength } = region?.state ?? {};
  if (region?.offset === 0 && region.length === byteLength && version === undefined) return;
  throw new MoatError(
    "INVALID_ARGUMENT",
    region
      ? `${what} of a part of a buffer with the guard "move"`
      : `${what} of memory outside the pool with the guard "move"`,
    { hint: "move gives a whole buffer away: pass the PoolBuffer itself" },
  );
}
