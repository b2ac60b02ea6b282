/**
 * What the operations of a channel take and give.
 *
 * @module
 */
import type { PoolBuffer } from "./memory/buffer.ts";
import type { Guard, ReceiveGuard } from "./memory/guard.ts";
import type { MappedFile } from "./file/mapped.ts";
import type { Snapshot } from "./memory/snapshot.ts";
import type { Verify } from "./memory/verify.ts";

/** What can be sent, and received into: pool memory without copying, other memory by copying. */
export type Data = PoolBuffer | Snapshot | MappedFile | ArrayBufferView | ArrayBuffer;

/** Settings of {@linkcode Channel.send}. */
export interface SendOptions {
  /** What a write to the data does while it is in flight. `"auto"` by default. */
  guard?: Guard;
  /**
   * At most 1,024 bytes that travel with the message, and are its {@linkcode Message.header} at the other side.
   * They are copied; the data stays where it is, aligned to its pages. Over `protocol: "raw"` they are the first
   * bytes of the message.
   */
  header?: ArrayBufferView;
  /**
   * `"checksum"`: sums up the pages of a send with the guard `"none"` when it begins and when it ends. If they have
   * changed in between, the promise is rejected with `BUFFER_MODIFIED`: the message has been sent, but nobody
   * knows which of the two the peer got. The pool's setting by default; with other guards, and for copied data, it
   * does nothing, because there the question cannot arise.
   *
   * It is for looking for bugs: it reads all the data twice, at 5 to 9 GB/s (measured on an EPYC in a virtual machine). What it cannot see is a write that was undone before
   * the end, and a program that reads a buffer too early which is being received with the guard `"none"`.
   */
  verify?: Verify;
  /** Stops the waiting, not the send: the guard stays until the device is done. */
  signal?: AbortSignal;
}

/** What became of a send. */
export interface SendResult {
  /** Bytes sent. */
  readonly bytes: number;
  /** The guard it had. */
  readonly guard: Exclude<Guard, "auto">;
  /** True if the transport read the program's own pages. */
  readonly zeroCopy: boolean;
}

/** Settings of {@linkcode Channel.recv}. */
export interface ReceiveOptions {
  /** What an access to the buffer does before the message is there. `"wait"` by default. */
  guard?: ReceiveGuard;
  /** Takes the receive back, unless its message is there already. */
  signal?: AbortSignal;
}

/** What became of a receive into a buffer. */
export interface ReceiveResult {
  /** Bytes received, from the start of the buffer on. */
  bytes: number;
  /** The header that the message was sent with; empty if none. */
  header: Uint8Array<ArrayBuffer>;
  /** True if they were received into pool pages, and copied from there into a mapped file. */
  copied?: boolean;
}

/** Settings of {@linkcode Channel.close}. */
export interface CloseOptions {
  /** Gives up waiting for the peer: the channel is aborted. */
  signal?: AbortSignal;
}
