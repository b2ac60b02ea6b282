/**
 * A channel's bytes as a `WritableStream`.
 *
 * @module
 */
import { type Bytes, noBytes } from "./bytes.ts";

// Bytes that were written and that the peer has not read yet: while there are more, writes wait. Several messages
// have to be on their way for any of the transports to be busy.
const WINDOW = 1 << 20;

// Bytes that the stream itself queues before it says that it is full.
const QUEUE = 64 << 10;

/** What is written; strings are for a `TextEncoderStream`. */
export type Chunk = Uint8Array | ArrayBufferView | ArrayBuffer;

/** Writes that have not been read by the peer, counted. */
class Window {
  #bytes = 0;
  #failed: { error: unknown } | undefined;
  #wake: (() => void) | undefined;

  /** Begins a write. */
  add(length: number, written: Promise<number>): void {
    this.#bytes += length;
    written.then(() => {
      this.#bytes -= length;
      this.#wake?.();
    }, (error) => {
      this.#failed ??= { error };
      this.#wake?.();
    });
  }

  /** Waits until no more than `most` bytes are under way. */
  async below(most: number): Promise<void> {
    while (this.#bytes > most && !this.#failed) {
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
    if (this.#failed) throw this.#failed.error;
  }
}

/**
 * A stream whose writes end when the peer has read all but a window of what was written. Closing it tells the
 * peer that no more comes; aborting it ends the channel, because the peer must not take half for the whole.
 */
export function writableOf(bytes: Bytes): WritableStream<Chunk> {
  const window = new Window();
  return new WritableStream<Chunk>({
    start(controller): void {
      const { signal } = controller as unknown as { signal: AbortSignal }; // not in every runtime's types
      // The stream calls abort() below only when the write under way has ended, and it may wait for the peer.
      signal.addEventListener("abort", () => bytes.abort(signal.reason), { once: true });
    },
    write(chunk): Promise<void> {
      const view = viewOf(chunk);
      window.add(view.byteLength, bytes.write(view));
      return window.below(WINDOW);
    },
    async close(): Promise<void> {
      await window.below(0);
      await bytes.closeWrite();
    },
    abort: (reason) => bytes.abort(reason),
  }, { highWaterMark: QUEUE, size: (chunk) => chunk?.byteLength ?? 1 });
}

function viewOf(chunk: unknown): Uint8Array {
  if (chunk instanceof Uint8Array) return chunk;
  if (ArrayBuffer.isView(chunk)) {
    return new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength);
  }
  if (chunk instanceof ArrayBuffer) return new Uint8Array(chunk);
  throw noBytes("write of", chunk);
}
