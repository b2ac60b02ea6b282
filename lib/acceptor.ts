/**
 * What the listeners of all transports have in common: connections that are being made, and those that are and
 * that nobody has taken yet.
 *
 * @module
 */
import { C, errno, libc } from "../ffi/libc.ts";
import { systemError } from "../ffi/errors.ts";
import type { NativeTransport } from "./native_transport.ts";
import { reactor, type Source } from "./reactor.ts";
import type { Acceptor } from "./transport.ts";

/** A listener. */
export abstract class Welcome<T extends NativeTransport> implements Acceptor {
  abstract readonly address: string;
  onready: () => void = () => {};
  error: unknown;
  /** Ends what is being made when the listener is closed. */
  protected readonly stop: AbortController = new AbortController();
  readonly #ready: T[] = [];
  readonly #coming = new Set<Promise<void>>();

  /** A connection that has greeted. */
  take(): T | undefined {
    return this.#ready.shift();
  }

  // A stranger that greets badly, or not at all, is none of the program's business; the next may be better.
  protected welcome(coming: Promise<T | undefined>): void {
    const done = coming.then(async (transport) => {
      if (!transport) return;
      if (this.stop.signal.aborted) {
        await transport.giveUp();
        return;
      }
      this.#ready.push(transport);
      this.onready();
    }, () => {}).finally(() => this.#coming.delete(done));
    this.#coming.add(done);
  }

  /** Stops listening. */
  protected abstract shut(): void;

  /** Stops listening; connections that nobody took are ended. */
  async close(): Promise<void> {
    this.stop.abort();
    this.shut();
    await Promise.all(this.#coming);
    await Promise.all(this.#ready.splice(0).map((transport) => transport.giveUp()));
  }
}

const EMFILE = 24, ECONNABORTED = 103;

/** A listening socket. */
export abstract class SocketWelcome<T extends NativeTransport> extends Welcome<T>
  implements Source {
  readonly #fd: number;

  /** The socket is this object's from here on. */
  constructor(fd: number) {
    super();
    this.#fd = fd;
    reactor().add(this, fd, -1);
  }

  /** Makes a connection of a socket. */
  protected abstract greet(fd: number): Promise<T>;

  poll(): boolean {
    let any = false;
    try {
      for (let fd; (fd = acceptSocket(this.#fd)) >= 0;) {
        any = true;
        this.welcome(this.greet(fd));
      }
    } catch (error) {
      this.error = error;
      this.onready();
    }
    return any;
  }

  arm(): boolean {
    return this.poll();
  }

  protected shut(): void {
    reactor().remove(this, this.#fd);
    libc().close(this.#fd);
  }
}

/** A connection that waits to be accepted, or -1. */
export function acceptSocket(fd: number): number {
  const flags = C.SOCK_CLOEXEC | C.SOCK_NONBLOCK;
  const got = libc().accept4(fd, 0, 0, flags);
  if (got >= 0) return got;
  const error = errno();
  // A connection that went away before it was accepted is nobody's error.
  if (error === C.EAGAIN || error === C.EINTR || error === ECONNABORTED) return -1;
  throw systemError("accept4", error, error === EMFILE ? "raise ulimit -n" : undefined);
}
