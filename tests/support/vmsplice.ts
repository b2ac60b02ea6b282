/**
 * A zero-copy device for tests, made of vmsplice(2) and a pipe: the pipe holds references to the pages it
 * is given and reads them when somebody reads the pipe. What the program wrote in between is seen, unless a
 * guard keeps it from those pages.
 *
 * @module
 */
import { errno, libc, LIBC_PATHS, openFirst } from "../../ffi/libc.ts";
import { systemError } from "../../ffi/errors.ts";
import { helper } from "../../ffi/helper.ts";
import { DESC, OP } from "../../ffi/layout.ts";
import { type Functions, runtime, type Symbols } from "../../ffi/runtime.ts";
import type { PoolCore, Region } from "../../lib/memory/core.ts";
import { resolveData } from "../../lib/memory/resolve.ts";
import type { Guard } from "../../lib/memory/guard.ts";
import { runsOf } from "../../lib/memory/runs.ts";
import { coreOf, type Pool } from "../../lib/memory/pool.ts";
import type { PoolBuffer } from "../../lib/memory/buffer.ts";
import type { Snapshot } from "../../lib/memory/snapshot.ts";
import type { MappedFile } from "../../lib/file/mapped.ts";

const symbols = {
  // int pipe2(int fds[2], int flags);
  pipe2: { parameters: ["buffer", "i32"], result: "i32" },
  // ssize_t vmsplice(int fd, const struct iovec *iov, size_t n, unsigned int flags);
  vmsplice: { parameters: ["i32", "buffer", "size", "u32"], result: "size" },
} as const satisfies Symbols;
let opened: Functions<typeof symbols> | undefined;

function calls(): Functions<typeof symbols> {
  return opened ??= openFirst("The C library", LIBC_PATHS, symbols, "install glibc or musl");
}

const O_NONBLOCK = 0o4000, O_CLOEXEC = 0o2000000;
const F_SETPIPE_SZ = 1031, PIPE_BYTES = 1 << 20;
const SPLICE_F_NONBLOCK = 2;
const EAGAIN = 11;

/** A piece of memory in the device view. */
export interface Segment {
  address: number;
  bytes: number;
}

/** What is left to do of a send: plain data, so that a Worker can do it. */
export interface Transfer {
  /** The operation's number. */
  op: number;
  /** The pipe's ends. */
  from: number;
  to: number;
  /** The bytes of the message. */
  length: number;
  /** What the pipe has not been given yet. */
  segments: Segment[];
}

/** A send in flight. The end of its block ends it, so that a test that fails does not hang as well. */
export interface Flight extends Disposable {
  readonly transfer: Transfer;
  /** Lets the device read the message, ends the operation and returns what was read. */
  land(): Uint8Array<ArrayBuffer>;
  /** Collects the operation after a Worker ended it. */
  collect(): void;
}

/** Starts a send the way a channel does, with the pages handed to a pipe before it returns. */
export function fly(
  pool: Pool,
  data: PoolBuffer | Snapshot | MappedFile | Uint8Array,
  guard: Guard,
): Flight {
  const core = coreOf(pool), { region, bytes } = resolveData(core, data, "send", true);
  const length = bytes.length;
  let op: number;
  if (guard === "copy") op = core.outCopy(bytes);
  else {op = region!.state.core.out(
      region as Region,
      bytes,
      guard as Exclude<Guard, "auto" | "copy">,
    );}
  if (op < 0) throw systemError(`a send with the guard ${guard}`, -op);
  const state = guard === "copy" ? undefined : region!.state;
  core.began(op, { kind: "send", state, stack: undefined });
  if (guard === "move") core.retire(region!.state);

  const { from, to } = pipe();
  const transfer = {
    op,
    from,
    to,
    length,
    segments: segmentsOf(guard === "copy" ? core : region!.state.core, op),
  };
  push(transfer);
  let landed = false;
  const collect = (): void => {
    landed = true;
    libc().close(from);
    libc().close(to);
    core.ended(op);
  };
  return {
    transfer,
    collect,
    land(): Uint8Array<ArrayBuffer> {
      const read = drain(transfer);
      collect();
      return read;
    },
    [Symbol.dispose](): void {
      if (landed) return;
      helper().moat_op_done(op, 0);
      collect();
    },
  };
}

/** Reads a message through its pipe to the end, then ends the operation. May run in any Worker. */
export function drain(transfer: Transfer): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(transfer.length);
  for (let at = 0; at < bytes.length;) {
    const n = libc().read(transfer.from, bytes.subarray(at), bytes.length - at);
    if (n < 0) throw systemError("read of a pipe", errno());
    at += n;
    push(transfer);
  }
  const r = helper().moat_op_done(transfer.op, 0);
  if (r < 0) throw systemError("moat_op_done", -r);
  return bytes;
}

/** The memory an operation's list of runs describes. */
export function segmentsOf(core: PoolCore, op: number): Segment[] {
  const desc = runtime().viewOf(core.helper.moat_op_address(op) + OP.desc, DESC.size);
  let skip = new DataView(desc).getUint32(DESC.off, true);
  let left = Number(new DataView(desc).getBigUint64(DESC.len, true));
  return runsOf(core, op).map(({ frame, count }) => {
    const bytes = Math.min(count * core.pageSize - skip, left);
    const segment = { address: core.device + frame * core.pageSize + skip, bytes };
    left -= bytes;
    skip = 0;
    return segment;
  });
}

function pipe(): { from: number; to: number } {
  const fds = new Int32Array(2);
  if (calls().pipe2(new Uint8Array(fds.buffer), O_NONBLOCK | O_CLOEXEC) < 0) {
    throw systemError("pipe2", errno());
  }
  const [from, to] = fds as unknown as [number, number];
  libc().fcntl(to, F_SETPIPE_SZ, PIPE_BYTES); // less than asked for is only slower
  return { from, to };
}

// Gives the pipe as many pages as it takes, by reference.
function push({ to, segments }: Transfer): void {
  const iovec = new DataView(new ArrayBuffer(16));
  for (let first; (first = segments[0]);) {
    iovec.setBigUint64(0, BigInt(first.address), true);
    iovec.setBigUint64(8, BigInt(first.bytes), true);
    const n = calls().vmsplice(to, new Uint8Array(iovec.buffer), 1, SPLICE_F_NONBLOCK);
    if (n < 0) {
      const error = errno();
      if (error === EAGAIN) return;
      throw systemError("vmsplice", error);
    }
    first.address += n;
    first.bytes -= n;
    if (first.bytes === 0) segments.shift();
  }
}
