/**
 * Listening and connecting over `shm://`.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { cString, libc } from "../../ffi/libc.ts";
import { SocketWelcome } from "../acceptor.ts";
import type { PoolCore } from "../memory/core.ts";
import { untilReady } from "../readiness.ts";
import type { ConnectSettings } from "../transport.ts";
import { checkHello, hello, HELLO_SIZE } from "./hello.ts";
import {
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
export class ShmListener extends SocketWelcome<ShmTransport> {
  readonly address: string;
  readonly #core: PoolCore;
  readonly #path: string;
  readonly #settings: ConnectSettings;

  constructor(core: PoolCore, name: string, where: string, settings: ConnectSettings) {
    const path = socketPath(name);
    super(listenSocket(path, settings.uids.length > 0));
    this.#core = core;
    this.#path = path;
    this.address = where;
    this.#settings = { ...settings, signal: this.stop.signal };
  }

  protected greet(fd: number): Promise<ShmTransport> {
    return greet(this.#core, fd, this.address, this.#settings);
  }

  protected override shut(): void {
    super.shut();
    libc().unlink(cString(this.#path));
  }
}
