/**
 * TCP sockets: making them, and what is set on them. Never blocking.
 *
 * @module
 */
import { MoatError, systemError } from "../../ffi/errors.ts";
import { C, checked, errno, libc } from "../../ffi/libc.ts";
import { SOCKADDR_IN6 } from "../../ffi/verbs_layout.ts";
import {
  formatAddress,
  readAddress,
  type SocketAddress,
  writeAddress,
} from "../verbs/socket_address.ts";

const BACKLOG = 4096; // the kernel makes it net.core.somaxconn

// A peer whose machine has vanished is missed after 10 s of silence and four questions of 3 s.
const KEEPALIVE = [[C.TCP_KEEPIDLE, 10], [C.TCP_KEEPINTVL, 3], [C.TCP_KEEPCNT, 4]] as const;

function newSocket(address: Uint8Array): number {
  const family = new DataView(address.buffer).getUint16(0, true);
  const type = C.SOCK_STREAM | C.SOCK_CLOEXEC | C.SOCK_NONBLOCK;
  return checked("socket", libc().socket(family, type, 0), "raise ulimit -n");
}

function set(fd: number, level: number, name: number, value: number): void {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setInt32(0, value, true);
  checked(`setsockopt ${level}/${name}`, libc().setsockopt(fd, level, name, bytes, 4));
}

/** Sets what every connection has. */
export function prepareSocket(fd: number): void {
  set(fd, C.IPPROTO_TCP, C.TCP_NODELAY, 1);
  set(fd, C.SOL_SOCKET, C.SO_KEEPALIVE, 1);
  for (const [name, value] of KEEPALIVE) set(fd, C.IPPROTO_TCP, name, value);
}

/** Lets close(2) reset the connection. */
export function resetOnClose(fd: number): void {
  const linger = new Uint8Array(8);
  new DataView(linger.buffer).setInt32(0, 1, true);
  libc().setsockopt(fd, C.SOL_SOCKET, C.SO_LINGER, linger, 8);
}

/** Begins to connect. */
export function startConnect(to: SocketAddress, where: string): number {
  const address = writeAddress(to.host, to.port), fd = newSocket(address);
  try {
    prepareSocket(fd);
    connected(fd, to, where);
  } catch (error) {
    libc().close(fd);
    throw error;
  }
  return fd;
}

/** True once the socket is connected, `undefined` as long as it is not known. */
export function connected(fd: number, to: SocketAddress, where: string): true | undefined {
  const address = writeAddress(to.host, to.port);
  if (libc().connect(fd, address, address.length) === 0) return true;
  const error = errno();
  switch (error) {
    case C.EISCONN:
      return true;
    case C.EINPROGRESS:
    case C.EALREADY:
    case C.EINTR:
      return undefined;
    case C.ECONNREFUSED:
    case C.ECONNRESET:
    case C.ECONNABORTED:
      throw new MoatError("CONNECTION_REFUSED", `nobody listens at ${where}`, {
        errno: error,
        hint: "start the listener first; a firewall may refuse it too",
      });
    case C.ENETUNREACH:
    case C.EHOSTUNREACH:
    case C.EADDRNOTAVAIL:
    case C.ETIMEDOUT:
      throw new MoatError("UNREACHABLE", `${where} cannot be reached from here`, {
        errno: error,
        hint: "check the address and the route to it (ip route get)",
      });
    default:
      throw systemError(`connect to ${where}`, error);
  }
}

/** Listens. */
export function listenSocket(at: SocketAddress, where: string): number {
  const address = writeAddress(at.host, at.port), fd = newSocket(address);
  try {
    set(fd, C.SOL_SOCKET, C.SO_REUSEADDR, 1);
    if (libc().bind(fd, address, address.length) !== 0) throw bindError(errno(), where);
    if (libc().listen(fd, BACKLOG) !== 0) throw bindError(errno(), where);
    return fd;
  } catch (error) {
    libc().close(fd);
    throw error;
  }
}

function bindError(error: number, where: string): MoatError {
  if (error === C.EADDRINUSE) {
    return new MoatError("ADDRESS_IN_USE", `somebody listens at ${where} already`, {
      errno: error,
      hint: "use another port, 0 for a free one, or end the other program",
    });
  }
  if (error === C.EACCES) {
    return new MoatError("PERMISSION_DENIED", `${where} may not be listened at`, {
      errno: error,
      hint: "ports below net.ipv4.ip_unprivileged_port_start need a privilege",
    });
  }
  return systemError(`bind to ${where}`, error, "the address must be one of this host's");
}

function nameOf(fd: number, call: "getsockname" | "getpeername"): SocketAddress | undefined {
  const bytes = new Uint8Array(SOCKADDR_IN6.size), length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, bytes.length, true);
  if (libc()[call](fd, bytes, length) !== 0) return undefined;
  return readAddress(new DataView(bytes.buffer)); // by its address it might be collected meanwhile
}

/** The port a socket is bound to. */
export function portOf(fd: number): number {
  return nameOf(fd, "getsockname")?.port ?? 0;
}

/** The other side, for people. */
export function peerOf(fd: number): string {
  const name = nameOf(fd, "getpeername");
  return name ? formatAddress(name) : "a peer that is gone";
}

/** True if the other side is on this host: the kernel then copies all that is sent. */
export function isLocal(fd: number): boolean {
  const peer = nameOf(fd, "getpeername")?.host ?? "";
  return /^127\.|^::1$|^::ffff:7f/.test(peer) || peer === nameOf(fd, "getsockname")?.host;
}

/** Sends a few bytes on a new connection, whose buffers are empty. */
export function sendFew(fd: number, bytes: Uint8Array): void {
  libc().send(fd, bytes, bytes.length, C.MSG_NOSIGNAL | C.MSG_DONTWAIT); // a failure is seen when it is read from
}

/** Reads at most what `into` has room for. 0 at the end of the stream, or `undefined` if there is nothing now. */
export function readSome(fd: number, into: Uint8Array): number | undefined {
  const n = libc().read(fd, into, into.length);
  if (n >= 0) return n;
  const error = errno();
  return error === C.EAGAIN || error === C.EINTR ? undefined : 0;
}
