/**
 * Unix sockets that pass descriptors: how the two sides of an `shm://` connection find each other.
 *
 * Sequenced packets, so that a greeting arrives whole or not at all; never blocking.
 *
 * @module
 */
import { errnoName, MoatError, systemError } from "../../ffi/errors.ts";
import { C, checked, cString, errno, libc } from "../../ffi/libc.ts";
import { MSGHDR, SOCKADDR_UN, UCRED } from "../../ffi/layout.ts";
import { runtime } from "../../ffi/runtime.ts";

/**
 * The socket's path for the name of an `shm://` address.
 *
 * A plain name stands for a socket in a directory of the user's own; an absolute path for itself.
 */
export function socketPath(name: string): string {
  if (name.startsWith("/")) return name;
  return `${privateDirectory()}/${name}.sock`;
}

function privateDirectory(): string {
  const uid = libc().getuid();
  const directory = `/tmp/moat-${uid}`;
  const path = cString(directory);
  if (libc().mkdir(path, 0o700) === -1 && errno() !== C.EEXIST) {
    throw systemError(`mkdir ${directory}`, errno());
  }
  // Changing the mode succeeds only for the owner: nobody else can have put the directory there.
  if (libc().chmod(path, 0o700) === -1) {
    throw new MoatError("PERMISSION_DENIED", `${directory} is not ours (${errnoName(errno())})`, {
      hint: "somebody else made it: remove it, or use an absolute path (shm:///run/app/name.sock)",
    });
  }
  return directory;
}

function socketAddress(path: string): Uint8Array {
  const bytes = cString(path);
  const room = SOCKADDR_UN.size - SOCKADDR_UN.path;
  if (bytes.length > room) {
    throw new MoatError(
      "INVALID_ARGUMENT",
      `the socket's path is ${bytes.length - 1} bytes long: ${path}`,
      { hint: `use at most ${room - 1} bytes` },
    );
  }
  const address = new Uint8Array(SOCKADDR_UN.size);
  new DataView(address.buffer).setUint16(SOCKADDR_UN.family, C.AF_UNIX, true);
  address.set(bytes, SOCKADDR_UN.path);
  return address;
}

function newSocket(): number {
  const type = C.SOCK_SEQPACKET | C.SOCK_CLOEXEC | C.SOCK_NONBLOCK;
  return checked("socket", libc().socket(C.AF_UNIX, type, 0));
}

/** Connects. Throws `CONNECTION_REFUSED` when nobody listens. */
export function connectSocket(path: string): number {
  const address = socketAddress(path);
  const fd = newSocket();
  if (libc().connect(fd, address, address.length) === 0) return fd;
  const error = errno();
  libc().close(fd);
  if (error === C.ENOENT || error === C.ECONNREFUSED) {
    throw new MoatError("CONNECTION_REFUSED", `nobody listens at ${path}`, {
      errno: error,
      hint: "start the listener first, as the same user",
    });
  }
  if (error === C.EACCES) {
    throw new MoatError("PERMISSION_DENIED", `${path} may not be opened`, {
      errno: error,
      hint: "the listener is another user's; see ConnectOptions.uids",
    });
  }
  if (error === C.EAGAIN) {
    throw new MoatError("CONNECTION_REFUSED", `the listener at ${path} is not accepting`, {
      errno: error,
      hint: "its queue of connections is full; call accept() on it",
    });
  }
  throw systemError(`connect to ${path}`, error);
}

/** Listens, with the socket's mode 0600, or 0666 if others may connect. */
export function listenSocket(path: string, others: boolean): number {
  const address = socketAddress(path);
  for (let stale = false;;) {
    const fd = newSocket();
    if (libc().bind(fd, address, address.length) === 0) {
      try {
        checked(`chmod ${path}`, libc().chmod(cString(path), others ? 0o666 : 0o600));
        checked(`listen at ${path}`, libc().listen(fd, 128));
      } catch (error) {
        libc().close(fd);
        libc().unlink(cString(path));
        throw error;
      }
      return fd;
    }
    const error = errno();
    libc().close(fd);
    if (error !== C.EADDRINUSE) throw systemError(`bind to ${path}`, error);
    if (stale || answers(address)) {
      throw new MoatError("ADDRESS_IN_USE", `somebody listens at ${path} already`, {
        errno: error,
        hint: "use another name, or end the other program",
      });
    }
    stale = true; // left behind by a program that died: nobody listens there
    libc().unlink(cString(path));
  }
}

function answers(address: Uint8Array): boolean {
  const fd = newSocket();
  const refused = libc().connect(fd, address, address.length) === -1 &&
    errno() === C.ECONNREFUSED;
  libc().close(fd);
  return !refused;
}

/** Who is at the other end, as the kernel says. */
export function peerCredentials(fd: number): { pid: number; uid: number } {
  const value = new Uint8Array(UCRED.size), length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, UCRED.size, true);
  checked("SO_PEERCRED", libc().getsockopt(fd, C.SOL_SOCKET, C.SO_PEERCRED, value, length));
  const view = new DataView(value.buffer);
  return { pid: view.getInt32(UCRED.pid, true), uid: view.getUint32(UCRED.uid, true) };
}

// A struct msghdr, its iovec, its control data and the packet itself in one block that keeps its address: what only
// an address in it tells of could be collected before the call.
const MOST_FDS = 4;
const IOV = MSGHDR.size, CONTROL = IOV + 16, CONTROL_SIZE = 16 + MOST_FDS * 4;
const DATA = CONTROL + CONTROL_SIZE;

function header(bytes: number): { block: Uint8Array; view: DataView } {
  const block = new Uint8Array(DATA + bytes), view = new DataView(block.buffer);
  const base = runtime().addressOf(block);
  view.setBigUint64(IOV, BigInt(base + DATA), true);
  view.setBigUint64(IOV + 8, BigInt(bytes), true);
  view.setBigUint64(MSGHDR.iov, BigInt(base + IOV), true);
  view.setBigUint64(MSGHDR.iovlen, 1n, true);
  view.setBigUint64(MSGHDR.control, BigInt(base + CONTROL), true);
  return { block, view };
}

/** Sends a packet with descriptors. */
export function sendPacket(fd: number, data: Uint8Array, fds: readonly number[]): void {
  const { block, view } = header(data.length);
  block.set(data, DATA);
  const length = 16 + fds.length * 4;
  if (fds.length > 0) {
    view.setBigUint64(MSGHDR.controllen, BigInt((length + 7) & ~7), true);
    view.setBigUint64(CONTROL, BigInt(length), true);
    view.setInt32(CONTROL + 8, C.SOL_SOCKET, true);
    view.setInt32(CONTROL + 12, C.SCM_RIGHTS, true);
    fds.forEach((each, i) => view.setInt32(CONTROL + 16 + i * 4, each, true));
  }
  checked("sendmsg", libc().sendmsg(fd, block, C.MSG_NOSIGNAL | C.MSG_DONTWAIT));
}

/** A packet that was received; `undefined` when there is none, `data.length` 0 at the end. */
export interface Packet {
  data: Uint8Array;
  fds: number[];
  truncated: boolean;
}

/** Receives a packet with its descriptors, which are the caller's to close. */
export function receivePacket(fd: number, most: number): Packet | undefined {
  const { block, view } = header(most);
  view.setBigUint64(MSGHDR.controllen, BigInt(CONTROL_SIZE), true);
  const n = libc().recvmsg(fd, block, C.MSG_DONTWAIT | C.MSG_CMSG_CLOEXEC);
  if (n < 0) {
    const error = errno();
    if (error === C.EAGAIN || error === C.EINTR) return undefined;
    if (error === 104) return { data: new Uint8Array(0), fds: [], truncated: false };
    throw systemError("recvmsg", error);
  }
  const fds: number[] = [];
  const controlLength = Number(view.getBigUint64(MSGHDR.controllen, true));
  if (controlLength >= 16 && view.getInt32(CONTROL + 12, true) === C.SCM_RIGHTS) {
    const end = Math.min(Number(view.getBigUint64(CONTROL, true)), CONTROL_SIZE);
    for (let at = 16; at + 4 <= end; at += 4) fds.push(view.getInt32(CONTROL + at, true));
  }
  const truncated = (view.getInt32(MSGHDR.flags, true) & (C.MSG_CTRUNC | 0x20)) !== 0;
  return { data: block.slice(DATA, DATA + n), fds, truncated };
}
