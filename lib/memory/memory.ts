/**
 * The two mappings of a pool: the device view and the window.
 *
 * @module
 */
import { C, checked, cString, errno, libc, map, mapAligned } from "../../ffi/libc.ts";
import { systemError } from "../../ffi/errors.ts";

/** Mapped memory of a pool. */
export interface PoolMemory {
  /** What frames are made of. */
  readonly memfd: number;
  /** The linear view of all frames. */
  readonly device: number;
  /** What buffers are made of: page k on frame k. */
  readonly window: number;
}

/** New memory: a sealed memfd, mapped twice. */
export function newMemory(windowBytes: number, deviceBytes: number): PoolMemory {
  const memfd = memfdOf(deviceBytes, "moat-pool");
  try {
    const prot = C.PROT_READ | C.PROT_WRITE;
    const device = mapAligned(deviceBytes, prot, C.MAP_SHARED, memfd);
    const window = mapAligned(windowBytes, prot, C.MAP_SHARED, memfd);
    // From here on nobody, we included, can map it writable again or cut it off: a peer may have it.
    const seals = C.F_SEAL_SHRINK | C.F_SEAL_GROW | C.F_SEAL_FUTURE_WRITE | C.F_SEAL_SEAL;
    checked("sealing the pool", libc().fcntl(memfd, C.F_ADD_SEALS, seals));
    return { memfd, device, window };
  } catch (error) {
    libc().close(memfd);
    throw error;
  }
}

/** A part of a file that is to be mapped. */
export interface FileRange {
  readonly fd: number;
  readonly offset: number;
  /** Bytes, whole pages. */
  readonly bytes: number;
  readonly writable: boolean;
}

/**
 * A file's pages as the first frames, and new memory behind them for private pages. The window of a file that may
 * not be written is a private mapping: a stray write then has a page of its own and not the file's.
 */
export function fileMemory(range: FileRange, reserveBytes: number): PoolMemory {
  const { fd, offset, bytes, writable } = range, prot = C.PROT_READ | C.PROT_WRITE;
  const undo: (() => void)[] = [];
  const mapped = (n: number, ...rest: [number, number, number, number?, number?]): number => {
    const address = map(n, ...rest);
    undo.push(() => libc().munmap(address, n));
    return address;
  };
  try {
    const memfd = memfdOf(reserveBytes, "moat-map");
    undo.push(() => libc().close(memfd));
    const nothing = C.MAP_PRIVATE | C.MAP_ANONYMOUS | C.MAP_NORESERVE;
    const device = mapped(bytes + reserveBytes, C.PROT_NONE, nothing, -1);
    const ours = writable ? prot : C.PROT_READ;
    map(bytes, ours, C.MAP_SHARED | C.MAP_FIXED, fd, offset, device);
    map(reserveBytes, prot, C.MAP_SHARED | C.MAP_FIXED, memfd, 0, device + bytes);
    const window = mapped(bytes, ours, writable ? C.MAP_SHARED : C.MAP_PRIVATE, fd, offset);
    return { memfd, device, window };
  } catch (error) {
    for (const fn of undo) fn();
    throw error;
  }
}

function memfdOf(bytes: number, name: string): number {
  const flags = C.MFD_CLOEXEC | C.MFD_ALLOW_SEALING;
  const memfd = checked("memfd_create", libc().memfd_create(cString(name), flags));
  if (libc().ftruncate(memfd, bytes) === 0) return memfd;
  const error = systemError(`ftruncate of the pool to ${bytes} bytes`, errno());
  libc().close(memfd);
  throw error;
}
