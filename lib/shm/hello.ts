/**
 * The greeting of an `shm://` connection. Each side sends one packet of 32 bytes with two descriptors, the
 * memfds of its pool and of its ring, and checks the other's before it maps anything.
 *
 * | offset | field |
 * |---|---|
 * | 0 | magic, `MOAT` |
 * | 4 | protocol version |
 * | 8 | page size, bytes |
 * | 12 | frames of the pool |
 * | 16 | bytes of the ring |
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { C, libc, pageSize } from "../../ffi/libc.ts";
import { RING, STATFS } from "../../ffi/layout.ts";
import type { Packet } from "./socket.ts";

const MAGIC = 0x54414f4d, VERSION = 1, SIZE = 32;

// 1 TiB in pages of 4 KiB. A peer can promise memory that it does not have, but we need a byte for each frame
// that is read in place.
const MOST_FRAMES = 2 ** 28;

/** The size of the greeting; a larger packet is none. */
export const HELLO_SIZE = SIZE;

/** Our greeting. */
export function hello(frames: number): Uint8Array {
  const bytes = new Uint8Array(SIZE), view = new DataView(bytes.buffer);
  [MAGIC, VERSION, pageSize(), frames, RING.size].forEach((value, i) =>
    view.setUint32(i * 4, value, true)
  );
  return bytes;
}

/** What a peer offers, checked. */
export interface Greeting {
  poolFd: number;
  ringFd: number;
  frames: number;
}

/**
 * Checks a peer's greeting. Its descriptors must be memfds that it cannot shorten under us.
 *
 * @throws {MoatError} `PEER_PROTOCOL`, after closing the descriptors that came with it.
 */
export function checkHello(packet: Packet, peer: string): Greeting {
  const problem = faultOf(packet);
  if (problem === undefined) {
    const [poolFd, ringFd] = packet.fds as [number, number];
    const view = new DataView(packet.data.buffer, packet.data.byteOffset);
    return { poolFd, ringFd, frames: view.getUint32(12, true) };
  }
  for (const fd of packet.fds) libc().close(fd);
  throw new MoatError("PEER_PROTOCOL", `${peer}: ${problem}`, {
    hint: "both sides must be this library, in versions that understand each other",
  });
}

function faultOf({ data, fds, truncated }: Packet): string | undefined {
  if (data.length !== SIZE) return `a greeting of ${data.length} bytes instead of ${SIZE}`;
  const view = new DataView(data.buffer, data.byteOffset);
  const [magic, version, page, frames, ring] = [0, 4, 8, 12, 16].map((at) =>
    view.getUint32(at, true)
  ) as [number, number, number, number, number];
  if (magic !== MAGIC) return "the greeting is not Moat's";
  if (version !== VERSION) return `protocol version ${version}; this side speaks ${VERSION}`;
  if (page !== pageSize()) return `pages of ${page} bytes`;
  if (ring !== RING.size) return `a ring of ${ring} bytes`;
  if (truncated || fds.length !== 2) return `${fds.length} descriptors instead of 2`;
  if (frames === 0 || frames > MOST_FRAMES) return `a pool of ${frames} frames`;
  for (const [fd, bytes] of [[fds[0]!, frames * page], [fds[1]!, ring]] as const) {
    const seals = libc().fcntl(fd, C.F_GET_SEALS, 0);
    if (seals < 0 || (seals & C.F_SEAL_SHRINK) === 0) {
      return "a descriptor is not a memfd sealed against shrinking";
    }
    if (!onTmpfs(fd)) return "a memfd of huge pages";
    const size = libc().lseek(fd, 0, C.SEEK_END);
    if (size < bytes) return `a memfd of ${size} bytes where ${bytes} were promised`;
  }
  return undefined;
}

// Touching a hole in memory of huge pages, when there are none left, is SIGBUS, and its owner can punch holes.
function onTmpfs(fd: number): boolean {
  const buf = new Uint8Array(STATFS.size);
  return libc().fstatfs(fd, buf) === 0 &&
    new DataView(buf.buffer).getUint32(STATFS.type, true) === C.TMPFS_MAGIC;
}
