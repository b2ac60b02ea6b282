/**
 * Listening and connecting over `tcp://`.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { libc } from "../../ffi/libc.ts";
import { SocketWelcome } from "../acceptor.ts";
import type { HostAddress } from "../address.ts";
import type { PoolCore } from "../memory/core.ts";
import { untilReady } from "../readiness.ts";
import type { ConnectSettings } from "../transport.ts";
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
export class TcpListener extends SocketWelcome<TcpTransport> {
  readonly address: string;
  readonly #core: PoolCore;
  readonly #settings: ConnectSettings;

  /** Listens. */
  static async open(
    core: PoolCore,
    at: HostAddress,
    settings: ConnectSettings,
  ): Promise<TcpListener> {
    const host = at.host === "" ? "" : await numericHost(at.host);
    return new TcpListener(core, at, listenSocket({ host, port: at.port }, at.text), settings);
  }

  private constructor(core: PoolCore, at: HostAddress, fd: number, settings: ConnectSettings) {
    super(fd);
    this.#core = core;
    this.#settings = { ...settings, signal: this.stop.signal };
    this.address = `tcp://${formatAddress({ host: at.host, port: portOf(fd) })}`;
  }

  rests(): boolean {
    return true;
  }

  protected greet(fd: number): Promise<TcpTransport> {
    prepareSocket(fd);
    const peer = `${this.address} (from ${peerOf(fd)})`;
    return greet(this.#core, fd, peer, this.#settings);
  }
}
