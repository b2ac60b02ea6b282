/**
 * Errors: every one has a code, says which operation met which value, and how to mend it.
 *
 * @module
 */

/** The codes of {@linkcode MoatError} and what each means. The documentation is made from this table. */
export const ERROR_CODES = {
  INVALID_ARGUMENT: "An argument is of the wrong type or out of its range",
  UNSUPPORTED_PLATFORM:
    "The operating system, processor or runtime is not one the library works on",
  LIBRARY_NOT_FOUND: "A shared library could not be opened",
  SYSTEM: "A system call failed",
  HELPER_BROKEN: "The native helper could not be loaded or is not the one that was built",
  POOL_EXHAUSTED: "The pool has no room for another buffer of this size",
  POOL_CLOSED: "The pool has been closed",
  BUFFER_FREED: "The buffer was freed or given away",
  FOREIGN_BUFFER: "The buffer belongs to another pool",
  BUFFER_MODIFIED: "A buffer sent or written without a guard was written to before the end",
  BUFFER_BUSY: "An operation in flight holds pages of the buffer",
  SNAPSHOT_WRITTEN: "The program wrote to the bytes of a snapshot, which is undone",
  DETACHED_VIEW: "The view's ArrayBuffer is detached",
  TOO_MANY_OPERATIONS: "More operations are in flight than the process can have",
  MESSAGE_TOO_LARGE: "The message is larger than what it was to go into",
  GUARD_TIMEOUT: "An access waited for an operation longer than the pool's guardTimeout",
  ADDRESS_IN_USE: "Somebody listens at this address already",
  CONNECTION_REFUSED: "Nobody listens at this address",
  PERMISSION_DENIED:
    "The other side is another user, a file may not be accessed, or Deno may not call C",
  TIMED_OUT: "The other side did not answer in time",
  CHANNEL_CLOSED: "The channel has been closed, here or by the peer",
  ABORTED: "The channel was aborted here",
  PEER_ABORTED: "The peer aborted the channel",
  PEER_LOST: "The peer went away without closing the channel",
  PEER_PROTOCOL: "The peer sent something that is not the protocol",
  NO_DEVICE: "There is no RDMA device, or none of this name",
  VERB_FAILED: "A function of libibverbs or librdmacm failed",
  COMPLETION_ERROR: "A work request completed with an error",
  ADDRESS_ERROR: "No RDMA device leads to this address",
  UNREACHABLE: "The other side did not answer the connection manager",
  REJECTED: "The other side rejected the connection",
  FILE_TRUNCATED: "A mapped file was cut off by somebody else",
  READ_ONLY: "The memory may only be read",
  RESOURCE_CLOSED: "The object has been closed, or what it was made of",
} as const;

/** A code of {@linkcode MoatError}. */
export type ErrorCode = keyof typeof ERROR_CODES;

/** What a {@linkcode MoatError} carries besides its message. */
export interface MoatErrorOptions {
  /** How to mend it, in one line. Appended to the message. */
  hint?: string;
  /** The error that led to this one. */
  cause?: unknown;
  /** The errno of the system call, if one failed. */
  errno?: number;
  /** The status of a completion (`IBV_WC_…` without the prefix) or of a connection event. */
  status?: string;
  /** The operation of the work request that failed (`IBV_WR_…` without the prefix, or `RECV`). */
  opcode?: string;
  /** The number of the queue pair. */
  qpNum?: number;
  /** The device's own code for the error. */
  vendorError?: number;
  /** The other side: its address and port, or its queue pair. */
  peer?: string;
  /** True if this request did not fail itself: an earlier one did, which is the `cause`. */
  flushed?: boolean;
}

/**
 * An error of this library.
 *
 * @example Telling errors apart
 * ```ts ignore
 * try {
 *   await channel.send(buf);
 * } catch (error) {
 *   if (error instanceof MoatError && error.code === "PEER_LOST") reconnect();
 *   else throw error;
 * }
 * ```
 */
export class MoatError extends Error {
  /** The name of the class. */
  override readonly name: string = "MoatError";
  /** What went wrong, for programs. */
  readonly code: ErrorCode;
  /** How to mend it, for people. */
  readonly hint: string | undefined;
  /** The errno of the system call, if one failed. */
  declare readonly errno: number | undefined;
  /** The status of a completion (`IBV_WC_…` without the prefix) or of a connection event. */
  declare readonly status: string | undefined;
  /** The operation of the work request that failed (`IBV_WR_…` without the prefix, or `RECV`). */
  declare readonly opcode: string | undefined;
  /** The number of the queue pair. */
  declare readonly qpNum: number | undefined;
  /** The device's own code for the error. */
  declare readonly vendorError: number | undefined;
  /** The other side: its address and port, or its queue pair. */
  declare readonly peer: string | undefined;
  /** True if this request did not fail itself: an earlier one did, which is the `cause`. */
  readonly flushed: boolean;

  /** Makes an error; `message` says what happened to which value. */
  constructor(code: ErrorCode, message: string, options: MoatErrorOptions = {}) {
    super(
      options.hint === undefined ? message : `${message}: ${options.hint}`,
      "cause" in options ? { cause: options.cause } : undefined,
    );
    this.code = code;
    this.hint = options.hint;
    this.flushed = options.flushed ?? false;
    // What is not there is not set: runtimes print every property of an error that nobody catches.
    if (options.errno !== undefined) this.errno = options.errno;
    if (options.status !== undefined) this.status = options.status;
    if (options.opcode !== undefined) this.opcode = options.opcode;
    if (options.qpNum !== undefined) this.qpNum = options.qpNum;
    if (options.vendorError !== undefined) this.vendorError = options.vendorError;
    if (options.peer !== undefined) this.peer = options.peer;
  }
}

/**
 * An access waited for an operation in flight longer than the pool's `guardTimeout`, or could only
 * have been ended by the thread that waited. The receive has been withdrawn; its message, should it
 * come, goes to the next receive.
 */
export class GuardTimeoutError extends MoatError {
  /** The name of the class. */
  override readonly name = "GuardTimeoutError";

  /** Makes an error with the code `GUARD_TIMEOUT`. */
  constructor(message: string, options: MoatErrorOptions = {}) {
    super("GUARD_TIMEOUT", message, options);
  }
}

const ERRNO: Record<number, string> = {
  1: "EPERM",
  2: "ENOENT",
  4: "EINTR",
  5: "EIO",
  6: "ENXIO",
  9: "EBADF",
  11: "EAGAIN",
  12: "ENOMEM",
  13: "EACCES",
  14: "EFAULT",
  16: "EBUSY",
  17: "EEXIST",
  19: "ENODEV",
  20: "ENOTDIR",
  21: "EISDIR",
  22: "EINVAL",
  23: "ENFILE",
  24: "EMFILE",
  26: "ETXTBSY",
  27: "EFBIG",
  28: "ENOSPC",
  30: "EROFS",
  32: "EPIPE",
  36: "ENAMETOOLONG",
  38: "ENOSYS",
  61: "ENODATA",
  71: "EPROTO",
  90: "EMSGSIZE",
  93: "EPROTONOSUPPORT",
  95: "EOPNOTSUPP",
  98: "EADDRINUSE",
  99: "EADDRNOTAVAIL",
  101: "ENETUNREACH",
  104: "ECONNRESET",
  105: "ENOBUFS",
  106: "EISCONN",
  107: "ENOTCONN",
  110: "ETIMEDOUT",
  111: "ECONNREFUSED",
  113: "EHOSTUNREACH",
  116: "ESTALE",
  125: "ECANCELED",
};

/** The name of an errno. */
export function errnoName(errno: number): string {
  return ERRNO[errno] ?? `errno ${errno}`;
}

/** The error of a failed system call. */
export function systemError(call: string, errno: number, hint?: string): MoatError {
  return new MoatError("SYSTEM", `${call} failed: ${errnoName(errno)}`, {
    errno,
    ...(hint === undefined ? {} : { hint }),
  });
}

/** Names a value in an error message. */
export function describe(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value);
  if (value === null || typeof value !== "object") return String(value);
  return value.constructor?.name ?? "an object";
}
