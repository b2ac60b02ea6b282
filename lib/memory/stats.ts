/**
 * Counters of a pool. The native helper counts what happens in the fault handler; JavaScript counts
 * what it decides.
 *
 * @module
 */
import { type Helper, QUERY } from "../../ffi/helper.ts";
import { runtime } from "../../ffi/runtime.ts";
import type { Guard } from "./guard.ts";

/** What {@linkcode Pool.stats} returns. Counters run from the pool's creation. */
export interface PoolStats {
  /** Bytes of the window: what buffers can be made of. */
  bytes: number;
  /** Bytes of the window that no buffer has. */
  bytesAvailable: number;
  /** Frames (pages of physical memory) besides those behind the window: for private pages and copies. */
  reserveFrames: number;
  /** Of those, how many are free now. */
  freeFrames: number;
  /** Mappings that the guards of this process use, and may use. */
  mappings: { used: number; budget: number };
  /** Sends, and writes to files, by the guard they got. */
  sends: Record<Exclude<Guard, "auto">, number>;
  /** Bytes sent, and of those the bytes that the CPU copied before the transport had them. */
  bytesSent: number;
  /** Bytes copied by the CPU on the way out. */
  bytesCopiedOut: number;
  /** Bytes received, and of those the bytes that the CPU copied. */
  bytesReceived: number;
  /** Bytes copied by the CPU on the way in. */
  bytesCopiedIn: number;
  /** Bytes written to files. What the program's copies were worth is in `bytesCopiedOut`. */
  bytesWritten: number;
  /** Bytes read from files. What the program's copies were worth is in `bytesCopiedIn`. */
  bytesRead: number;
  /** Bytes copied to put back what a message's header had displaced: as many as the headers had. */
  bytesPatched: number;
  /** What went by io_uring over `tcp://`. */
  ring: {
    /** Requests to send without a copy that have a result; each has one of the next two later, at its end. */
    sends: number;
    /** Those whose pages the kernel said it had not copied, and those it had. */
    zeroCopySends: number;
    copiedSends: number;
    /** Requests to receive that brought something. */
    receives: number;
  };
  /** Times the guard closed pages, and the pages closed (a page that is still closed costs nothing). */
  guards: { armed: number; pages: number };
  /** Faults on guarded pages, by access. */
  faults: { reads: number; writes: number };
  /** Faults after completion, which only gave the permission back. */
  restores: number;
  /** Pages the program was moved to because the old ones were in flight ("cow"). */
  privatePages: number;
  /** Pages of received messages that the program wrote to and got a private copy of. */
  privateMessagePages: number;
  /** Accesses that waited. */
  waits: {
    count: number;
    nanoseconds: number;
    /** `histogram[i]` waits took less than 2^i microseconds and no less than half of that. */
    histogram: number[];
  };
  /** Accesses that gave up after `guardTimeout`, or at once because only they could have ended the wait. */
  timeouts: { waited: number; deadlock: number };
  /** Times something had to do with less than was asked for. */
  degraded: {
    /** A `"cow"` write waited for want of a frame or a mapping. */
    cowToWait: number;
    /** A guard became a copy for want of a mapping or frame. */
    toCopy: number;
    /** An eager copy was staged in ordinary memory until frames were free. */
    staged: number;
    /** A received message was copied because it could not be mapped. */
    receiveCopies: number;
  };
  /** Pages of the window that were exchanged for others instead of being copied: one for each pair. */
  swappedPages: number;
  /** Huge pages that buffers were put on. */
  hugePages: number;
  /** Pages copied to bring a scattered buffer together, or private pages of a mapped file into the file. */
  mendedPages: number;
  /** Times somebody replaced the SIGSEGV action of the process and it was put back. */
  handlerReplaced: number;
}

// The order of `enum stat` in ffi/helper/memory.h.
const S = {
  reads: 1,
  writes: 2,
  restores: 3,
  privatePages: 4,
  waits: 5,
  waitNs: 6,
  timeouts: 7,
  deadlocks: 8,
  degraded: 9,
  mended: 11,
  arms: 12,
  armPages: 13,
  foreignPrivate: 14,
  huge: 15,
  patched: 16,
  ringSends: 17,
  ringZeroCopy: 18,
  ringCopied: 19,
  ringReceives: 20,
  histogram: 24,
  buckets: 24,
} as const;

/** The counters that JavaScript keeps. */
export class Counters {
  readonly sends = { none: 0, wait: 0, cow: 0, move: 0, copy: 0 };
  bytesSent = 0;
  bytesCopiedOut = 0;
  bytesReceived = 0;
  bytesCopiedIn = 0;
  bytesWritten = 0;
  bytesRead = 0;
  toCopy = 0;
  staged = 0;
  receiveCopies = 0;
  swappedPages = 0;
}

/** Reads the helper's counters of a pool; the array is a copy. */
export function readNative(helper: Helper, pool: number): number[] {
  const view = runtime().viewOf(
    helper.moat_query(QUERY.stats, pool),
    (S.histogram + S.buckets) * 8,
  );
  return Array.from(new BigUint64Array(view.slice(0)), Number);
}

/** The sums of two sets of counters of the helper. */
export function addNative(a: number[], b: number[]): number[] {
  return b.map((n, i) => n + (a[i] ?? 0));
}

/** Puts both kinds of counters together. */
export function combine(
  native: number[],
  js: Counters,
  rest: Pick<
    PoolStats,
    | "bytes"
    | "bytesAvailable"
    | "reserveFrames"
    | "freeFrames"
    | "mappings"
    | "handlerReplaced"
  >,
): PoolStats {
  const at = (index: number): number => native[index] ?? 0;
  return {
    ...rest,
    sends: { ...js.sends },
    bytesSent: js.bytesSent,
    bytesCopiedOut: js.bytesCopiedOut,
    bytesReceived: js.bytesReceived,
    bytesCopiedIn: js.bytesCopiedIn,
    bytesWritten: js.bytesWritten,
    bytesRead: js.bytesRead,
    bytesPatched: at(S.patched),
    ring: {
      sends: at(S.ringSends),
      zeroCopySends: at(S.ringZeroCopy),
      copiedSends: at(S.ringCopied),
      receives: at(S.ringReceives),
    },
    guards: { armed: at(S.arms), pages: at(S.armPages) },
    faults: { reads: at(S.reads), writes: at(S.writes) },
    restores: at(S.restores),
    privatePages: at(S.privatePages),
    privateMessagePages: at(S.foreignPrivate),
    waits: {
      count: at(S.waits),
      nanoseconds: at(S.waitNs),
      histogram: native.slice(S.histogram, S.histogram + S.buckets),
    },
    timeouts: { waited: at(S.timeouts), deadlock: at(S.deadlocks) },
    degraded: {
      cowToWait: at(S.degraded),
      toCopy: js.toCopy,
      staged: js.staged,
      receiveCopies: js.receiveCopies,
    },
    swappedPages: js.swappedPages,
    hugePages: at(S.huge),
    mendedPages: at(S.mended),
  };
}
