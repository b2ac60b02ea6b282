/**
 * The messages of a channel as two streams of bytes, with the semantics of a socket: where a message begins
 * and ends means nothing, but that an empty one is the end of its stream.
 *
 * @module
 */
import { describe, MoatError } from "../../ffi/errors.ts";
import { assertWritable, mappingOf, regionOf } from "../memory/resolve.ts";
import { copyIn } from "../memory/input.ts";
import type { Message } from "../message.ts";
import type { Carrier, Receiver } from "./carrier.ts";

// Bytes of a message of a large write. The receiver needs as much of its pool in one piece, and what it has read
// is released at its end: neither should be much, and the cost of a message is small against 256 KiB.
const PIECE = 256 << 10;

/** Bytes of the largest chunk that is made for a reader who brings no memory. */
const CHUNK = 256 << 10;

/** Bytes of a place from which on it matters where in a page it begins. */
const LARGE = 16 << 10;

const NONE = new Uint8Array(0);

/** The bytes that a channel carries. */
export class Bytes {
  readonly #carrier: Carrier;
  #current: Message | undefined;
  #at = 0;
  #finished = false;
  #shut: Promise<void> | undefined;
  // The read under way: where to, and its promise. Others wait for their turn.
  #busy = false;
  #into: Uint8Array = NONE;
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;

  constructor(carrier: Carrier) {
    this.#carrier = carrier;
  }

  // ---- reading

  /** Reads what is there, at most as much as `p` has room for. `null` at the end of the stream. */
  read(p: Uint8Array): Promise<number | null> {
    if (!(p instanceof Uint8Array)) return Promise.reject(noBytes("read into", p));
    return this.#busy || this.#waiting > 0 ? this.#later(() => this.#read(p)) : this.#read(p);
  }

  #later<T>(act: () => Promise<T>): Promise<T> {
    this.#waiting++;
    const go = (): Promise<T> => {
      this.#waiting--;
      return act();
    };
    const promise = this.#last.then(go, go);
    this.#last = promise;
    return promise;
  }

  #read(p: Uint8Array): Promise<number | null> {
    if (p.byteLength === 0) return Promise.resolve(0);
    try {
      assertWritable(p, "read");
      const n = this.#current ? this.#consume(p) : 0;
      if (n > 0) return Promise.resolve(n);
    } catch (error) {
      return Promise.reject(error);
    }
    return this.#finished ? Promise.resolve(null) : this.#ask(p);
  }

  #ask(into: Uint8Array): Promise<number | null> {
    this.#busy = true;
    this.#into = into;
    try {
      const { core, transport } = this.#carrier;
      if (into.byteLength > LARGE) {
        transport.alignTo?.(regionOf(core, into) ? into.byteOffset % core.pageSize : 0);
      }
      const promise = this.#carrier.take(this.#receiver);
      if (this.#busy) this.#last = promise;
      return promise;
    } catch (error) {
      this.#idle();
      return Promise.reject(error);
    }
  }

  #idle(): Uint8Array {
    const into = this.#into;
    this.#busy = false;
    this.#into = NONE;
    return into;
  }

  readonly #receiver: Receiver<number | null> = {
    arrived: (op) => {
      const into = this.#idle(), { transport } = this.#carrier;
      const got = transport.collect(op, into);
      mappingOf(into)?.assertUsable("read");
      if (got > 0) return got;
      if (got < 0) {
        const message = this.#carrier.open(op);
        if (message.byteLength > 0 && !this.#finished) {
          this.#current = message;
          this.#at = 0;
          return this.#consume(into);
        }
        message.release();
      }
      this.#finished = true;
      return null;
    },
    ended: () => {
      this.#idle();
      return null;
    },
    failed: () => void this.#idle(),
  };

  // Moves bytes of the current message. 0 if there are none any more.
  #consume(into: Uint8Array): number {
    const message = this.#current!, { bytes } = message, at = this.#at;
    const n = Math.min(into.byteLength, bytes.byteLength - at);
    if (n > 0) {
      const from = bytes.subarray(at, at + n), to = into.subarray(0, n);
      const { core } = this.#carrier;
      if (message.copied) to.set(from);
      else {
        const last = at + n === bytes.byteLength;
        copyIn(core, { region: regionOf(core, to), bytes: to }, from, last);
      }
      this.#at += n;
    }
    if (this.#at >= bytes.byteLength) this.drop();
    mappingOf(into)?.assertUsable("read");
    return Math.max(n, 0);
  }

  /** The next bytes in memory of their own; `null` at the end of the stream. */
  async chunk(): Promise<Uint8Array<ArrayBuffer> | null> {
    for (;;) {
      const message = this.#current;
      if (message) {
        const { bytes, copied } = message, left = bytes.byteLength - this.#at;
        if (copied && this.#at === 0 && left > 0) {
          this.drop();
          return bytes;
        }
        const chunk = new Uint8Array(Math.max(0, Math.min(left, CHUNK)));
        if (this.#consume(chunk) > 0) return chunk;
      } else if (this.#finished) {
        return null;
      } else {
        const busy = this.#busy || this.#waiting > 0;
        if (await (busy ? this.#later(() => this.#fill()) : this.#fill()) === null) return null;
      }
    }
  }

  // Waits until a message is there to be read.
  #fill(): Promise<number | null> {
    if (this.#current) return Promise.resolve(0);
    return this.#finished ? Promise.resolve(null) : this.#ask(NONE);
  }

  /** Releases the message that is being read. */
  drop(): void {
    const message = this.#current;
    this.#current = undefined;
    message?.release();
  }

  /** Ends the reading: what is still to come is not received. */
  cancel(reason: unknown): void {
    this.#finished = true;
    this.drop();
    if (this.#busy) this.#carrier.cancel(reason);
  }

  // ---- writing

  /** Sends `p`, which may be changed at once. */
  write(p: Uint8Array): Promise<number> {
    try {
      return this.#write(p);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  #write(p: Uint8Array): Promise<number> {
    if (!(p instanceof Uint8Array)) throw noBytes("write of", p);
    if (this.#shut) {
      throw new MoatError("CHANNEL_CLOSED", "write after closeWrite()", {
        hint: "the peer has been told that no more comes",
      });
    }
    const { core, transport } = this.#carrier, length = p.byteLength;
    if (length === 0 && !(p.buffer as ArrayBuffer).detached) return Promise.resolve(0);
    if (
      length > 0 && length <= transport.eagerMax && !mappingOf(p) && this.#carrier.eager(p)
    ) {
      return Promise.resolve(length);
    }
    const reserve = (core.frames - core.pages) * core.pageSize;
    const piece = length <= transport.eagerMax || regionOf(core, p)
      ? PIECE
      : Math.max(transport.eagerMax, Math.min(PIECE, reserve));
    if (length <= piece) return this.#carrier.send(p).then(() => length);
    const sends: Promise<unknown>[] = [];
    // All but the first and the last are whole pages, where the memory is.
    for (let at = 0, end = piece - p.byteOffset % core.pageSize; at < length; end += piece) {
      sends.push(this.#carrier.send(p.subarray(at, end)));
      at = end;
    }
    return Promise.all(sends).then(() => length);
  }

  /** Tells the peer that no more comes. */
  closeWrite(): Promise<void> {
    return this.#shut ??= this.#carrier.send(NONE).then(() => {});
  }

  /** Ends both streams at once: the peer must not take what it has for the whole. */
  abort(reason: unknown): void {
    this.#carrier.abort(reason);
  }
}

/** The error for what is no bytes. */
export function noBytes(what: string, value: unknown): MoatError {
  return new MoatError("INVALID_ARGUMENT", `${what} ${describe(value)}`, {
    hint: "pass a Uint8Array, for example buf.bytes",
  });
}
