/**
 * Descriptors that tell of events, in the event loop, and queues of what was told.
 *
 * @module
 */
import { C, checked, libc } from "../../ffi/libc.ts";
import { MoatError } from "../../ffi/errors.ts";
import { reactor, type Source } from "../reactor.ts";

/** Makes a descriptor say `EAGAIN` instead of waiting. */
export function makeNonblocking(fd: number): void {
  const flags = checked("fcntl(F_GETFL)", libc().fcntl(fd, C.F_GETFL, 0));
  checked("fcntl(F_SETFL)", libc().fcntl(fd, C.F_SETFL, flags | C.O_NONBLOCK));
}

/** A nonblocking descriptor in the event loop: `drain` is called when there may be something to read. */
export class Watch implements Source {
  readonly #fd: number;
  readonly #drain: () => boolean;
  #ended = false;

  /** @param drain reads everything there is; true if there was anything */
  constructor(fd: number, drain: () => boolean) {
    this.#fd = fd;
    this.#drain = drain;
    makeNonblocking(fd);
    reactor().add(this, fd, -1);
  }

  /** For the event loop. */
  poll(): boolean {
    return !this.#ended && this.#drain();
  }

  /** For the event loop. The descriptor is edge-triggered, so it is looked at once more. */
  arm(): boolean {
    return !this.#ended && this.#drain();
  }

  /** Takes the descriptor out of the event loop, before it is closed. */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    reactor().remove(this, this.#fd);
  }
}

/** Things that come one after another and are waited for. Whoever waits keeps the process alive. */
export class AsyncQueue<T> {
  readonly #items: T[] = [];
  readonly #waiting: { resolve: (item: T | undefined) => void }[] = [];
  #ended = false;

  /** Adds an item, or hands it to whoever has waited longest. */
  push(item: T): void {
    const waiter = this.#waiting.shift();
    if (waiter) waiter.resolve(item);
    else this.#items.push(item);
  }

  /** Takes an item if there is one. */
  take(): T | undefined {
    return this.#items.shift();
  }

  /**
   * The next item; `undefined` after the end.
   *
   * @throws the signal's reason
   */
  next(signal?: AbortSignal): Promise<T | undefined> {
    signal?.throwIfAborted();
    const item = this.#items.shift();
    if (item !== undefined || this.#ended) return Promise.resolve(item);
    const { promise, resolve, reject } = Promise.withResolvers<T | undefined>();
    const settle = (): void => {
      reactor().hold(-1);
      signal?.removeEventListener("abort", aborted);
    };
    const waiter = {
      resolve: (item: T | undefined): void => {
        settle();
        resolve(item);
      },
    };
    const aborted = (): void => {
      this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
      settle();
      reject(signal?.reason);
    };
    reactor().hold(1);
    this.#waiting.push(waiter);
    signal?.addEventListener("abort", aborted, { once: true });
    return promise;
  }

  /** Ends it: those who wait get `undefined`. Returns what nobody took. */
  end(): T[] {
    this.#ended = true;
    for (const waiter of this.#waiting.splice(0)) waiter.resolve(undefined);
    return this.#items.splice(0);
  }
}

/**
 * Runs a phase under a time limit and a signal. The timer keeps the process alive.
 *
 * @param milliseconds the limit; 0 or `Infinity` for none
 * @throws {MoatError} `TIMED_OUT`, or the signal's reason
 */
export async function within<T>(
  promise: Promise<T>,
  what: string,
  milliseconds: number,
  signal: AbortSignal | undefined,
  hint: string,
): Promise<T> {
  signal?.throwIfAborted();
  const limit = Promise.withResolvers<never>();
  const timer = milliseconds > 0 && milliseconds < 2 ** 31
    ? setTimeout(() => {
      const message = `${what} took longer than ${milliseconds} ms`;
      limit.reject(new MoatError("TIMED_OUT", message, hint === "" ? {} : { hint }));
    }, milliseconds)
    : undefined;
  const aborted = (): void => limit.reject(signal?.reason);
  signal?.addEventListener("abort", aborted, { once: true });
  reactor().hold(1);
  try {
    return await Promise.race([promise, limit.promise]);
  } finally {
    reactor().hold(-1);
    clearTimeout(timer);
    signal?.removeEventListener("abort", aborted);
  }
}
