/**
 * Errors of verbs and completions, with their likely causes.
 *
 * @module
 */
import { errnoName, type ErrorCode, MoatError, type MoatErrorOptions } from "../../ffi/errors.ts";
import { readText } from "../../ffi/libc.ts";
import { nameOf, WC_STATUS } from "../../ffi/verbs_enums.ts";

/** What a verb was asked, for its error. */
export interface VerbContext {
  /** The device. */
  device?: string;
  /** Bytes that were to be registered. */
  bytes?: number;
  /** The index of the GID that was to be used, and its type. */
  gidIndex?: number;
  /** What the GID at that index is. */
  gidType?: string;
  /** The queue pair. */
  qpNum?: number;
  /** The other side. */
  peer?: string;
  /** More to say about what was asked. */
  what?: string;
  /** What is known better than by the errno. */
  hint?: string;
  /** Another code than `VERB_FAILED`. */
  code?: ErrorCode;
}

/** How to make a device out of an Ethernet interface. */
export const HOW_TO_MAKE_A_DEVICE =
  "without a card, make one of an Ethernet interface: modprobe rdma_rxe; " +
  "rdma link add rxe0 type rxe netdev eth0";

/** The limit of locked memory in bytes, or `undefined` without one. */
export function lockedMemoryLimit(): number | undefined {
  const match = /^Max locked memory\s+(\S+)/m.exec(readText("/proc/self/limits"));
  return match && match[1] !== "unlimited" ? Number(match[1]) : undefined;
}

const ENOENT = 2, EPERM = 1, EAGAIN = 11, ENOMEM = 12, EACCES = 13, ENODEV = 19, EINVAL = 22;
const ENETUNREACH = 101, EHOSTUNREACH = 113;
const ENOSYS = 38,
  ENODATA = 61,
  ETIMEDOUT = 110,
  EOPNOTSUPP = 95,
  EADDRINUSE = 98,
  EADDRNOTAVAIL = 99;

function likelyCause(verb: string, errno: number, context: VerbContext): string | undefined {
  if (verb === "ibv_reg_mr" && (errno === ENOMEM || errno === EAGAIN)) {
    const limit = lockedMemoryLimit();
    return limit !== undefined && limit < (context.bytes ?? 0)
      ? `RLIMIT_MEMLOCK is ${limit} bytes, the region has ${context.bytes}: raise it ` +
        "(ulimit -l unlimited, or LimitMEMLOCK= of the service), or register less"
      : "memory could not be pinned: the limit may be RLIMIT_MEMLOCK together with what is " +
        "registered already (ulimit -l unlimited), or free memory";
  }
  if (verb === "ibv_reg_mr" && errno === EINVAL) {
    return "remoteWrite and remoteAtomic need localWrite; the memory must be mapped";
  }
  if (errno === EPERM || errno === EACCES) {
    return "permission to use /dev/infiniband/uverbsN and rdma_cm is missing: run as root, join the " +
      "group that owns them (often rdma), or pass the devices to the container";
  }
  const gid = context.gidIndex === undefined ? undefined : `GID index ${context.gidIndex}` +
    (context.gidType === undefined ? " is empty or not there" : ` is ${context.gidType}`);
  if (
    gid !== undefined && [EINVAL, ENOENT, ENODEV, ENODATA, EADDRNOTAVAIL, ETIMEDOUT].includes(errno)
  ) {
    return `${gid}: choose one with context.gidTable() that both sides reach, the same type on both`;
  }
  if (verb === "ibv_post_send" && errno === ENOMEM) {
    return "the send queue is full: poll completions first, or create the queue pair with more maxSendWr";
  }
  if (verb === "ibv_post_recv" && errno === ENOMEM) {
    return "the receive queue is full: create the queue pair with more maxRecvWr";
  }
  if (verb.startsWith("ibv_post_") && errno === EINVAL) {
    return "the queue pair's state does not allow it, or the request has too many segments, too much " +
      "inline data or an operation the device lacks";
  }
  if (verb === "ibv_modify_qp" && errno === EINVAL) {
    return "the transition is not allowed from the state the queue pair is in, or an attribute is missing " +
      "or out of range; qp.query() shows the state";
  }
  if (verb === "rdma_resolve_addr" && errno === EINVAL) {
    return "an id is resolved once: make another, CmId.create()";
  }
  if (verb.startsWith("rdma_") && errno === EINVAL) {
    return "the id is not in the state for this: resolve address and route, make the queue pair, connect";
  }
  if (errno === ENETUNREACH || errno === EHOSTUNREACH) return "there is no route to this address";
  if (errno === ENODEV) return `no RDMA device has this address; ${HOW_TO_MAKE_A_DEVICE}`;
  if (errno === EADDRINUSE) return "another program listens there, or did a moment ago";
  if (errno === EADDRNOTAVAIL) return "no interface of this host has this address";
  if (errno === ENOMEM) return "a limit of the device: see context.queryDevice()";
  if (errno === EOPNOTSUPP || errno === ENOSYS) return "the device or its driver cannot do it";
  return undefined;
}

/** The error of a verb that failed: its name, the errno and the likely cause. */
export function verbError(verb: string, errno: number, context: VerbContext = {}): MoatError {
  const number = Math.abs(errno);
  const where = context.device === undefined ? "" : ` on ${context.device}`;
  const what = context.what === undefined ? "" : ` (${context.what})`;
  const options: MoatErrorOptions = { errno: number };
  const hint = context.hint ?? likelyCause(verb, number, context);
  if (hint !== undefined) options.hint = hint;
  if (context.qpNum !== undefined) options.qpNum = context.qpNum;
  if (context.peer !== undefined) options.peer = context.peer;
  const message = `${verb}${what}${where} failed: ${errnoName(number)}`;
  return new MoatError(context.code ?? "VERB_FAILED", message, options);
}

/** What is known of a request that completed with an error. */
export interface CompletionFailure {
  /** The number or the name of the status. */
  status: number | string;
  /** The operation: the device does not say it when it failed. */
  opcode?: string | undefined;
  /** The queue pair. */
  qpNum?: number | undefined;
  /** The device's own code. */
  vendorError?: number | undefined;
  /** The other side. */
  peer?: string | undefined;
  /** Bytes of the request's buffer. */
  bytes?: number | undefined;
  /** The request's number. */
  wrId?: number | undefined;
  /** The first failure of the queue pair, for those that were flushed after it. */
  cause?: MoatError | undefined;
}

const HINTS: Record<string, (failure: CompletionFailure) => string> = {
  LOC_LEN_ERR: ({ opcode, bytes }) =>
    opcode?.startsWith("RECV")
      ? `the receive buffer${
        bytes === undefined ? "" : ` of ${bytes} B`
      } was smaller than the message`
      : "the message is longer than the port can carry, or its receive buffer is smaller",
  // Soft-RoCE says this for whatever is wrong with local memory, and for a receive that is too short.
  LOC_QP_OP_ERR: ({ opcode, bytes }) =>
    opcode?.startsWith("RECV")
      ? `the receive buffer${
        bytes === undefined ? "" : ` of ${bytes} B`
      } was smaller than the message, ` +
        "or its segments are not inside a memory region with localWrite"
      : "a local segment is not inside its memory region (address, length, lkey, access), or the " +
        "queue pair cannot do the operation",
  LOC_PROT_ERR: () =>
    "a local segment is not inside its memory region (address, length, lkey), or the region lacks the " +
    "access, or is of another protection domain",
  WR_FLUSH_ERR: ({ cause }) =>
    cause
      ? "an earlier request failed and took the queue pair to the error state: see the cause"
      : "the queue pair went to the error state before the request was done: closed here, or disconnected",
  BAD_RESP_ERR: () => "the peer answered with an opcode that does not belong there",
  LOC_ACCESS_ERR: () => "the peer wrote with immediate where the local region does not permit it",
  REM_INV_REQ_ERR: () =>
    "the peer refused the request as invalid: its receive buffer was smaller than the message, or its " +
    "queue pair does not allow RDMA or atomics, or an atomic's address is not a multiple of 8",
  REM_ACCESS_ERR: () =>
    "the peer refused the access: wrong rkey, an address outside its region, or a region or queue pair " +
    "without remoteRead, remoteWrite or remoteAtomic",
  REM_OP_ERR: () =>
    "the peer could not complete the request: its receive buffer may be too small or badly registered",
  RETRY_EXC_ERR: () =>
    "the peer did not acknowledge in time: its queue pair or process is gone, the GID, queue pair number " +
    "or PSN is wrong, or the network drops packets (retryCount, timeout)",
  RNR_RETRY_EXC_ERR: () =>
    "the receiver had no receive posted: post receives before the peer sends, or set rnrRetry to 7, for ever",
  REM_ABORT_ERR: () => "the peer aborted the operation",
  FATAL_ERR: () => "the device failed: reset it",
  RESP_TIMEOUT_ERR: () => "the peer did not answer in time",
};

/**
 * The error of a work completion, with its cause in plain words. The status is named as in
 * ibv_poll_cq(3), without `IBV_WC_`.
 */
export function completionError(failure: CompletionFailure): MoatError {
  const { opcode, qpNum, vendorError, peer, wrId, cause } = failure;
  const status = typeof failure.status === "number"
    ? nameOf(WC_STATUS, failure.status)
    : failure.status;
  const number = wrId === undefined ? "" : ` ${wrId}`;
  const where = qpNum === undefined ? "" : ` on QP ${qpNum}`;
  const to = peer === undefined ? "" : ` with ${peer}`;
  const vendor = vendorError ? ` (vendor error 0x${vendorError.toString(16)})` : "";
  const options: MoatErrorOptions = { status, flushed: status === "WR_FLUSH_ERR" };
  const hint = HINTS[status]?.(failure);
  if (hint !== undefined) options.hint = hint;
  if (opcode !== undefined) options.opcode = opcode;
  if (qpNum !== undefined) options.qpNum = qpNum;
  if (vendorError !== undefined) options.vendorError = vendorError;
  if (peer !== undefined) options.peer = peer;
  if (cause !== undefined) options.cause = cause;
  const what = `${opcode ?? "work request"}${number}${where}${to}`;
  return new MoatError("COMPLETION_ERROR", `${what} completed with ${status}${vendor}`, options);
}
