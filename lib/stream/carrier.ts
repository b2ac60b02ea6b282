/**
 * What the interface of bytes needs of the channel that carries them.
 *
 * @module
 */
import type { PoolCore } from "../memory/core.ts";
import type { Message } from "../message.ts";
import type { Transport } from "../transport.ts";

/** Who a message is for. One of these is called for each that was asked for. */
export interface Receiver<T> {
  /** It is there: that of operation `op`, or (-1) the one taken. */
  arrived(op: number): T;
  /** The peer has closed. */
  ended(): T;
  /** There will be none; the promise is rejected after this. */
  failed(): void;
}

/** A channel, from inside. */
export interface Carrier {
  readonly core: PoolCore;
  readonly transport: Transport;
  /** Asks for the next message. */
  take<T>(receiver: Receiver<T>): Promise<T>;
  /** Opens the message of an operation, or (-1) the one taken. */
  open(op: number): Message;
  /** Takes back what was asked for. */
  cancel(reason: unknown): void;
  /** Sends a small message by copying it; false if there is no room now. */
  eager(bytes: Uint8Array): boolean;
  /** Sends a message. */
  send(bytes: Uint8Array): Promise<unknown>;
  /** Ends the channel at once. */
  abort(reason: unknown): void;
}
