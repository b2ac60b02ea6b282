/**
 * The other side of an `shm://` connection, made by hand: every byte of its greeting, its ring and its
 * pool is the test's.
 *
 * @module
 */
import { C, checked, cString, libc, map, pageSize } from "../../ffi/libc.ts";
import { DESC, DESC_KIND, MSGHDR, RING } from "../../ffi/layout.ts";
import { runtime } from "../../ffi/runtime.ts";
import { HELLO_SIZE } from "../../lib/shm/hello.ts";
import { acceptSocket } from "../../lib/acceptor.ts";
import {
  connectSocket,
  listenSocket,
  receivePacket,
  sendPacket,
  socketPath,
} from "../../lib/shm/socket.ts";

/** Offsets in the ring, and its sizes (ffi/helper/shm.h). */
export const AT = {
  txTail: 0,
  rxHead: 64,
  relTail: 128,
  state: RING.state,
  desc: 4096,
  rel: 4096 + 65536,
  eager: 4096 + 2 * 65536,
  slots: 1024,
  releases: 16384,
  eagerBytes: 256 << 10,
} as const;

/** A memfd of `bytes` bytes. */
export function memfd(bytes: number, seals: number = C.F_SEAL_SHRINK, flags = 0): number {
  const fd = libc().memfd_create(cString("hostile"), C.MFD_CLOEXEC | C.MFD_ALLOW_SEALING | flags);
  checked("memfd_create", fd);
  checked("ftruncate", libc().ftruncate(fd, bytes));
  if (seals) checked("sealing", libc().fcntl(fd, C.F_ADD_SEALS, seals));
  return fd;
}

/** A greeting; what is left out is right. */
export function greeting(
  fields: { magic?: number; version?: number; page?: number; frames?: number; ring?: number } = {},
): Uint8Array {
  const bytes = new Uint8Array(HELLO_SIZE), view = new DataView(bytes.buffer);
  const { magic = 0x54414f4d, version = 1, page = pageSize(), frames = 64, ring = RING.size } =
    fields;
  [magic, version, page, frames, ring].forEach((value, i) => view.setUint32(i * 4, value, true));
  return bytes;
}

/** Sends a packet of any length, 0 too, with any number of descriptors. */
export function sendAny(fd: number, data: Uint8Array, fds: readonly number[]): void {
  const iov = MSGHDR.size, control = iov + 16, end = control + 16 + fds.length * 4;
  const block = new Uint8Array(((end + 7) & ~7) + data.length), view = new DataView(block.buffer);
  block.set(data, block.length - data.length);
  const base = runtime().addressOf(block),
    put = (at: number, value: number): void => view.setBigUint64(at, BigInt(value), true);
  put(iov, base + block.length - data.length);
  put(iov + 8, data.length);
  put(MSGHDR.iov, base + iov);
  put(MSGHDR.iovlen, 1);
  if (fds.length > 0) {
    put(MSGHDR.control, base + control);
    put(MSGHDR.controllen, (end + 7 & ~7) - control);
    put(control, end - control);
    view.setInt32(control + 8, C.SOL_SOCKET, true);
    view.setInt32(control + 12, C.SCM_RIGHTS, true);
    fds.forEach((each, i) => view.setInt32(control + 16 + i * 4, each, true));
  }
  checked("sendmsg", libc().sendmsg(fd, block, C.MSG_NOSIGNAL | C.MSG_DONTWAIT));
}

/** The path of an address's socket. */
export function pathOf(address: string): string {
  return socketPath(address.slice("shm://".length));
}

/** Connects to an address without greeting. */
export function dial(address: string): number {
  return connectSocket(pathOf(address));
}

/** Asks until there is an answer. */
export async function until<T>(ask: () => T | undefined): Promise<T> {
  for (let answer;; await new Promise((resolve) => setTimeout(resolve, 1))) {
    if ((answer = ask()) !== undefined) return answer;
  }
}

/** Resolves when the other side has hung up. */
export async function hungUp(fd: number): Promise<void> {
  await until(() => {
    for (let packet; (packet = receivePacket(fd, 64));) {
      for (const each of packet.fds) libc().close(each);
      if (packet.data.length === 0) return true;
    }
    return undefined;
  });
}

/** Listens at an address, accepts one connection and calls `talk` with it; hangs up afterwards. */
export async function answerOnce(
  address: string,
  talk: (fd: number) => unknown,
): Promise<void> {
  const path = pathOf(address), socket = listenSocket(path, false);
  const fd = await until(() => {
    const got = acceptSocket(socket);
    return got < 0 ? undefined : got;
  });
  libc().close(socket);
  libc().unlink(cString(path));
  await talk(fd);
  libc().close(fd);
}

/** What a message's descriptor says. */
export interface Fields {
  id?: number;
  kind?: number;
  len?: number | bigint;
  off?: number;
  /** By default the number of `runs`. */
  nruns?: number;
  runs?: readonly (readonly [frame: number, count: number])[];
  table?: number;
  /** Where the header is, and how long. */
  head?: { length: number; offset: number };
}

/** One connection, seen from its bad side. */
export class Hostile {
  readonly fd: number;
  /** Our ring and the start of our pool. */
  readonly ring: DataView<ArrayBuffer>;
  readonly pool: Uint8Array<ArrayBuffer>;
  /** The victim's ring. */
  readonly theirs: DataView<ArrayBuffer>;
  /** The descriptors of the victim's pool and ring. */
  readonly theirFds: readonly [pool: number, ring: number];
  readonly #fds: number[];
  readonly #undo: (() => void)[] = [];
  #tail = 0;
  #releases = 0;

  private constructor(
    fd: number,
    fds: [number, number],
    theirFds: [number, number],
    bytes: number,
  ) {
    this.fd = fd;
    this.#fds = [fd, ...fds, ...theirFds];
    this.theirFds = theirFds;
    const both = C.PROT_READ | C.PROT_WRITE;
    this.pool = new Uint8Array(this.#view(bytes, both, fds[0]));
    this.ring = new DataView(this.#view(RING.size, both, fds[1]));
    this.theirs = new DataView(this.#view(RING.size, C.PROT_READ, theirFds[1]));
    this.ring.setUint32(AT.state, RING.open, true);
  }

  /** Greets as it should be done. Of a pool of `frames` frames, it maps no more than 16 MiB. */
  static async over(fd: number, frames = 64): Promise<Hostile> {
    const bytes = frames * pageSize(), fds: [number, number] = [memfd(bytes), memfd(RING.size)];
    sendPacket(fd, greeting({ frames }), fds);
    const packet = await until(() => receivePacket(fd, 64));
    return new Hostile(fd, fds, packet.fds as [number, number], Math.min(bytes, 16 << 20));
  }

  /** Connects to an address and greets as it should be done. */
  static connect(address: string, frames?: number): Promise<Hostile> {
    return Hostile.over(dial(address), frames);
  }

  #view(bytes: number, prot: number, fd: number): ArrayBuffer {
    const address = map(bytes, prot, C.MAP_SHARED, fd);
    const view = runtime().viewOf(address, bytes);
    this.#undo.push(() => {
      view.transfer(0);
      libc().munmap(address, bytes);
    });
    return view;
  }

  /** Writes 64 bits of the ring. */
  set(at: number, value: number | bigint): void {
    this.ring.setBigUint64(at, BigInt.asUintN(64, BigInt(value)), true);
  }

  /** Writes a descriptor in its place, without publishing it. */
  describe(slot: number, fields: Fields): void {
    const at = AT.desc + (slot % AT.slots) * DESC.size, { runs = [] } = fields;
    const put = (offset: number, value: number): void =>
      this.ring.setUint32(at + offset, value >>> 0, true);
    put(DESC.id, fields.id ?? 0);
    put(DESC.kind, fields.kind ?? DESC_KIND.pages);
    this.set(at + DESC.len, fields.len ?? 0);
    put(DESC.off, fields.off ?? 0);
    put(DESC.nruns, fields.nruns ?? runs.length);
    for (let i = 0; i < 4; i++) {
      const [frame, count] = runs[i] ?? [0, 0];
      put(DESC.runs + i * 8, frame);
      put(DESC.runs + i * 8 + 4, count);
    }
    put(DESC.runs + 32, fields.table ?? 0);
    const { length, offset } = fields.head ?? { length: 0, offset: 0 };
    put(DESC.runs + 36, length * 2 ** 20 + offset);
  }

  /** Sends a message: whatever its descriptor says. */
  publish(fields: Fields): void {
    this.describe(this.#tail++, fields);
    this.set(AT.txTail, this.#tail);
    this.wake();
  }

  /** Writes a list of runs into a frame of the pool. Its last entry links to `next`. */
  table(frame: number, runs: readonly (readonly [frame: number, count: number])[], next = 0): void {
    const view = new DataView(this.pool.buffer, frame * pageSize(), pageSize());
    runs.forEach(([first, count], i) => {
      view.setUint32(i * 8, first >>> 0, true);
      view.setUint32(i * 8 + 4, count >>> 0, true);
    });
    view.setUint32(pageSize() - 8, next >>> 0, true);
  }

  /** Releases a message of the victim's. */
  release(id: number): void {
    this.ring.setUint32(AT.rel + (this.#releases++ % AT.releases) * 4, id >>> 0, true);
    this.set(AT.relTail, this.#releases);
    this.wake();
  }

  /** Makes the victim look. */
  wake(): void {
    try {
      sendPacket(this.fd, new Uint8Array([119]), []);
    } catch {
      // It has hung up, or has not read the last ones.
    }
  }

  /** The operation of the victim's message number `index`, once it is there. */
  async idOf(index: number): Promise<number> {
    await until(() => this.theirs.getBigUint64(AT.txTail, true) > BigInt(index) || undefined);
    return this.theirs.getUint32(AT.desc + (index % AT.slots) * DESC.size + DESC.id, true);
  }

  /** Hangs up and gives everything back. */
  close(): void {
    for (const step of this.#undo.splice(0)) step();
    for (const fd of this.#fds.splice(0)) libc().close(fd);
  }
}
