/**
 * Faults as people see them: what was touched, where, by what kind of access, and what came of it.
 *
 * @module
 */
import { FAULT } from "../../ffi/layout.ts";

/** What came of an access to a guarded page. */
export type FaultOutcome =
  /** The operation had ended; the permission was given back. */
  | "restored"
  /** The program was moved to a private copy of the page. */
  | "private"
  /** The access waited until the operation ended. */
  | "waited"
  /** The access waited for `guardTimeout` in vain. */
  | "timeout"
  /** Only the waiting thread itself could have ended the operation, so it did not wait. */
  | "deadlock";

/** What can hold pages of a buffer. */
export type OperationKind = "send" | "recv" | "write" | "read" | "snapshot";

/** One fault, as {@linkcode Pool.onFault} is told. */
export interface Fault {
  /** The byte offset of the access in its buffer, or in the window if the buffer is gone. */
  offset: number;
  /** The first page of the buffer in the pool's window; `buffer.page` of the buffer meant. */
  bufferPage: number | undefined;
  /** The path of the mapped file, if the access was to one. */
  file: string | undefined;
  /** What the program did. */
  access: "read" | "write";
  /**
   * The operation that held the page, or had left it closed to writes: `"send"` or `"recv"` of a channel, `"write"`
   * or `"read"` of a file, `"snapshot"` for {@linkcode PoolBuffer.snapshot}; unknown for one that began before
   * {@linkcode Pool.onFault} was set and has ended.
   */
  operation: OperationKind | undefined;
  /**
   * The stack of the call that started the operation, from the program's line on, if the pool was made with
   * `trace: true`.
   */
  stack: string | undefined;
  /** What came of it. */
  outcome: FaultOutcome;
  /** Pages the fault settled at once. */
  pages: number;
  /** Nanoseconds spent in the handler, waiting included. */
  nanoseconds: number;
  /** The kernel's id of the thread that made the access. */
  thread: number;
}

/** A fault as the helper recorded it. */
export interface FaultRecord {
  start: number;
  page: number;
  offset: number;
  op: number;
  write: boolean;
  outcome: FaultOutcome;
  pages: number;
  thread: number;
  nanoseconds: number;
}

const OUTCOMES: readonly FaultOutcome[] = [
  "restored",
  "restored",
  "private",
  "waited",
  "timeout",
  "deadlock",
];

/** The window page that stands for "no buffer". */
export const NO_PAGE = 0xffffffff;

/** Reads the entry of fault number `index` from a pool's ring. */
export function readFault(ring: DataView, index: number): FaultRecord {
  const at = (index % FAULT.entries) * FAULT.size;
  return {
    start: ring.getUint32(at + FAULT.start, true),
    page: ring.getUint32(at + FAULT.page, true),
    offset: ring.getUint32(at + FAULT.offset, true),
    op: ring.getInt32(at + FAULT.op, true),
    write: ring.getUint8(at + FAULT.access) === 1,
    outcome: OUTCOMES[ring.getUint8(at + FAULT.outcome)] ?? "waited",
    pages: ring.getUint16(at + FAULT.pages, true),
    thread: ring.getUint32(at + FAULT.thread, true),
    nanoseconds: Number(ring.getBigUint64(at + FAULT.ns, true)),
  };
}
