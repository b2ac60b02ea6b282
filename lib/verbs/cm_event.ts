/**
 * Events of the connection manager.
 *
 * @module
 */
import { errnoName, type ErrorCode, MoatError, type MoatErrorOptions } from "../../ffi/errors.ts";
import { CM_EVENT, nameOf } from "../../ffi/verbs_enums.ts";
import { RDMA_CM_EVENT, RDMA_CONN_PARAM } from "../../ffi/verbs_layout.ts";
import { HOW_TO_MAKE_A_DEVICE } from "./errors.ts";
import { read64, structAt } from "./native.ts";

/** What rdma_get_cm_event(3) tells, copied. */
export interface CmEvent {
  /** `ADDR_RESOLVED`, `CONNECT_REQUEST`, `ESTABLISHED`, …: `RDMA_CM_EVENT_…` without the prefix. */
  readonly type: string;
  /** 0, -errno, or for `REJECTED` the reason of the InfiniBand specification. */
  readonly status: number;
  /** What the other side sent along. The transport pads it with zeros to the size it has room for. */
  readonly privateData: Uint8Array<ArrayBuffer>;
  /** RDMA reads and atomics the other side wants to have under way: its `initiatorDepth`. */
  readonly responderResources: number;
  /** RDMA reads and atomics the other side serves at once: its `responderResources`. */
  readonly initiatorDepth: number;
  /** How often the other side wants us to try again when it has no receive posted. */
  readonly rnrRetryCount: number;
  /** The other side's queue pair. */
  readonly qpNum: number;
}

/** An event and the ids it is about, before those are known as objects. */
export interface RawEvent extends CmEvent {
  /** The address of the `struct rdma_cm_id`. */
  readonly id: number;
  /** That of the listening id, for `CONNECT_REQUEST`. */
  readonly listenId: number;
}

const WITH_PARAMETERS = ["CONNECT_REQUEST", "CONNECT_RESPONSE", "REJECTED", "ESTABLISHED"];

/** Reads a `struct rdma_cm_event`, of which nothing is needed afterwards. */
export function readEvent(address: number): RawEvent {
  const view = structAt(address, RDMA_CM_EVENT.size), at = RDMA_CM_EVENT.conn;
  const type = nameOf(CM_EVENT, view.getInt32(RDMA_CM_EVENT.event, true));
  const has = WITH_PARAMETERS.includes(type);
  const data = has ? read64(view, at + RDMA_CONN_PARAM.privateData) : 0;
  const length = data === 0 ? 0 : view.getUint8(at + RDMA_CONN_PARAM.privateDataLen);
  const u8 = (field: number): number => has ? view.getUint8(at + field) : 0;
  return {
    type,
    status: view.getInt32(RDMA_CM_EVENT.status, true),
    privateData: length === 0
      ? new Uint8Array(0)
      : new Uint8Array(structAt(data, length).buffer as ArrayBuffer).slice(),
    responderResources: u8(RDMA_CONN_PARAM.responderResources),
    initiatorDepth: u8(RDMA_CONN_PARAM.initiatorDepth),
    rnrRetryCount: u8(RDMA_CONN_PARAM.rnrRetryCount),
    qpNum: has ? view.getUint32(at + RDMA_CONN_PARAM.qpNum, true) : 0,
    id: read64(view, RDMA_CM_EVENT.id),
    listenId: read64(view, RDMA_CM_EVENT.listenId),
  };
}

const ENODEV = 19, ETIMEDOUT = 110;
// Reasons of a REJ message of the InfiniBand specification.
const INVALID_SERVICE_ID = 8, CONSUMER_DEFINED = 28, STALE_CONNECTION = 10, TIMEOUT = 4;

const CODES: Record<string, ErrorCode> = {
  ADDR_ERROR: "ADDRESS_ERROR",
  ROUTE_ERROR: "ADDRESS_ERROR",
  UNREACHABLE: "UNREACHABLE",
  REJECTED: "REJECTED",
  DEVICE_REMOVAL: "NO_DEVICE",
  DISCONNECTED: "CHANNEL_CLOSED",
};

function likelyCause(type: string, status: number): string | undefined {
  switch (type) {
    case "ADDR_ERROR":
      return status === -ENODEV
        ? `no RDMA device leads there: the interface that routes to it has none; ${HOW_TO_MAKE_A_DEVICE}`
        : status === -ETIMEDOUT
        ? "the address was not resolved in time (ARP or neighbour discovery): is the host up?"
        : "the address has no route, or no RDMA device leads there";
    case "ROUTE_ERROR":
      return "there is no path to the address: link down, or no subnet manager";
    case "UNREACHABLE":
      return "the other side did not answer: host down, a firewall (UDP port 4791 for RoCE v2), or a " +
        "program that neither accepts nor rejects";
    case "REJECTED":
      return status === INVALID_SERVICE_ID
        ? "nobody listens at this port"
        : status === CONSUMER_DEFINED
        ? "the program at the other side said no"
        : status === STALE_CONNECTION
        ? "the other side still knows an earlier connection with this queue pair: try again"
        : status === TIMEOUT
        ? "the other side gave up waiting"
        : `reason ${status} of the InfiniBand specification`;
    case "CONNECT_ERROR":
      return "the connection could not be set up: the queue pairs' parameters may not fit";
    case "DEVICE_REMOVAL":
      return "the device was removed";
    case "DISCONNECTED":
      return "the other side closed the connection";
  }
  return undefined;
}

/** The error of an event that ended a phase: event, status, likely cause. */
export function eventError(what: string, event: CmEvent, peer: string | undefined): MoatError {
  const { type, status } = event;
  const code = type === "REJECTED" && status === INVALID_SERVICE_ID
    ? "CONNECTION_REFUSED"
    : status === -ETIMEDOUT && type.endsWith("_ERROR")
    ? "TIMED_OUT"
    : CODES[type] ?? "VERB_FAILED";
  const options: MoatErrorOptions = { status: type };
  const hint = likelyCause(type, status);
  if (hint !== undefined) options.hint = hint;
  if (status < 0) options.errno = -status;
  if (peer !== undefined) options.peer = peer;
  const how = status === 0 ? "" : status < 0 ? ` (${errnoName(-status)})` : ` (reason ${status})`;
  const to = peer === undefined ? "" : ` ${peer}`;
  return new MoatError(code, `${what}${to}: RDMA_CM_EVENT_${type}${how}`, options);
}
