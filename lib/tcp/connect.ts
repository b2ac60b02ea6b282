/**
 * Listening and connecting over `tcp://`.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { libc } from "../../ffi/libc.ts";
import type { HostAddress } from "../address.ts";
import type { PoolCore } from "../memory/core.ts";
import { reactor, type Source } from "../reactor.ts";
import { untilReady } from "../readiness.ts";
import { acceptSocket } from "../shm/socket.ts";
import type { Acceptor, ConnectSettings } from "../transport.ts";
import { formatAddress, numericHost, type SocketAddress } from "../verbs/socket_address.ts";
import { decodeHello, encodeHello, HELLO_SIZE } from "./hello.ts";
import {
  connected,
  listenSocket,
  peerOf,
  portOf,
  prepareSocket,
  readSome,
  sendFew,
  startConnect,
} from "./socket.ts";
import { TcpTransport } from "./transport.ts";

// Sends our greeting and reads the peer's. The socket is the transport's, or closed, afterwards.
async function greet(
  core: PoolCore,
  fd: number,
  peer: string,
  settings: ConnectSettings,
): Promise<TcpTransport> {
  let open = true;
  try {
    sendFew(fd, encodeHello(core.helper.moat_thread_id()));
    const bytes = new Uint8Array(HELLO_SIZE);
    let have = 0;
    const look = (): true | undefined => {
      const n = readSome(fd, bytes.subarray(have)); // not more: what follows are frames
      if (n === undefined) return undefined;
      if (n === 0) {
        throw new MoatError("PEER_LOST", `${peer}: the other side hung up before it greeted`, {
          hint: "it may not speak this protocol, or its pool may be closed",
        });
      }
      have += n;
      return have === HELLO_SIZE ? true : undefined;
    };
    await untilReady(fd, look, `${peer}: no greeting`, settings);
    const identity = decodeHello(bytes, peer);
    core.assertOpen();
    open = false;
    return new TcpTransport(core, fd, identity, peer);
  } catch (error) {
    if (open) libc().close(fd);
    throw error;
  }
}

/** Connects to a listener. */
export async function connectTcp(
  core: PoolCore,
  to: HostAddress,
  settings: ConnectSettings,
): Promise<TcpTransport> {
  if (to.host === "" || to.port === 0) {
    throw new MoatError("INVALID_ARGUMENT", `${to.text} is no address to connect to`, {
      hint: 'name a host and a port, for example "tcp://10.0.0.1:7471"',
    });
  }
  const at: SocketAddress = { host: await numericHost(to.host), port: to.port };
  settings.signal?.throwIfAborted();
  core.assertOpen();
  const fd = startConnect(at, to.text);
  try {
    await untilReady(fd, () => connected(fd, at, to.text), `${to.text}: no connection`, settings);
  } catch (error) {
    libc().close(fd);
    throw error;
  }
  return greet(core, fd, to.text, settings);
}

/** A listening socket. */
export class TcpListener implements Acceptor, Source {
  readonly address: string;
  readonly #core: PoolCore;
  readonly #fd: number;
  readonly #settings: ConnectSettings;
  readonly #ready: TcpTransport[] = [];
  readonly #greeting = new Set<Promise<void>>();
  readonly #stop = new AbortController();
  onready: () => void = () => {};
  error: unknown;

  /** Listens. */
  static async open(
    core: PoolCore,
    at: HostAddress,
    settings: ConnectSettings,
  ): Promise<TcpListener> {
    const host = at.host === "" ? "" : await numericHost(at.host);
    return new TcpListener(core, at, host, settings);
  }

  private constructor(core: PoolCore, at: HostAddress, host: string, settings: ConnectSettings) {
    this.#core = core;
    this.#settings = { ...settings, signal: this.#stop.signal };
    this.#fd = listenSocket({ host, port: at.port }, at.text);
    this.address = `tcp://${formatAddress({ host: at.host, port: portOf(this.#fd) })}`;
    reactor().add(this, this.#fd, -1);
  }

  /** A connection that has greeted. */
  take(): TcpTransport | undefined {
    return this.#ready.shift();
  }

  poll(): boolean {
    let any = false;
    try {
      for (let fd; (fd = acceptSocket(this.#fd)) >= 0;) {
        any = true;
        this.#welcome(fd);
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

  rests(): boolean {
    return true;
  }

  // A stranger that greets badly, or not at all, is none of the program's business; the next may be better.
  #welcome(fd: number): void {
    prepareSocket(fd);
    const peer = `${this.address} (from ${peerOf(fd)})`;
    const done = greet(this.#core, fd, peer, this.#settings).then(async (transport) => {
      if (this.#stop.signal.aborted) {
        await transport.giveUp();
        return;
      }
      this.#ready.push(transport);
      this.onready();
    }, () => {}).finally(() => this.#greeting.delete(done));
    this.#greeting.add(done);
  }

  /** Stops listening; connections that nobody took are ended. */
  async close(): Promise<void> {
    this.#stop.abort();
    reactor().remove(this, this.#fd);
    libc().close(this.#fd);
    await Promise.all(this.#greeting);
    await Promise.all(this.#ready.splice(0).map((transport) => transport.giveUp()));
  }
}
