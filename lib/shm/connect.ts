/**
 * Listening and connecting over `shm://`.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { cString, libc } from "../../ffi/libc.ts";
import type { PoolCore } from "../memory/core.ts";
import { reactor, type Source } from "../reactor.ts";
import { untilReady } from "../readiness.ts";
import type { Acceptor, ConnectSettings } from "../transport.ts";
import { checkHello, hello, HELLO_SIZE } from "./hello.ts";
import {
  acceptSocket,
  connectSocket,
  listenSocket,
  peerCredentials,
  receivePacket,
  sendPacket,
  socketPath,
} from "./socket.ts";
import { dropRing, makeRing, ShmTransport } from "./transport.ts";

function checkUser(fd: number, where: string, uids: readonly number[]): void {
  const { uid } = peerCredentials(fd), own = libc().getuid();
  if (uid === own || uids.includes(uid)) return;
  throw new MoatError(
    "PERMISSION_DENIED",
    `${where}: the other side is user ${uid}, this is ${own}`,
    {
      hint: `allow it with the option uids: [${uid}]`,
    },
  );
}

// Sends our greeting and reads the peer's. The socket is the transport's, or closed, afterwards.
async function greet(
  core: PoolCore,
  fd: number,
  where: string,
  settings: ConnectSettings,
): Promise<ShmTransport> {
  let ring;
  try {
    checkUser(fd, where, settings.uids);
    ring = makeRing(core);
    sendPacket(fd, hello(core.frames), [core.memfd, ring.fd]);
    const packet = await untilReady(
      fd,
      () => receivePacket(fd, HELLO_SIZE + 1),
      `${where}: no greeting`,
      settings,
    );
    if (packet.data.length === 0) {
      for (const each of packet.fds) libc().close(each);
      throw new MoatError("PEER_LOST", `${where}: the other side hung up before it greeted`, {
        hint: "it may have refused this user, or its pool may be closed",
      });
    }
    core.assertOpen();
    const greeting = checkHello(packet, where);
    const transportRing = ring;
    ring = undefined;
    const mine = fd;
    fd = -1;
    return new ShmTransport(core, mine, transportRing, greeting, where);
  } catch (error) {
    if (ring) dropRing(ring);
    if (fd >= 0) libc().close(fd);
    throw error;
  }
}

/** Connects to a listener. */
export function connectShm(
  core: PoolCore,
  name: string,
  where: string,
  settings: ConnectSettings,
): Promise<ShmTransport> {
  return greet(core, connectSocket(socketPath(name)), where, settings);
}

/** A listening socket. */
export class ShmListener implements Acceptor, Source {
  readonly #core: PoolCore;
  readonly #fd: number;
  readonly #path: string;
  readonly address: string;
  readonly #settings: ConnectSettings;
  readonly #ready: ShmTransport[] = [];
  readonly #greeting = new Set<Promise<void>>();
  readonly #stop = new AbortController();
  /** Called when a connection is ready, or when the listener can make no more. */
  onready: () => void = () => {};
  error: unknown;

  constructor(core: PoolCore, name: string, where: string, settings: ConnectSettings) {
    this.#core = core;
    this.#path = socketPath(name);
    this.address = where;
    this.#settings = { ...settings, signal: this.#stop.signal };
    this.#fd = listenSocket(this.#path, settings.uids.length > 0);
    reactor().add(this, this.#fd, -1);
  }

  /** A connection that has greeted. */
  take(): ShmTransport | undefined {
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

  // A stranger that greets badly, or not at all, is none of the program's business; the next may be better.
  #welcome(fd: number): void {
    const done = greet(this.#core, fd, this.address, this.#settings).then((transport) => {
      if (this.#stop.signal.aborted) {
        transport.end(true);
        transport.destroy();
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
    libc().unlink(cString(this.#path));
    await Promise.all(this.#greeting);
    for (const transport of this.#ready.splice(0)) {
      transport.end(true);
      transport.destroy();
    }
  }
}
