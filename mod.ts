/**
 * Zero-copy I/O in which a buffer in flight is guarded by page protection: `channel.send(buf)` returns at
 * once, and the program may touch `buf` at any moment. A write to a page being sent gets a private copy
 * of it (or waits); a read of a buffer being received waits until the data is there. Over `shm://` between
 * processes of one machine, over `tcp://` and `rdma://`, and to and from files.
 *
 * @example Send a buffer and go on using it
 * ```ts ignore
 * import { connect, Pool } from "@moat/rdma";
 *
 * await using pool = Pool.create({ bytes: 16 << 20 });
 * await using channel = await connect("shm://demo", { pool });
 *
 * using buf = pool.alloc(1 << 20);
 * buf.bytes.fill(7);
 * const sent = channel.send(buf); // returns at once; the pages are guarded
 * buf.bytes.fill(8); //              allowed at once: what is sent stays 7
 * await sent;
 * ```
 *
 * @module
 */
export { connect, type ConnectOptions, listen, Listener } from "./lib/connect.ts";
export { Channel } from "./lib/channel.ts";
export { ByteChannel } from "./lib/stream/byte_channel.ts";
export type { Chunk } from "./lib/stream/writable.ts";
export type {
  CloseOptions,
  Data,
  ReceiveOptions,
  ReceiveResult,
  SendOptions,
  SendResult,
} from "./lib/channel_options.ts";
export { Message } from "./lib/message.ts";
export { Pool, type PoolOptions } from "./lib/memory/pool.ts";
export { PoolBuffer, type SharedHandle, viewShared } from "./lib/memory/buffer.ts";
export { Snapshot } from "./lib/memory/snapshot.ts";
export {
  File,
  type ReadOptions,
  type ReadResult,
  type WriteOptions,
  type WriteResult,
} from "./lib/file/file.ts";
export { type MapOptions, MappedFile } from "./lib/file/mapped.ts";
export type { OpenOptions } from "./lib/file/open.ts";
export type { Guard, ReceiveGuard } from "./lib/memory/guard.ts";
export type { PoolStats } from "./lib/memory/stats.ts";
export type { Fault, FaultOutcome, OperationKind } from "./lib/memory/faults.ts";
export type { Verify } from "./lib/memory/verify.ts";
export {
  ERROR_CODES,
  type ErrorCode,
  GuardTimeoutError,
  MoatError,
  type MoatErrorOptions,
} from "./ffi/errors.ts";
