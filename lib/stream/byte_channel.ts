/**
 * The side of a channel that looks like a socket.
 *
 * @module
 */
import type { Bytes } from "./bytes.ts";
import { readableOf } from "./readable.ts";
import { type Chunk, writableOf } from "./writable.ts";

/**
 * Bytes instead of messages: the shape of `Deno.Conn`, so that code written for a socket runs over a
 * {@linkcode Channel}.
 *
 * @example What came is sent back
 * ```ts ignore
 * await channel.readable.pipeTo(channel.writable);
 * ```
 */
export abstract class ByteChannel {
  readonly #bytes: Bytes;
  #readable: ReadableStream<Uint8Array<ArrayBuffer>> | undefined;
  #writable: WritableStream<Chunk> | undefined;

  /** Channels are made by {@linkcode connect} and {@linkcode Listener}. */
  constructor(bytes: Bytes) {
    this.#bytes = bytes;
  }

  /**
   * Reads bytes with the semantics of a socket: those of the peer's messages, in order, whatever it sent them
   * with. Resolves to how many were copied to `p`, or to `null` at the end of the stream: when the peer has called
   * {@linkcode closeWrite} (or sent an empty message), or has closed the channel. Headers are left out.
   *
   * @throws {MoatError} As a rejection: `INVALID_ARGUMENT` on a channel that uses {@linkcode Channel.recv}; or how the
   * channel ended.
   */
  read(p: Uint8Array): Promise<number | null> {
    return this.#bytes.read(p);
  }

  /**
   * Sends bytes, which may be changed at once. Resolves to their number, as {@linkcode Channel.send} does for its
   * messages. Pool memory is sent from where it is, other memory is copied; much of it in several messages.
   */
  write(p: Uint8Array): Promise<number> {
    return this.#bytes.write(p);
  }

  /** Tells the peer that no more bytes come, by an empty message; resolves when it has been sent. Reading goes on. */
  closeWrite(): Promise<void> {
    return this.#bytes.closeWrite();
  }

  /**
   * What {@linkcode read} reads, as a byte stream, for BYOB readers too. Cancelling it ends the reading alone:
   * the peer is held back until the channel is closed.
   */
  get readable(): ReadableStream<Uint8Array<ArrayBuffer>> {
    return this.#readable ??= readableOf(this.#bytes);
  }

  /**
   * {@linkcode write} as a stream. It takes no more than the peer reads, and a window of 1 MiB. Closing it is
   * {@linkcode closeWrite}; aborting it aborts the channel.
   */
  get writable(): WritableStream<Chunk> {
    return this.#writable ??= writableOf(this.#bytes);
  }
}
