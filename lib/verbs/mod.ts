/**
 * The objects of libibverbs and librdmacm under their standard names, for scripting RDMA experiments:
 * devices, protection domains, memory regions, completion queues, queue pairs, and the connection manager.
 *
 * Nothing is guarded here: memory belongs to the device from posting to completion, as in C. Every object is
 * disposable, and closing one closes what was made of it first.
 *
 * @module
 */
export { ERROR_CODES, type ErrorCode, MoatError, type MoatErrorOptions } from "../../ffi/errors.ts";
export type { AsyncEvent } from "./async_events.ts";
export type { DeviceAttributes, PortAttributes } from "./attributes.ts";
export type { CmEvent, RawEvent } from "./cm_event.ts";
export { CmId, type ConnectRequest, type PhaseOptions } from "./cm_id.ts";
export { CompletionChannel } from "./completion_channel.ts";
export {
  CompletionQueue,
  type CompletionQueueOptions,
  type WorkCompletion,
} from "./completion_queue.ts";
export type { ConnectionOptions } from "./connection_options.ts";
export { Context } from "./context.ts";
export { type DeviceInfo, devices, openDevice } from "./device.ts";
export { completionError, type CompletionFailure, type VerbContext, verbError } from "./errors.ts";
export { EventChannel, type EventTarget } from "./event_channel.ts";
export type { ExtendedAttributes } from "./extended_attributes.ts";
export { formatGid, type GidEntry, type GidType } from "./gid.ts";
export {
  type AccessFlags,
  MemoryRegion,
  type RemoteAddress,
  type Segment,
} from "./memory_region.ts";
export { NativeMemory } from "./native.ts";
export { PreparedSends } from "./prepared_sends.ts";
export { ProtectionDomain } from "./protection_domain.ts";
export { QueuePair, type QueuePairOrigin, type Segments } from "./queue_pair.ts";
export type {
  InitAttributes,
  PathAttributes,
  QueuePairAttributes,
  QueuePairCapacity,
  QueuePairOptions,
  RtrAttributes,
  RtsAttributes,
} from "./queue_pair_options.ts";
export { Resource } from "./resource.ts";
export type { RecvRequest, SendFlags, SendOpcode, SendRequest } from "./work_request.ts";
export { PoolBuffer, type SharedHandle } from "../memory/buffer.ts";
export type { Fault, FaultOutcome } from "../memory/faults.ts";
export type { Guard } from "../memory/guard.ts";
export { Pool, type PoolOptions } from "../memory/pool.ts";
export type { PoolStats } from "../memory/stats.ts";
