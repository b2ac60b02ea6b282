/**
 * The connection manager: librdmacm.
 *
 * @module
 */
export type { CmEvent } from "./cm_event.ts";
export { CmId, type ConnectRequest, type PhaseOptions } from "./cm_id.ts";
export type { ConnectionOptions } from "./connection_options.ts";
export { EventChannel } from "./event_channel.ts";
