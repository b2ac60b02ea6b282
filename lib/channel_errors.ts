/**
 * The errors that operations of a channel end with.
 *
 * @module
 */
import { GuardTimeoutError, MoatError } from "../ffi/errors.ts";
import type { PoolCore } from "./memory/core.ts";
import { truncatedError } from "./memory/mapping.ts";
import type { Transport } from "./transport.ts";

const EFAULT = 14,
  ESTALE = 116,
  EBUSY = 16,
  EPIPE = 32,
  EPROTO = 71,
  EMSGSIZE = 90,
  ECONNRESET = 104,
  ENOBUFS = 105;
const ETIMEDOUT = 110, ECANCELED = 125, EOWNERDEAD = 130;

/** How an operation ended. */
export interface Ending {
  /** -errno. */
  status: number;
  /** What it was. */
  what: string;
  /** The bytes its buffer has. */
  room?: number;
  /** The bytes of the message it met. */
  got?: number;
  /** Set if the channel was aborted here. */
  aborted?: { reason: unknown } | undefined;
}

/** The error for an operation of a channel. */
export function endError(core: PoolCore, transport: Transport, ending: Ending): MoatError {
  const { status, what, room = 0, got = 0, aborted } = ending, { peer } = transport;
  switch (-status) {
    case EPIPE:
      return new MoatError("CHANNEL_CLOSED", `${what}: ${peer} has closed the channel`);
    case ECONNRESET: {
      const cause = transport.failure?.();
      return new MoatError("PEER_LOST", `${what}: ${peer} went away without closing the channel`, {
        hint: "it was killed, crashed, or exited without close()",
        ...(cause === undefined ? {} : { cause }),
      });
    }
    case EPROTO:
      return new MoatError("PEER_PROTOCOL", `${what}: ${peer} sent what is not the protocol`, {
        hint: "the channel has been cut off",
      });
    case EOWNERDEAD:
      return new MoatError("PEER_ABORTED", `${what}: ${peer} aborted the channel`);
    case EMSGSIZE:
      return new MoatError(
        "MESSAGE_TOO_LARGE",
        `${what}: a message of ${got} bytes does not fit the buffer of ${room}`,
        { hint: "receive it again into a larger buffer, or with recv() alone" },
      );
    case ENOBUFS:
      if (what !== "recv") return core.refusal(what, status);
      return new MoatError(
        "POOL_EXHAUSTED",
        got > 0
          ? `recv: the pool has no room for a message of ${got} bytes`
          : "recv: the pool has no room, or the buffer is in too many pieces",
        { hint: "free buffers, release messages, or make the pool larger; nothing is lost" },
      );
    case ETIMEDOUT:
      return new GuardTimeoutError(
        `${what}: an access to the buffer waited longer than guardTimeout`,
        {
          hint:
            "await the operation before using the buffer, or raise Pool.create({ guardTimeout })",
        },
      );
    case EBUSY:
      return new GuardTimeoutError(
        `${what}: the buffer was used by the thread that drives both ends, so the wait could not end`,
        { hint: "await the operation first, or put the other end into another Worker or process" },
      );
    case EFAULT:
    case ESTALE:
      return truncatedError(what);
    case ECANCELED:
      return aborted
        ? new MoatError("ABORTED", `${what}: the channel was aborted`, { cause: aborted.reason })
        : new MoatError("CHANNEL_CLOSED", `${what}: the channel was closed`);
    default:
      return core.refusal(what, status);
  }
}
