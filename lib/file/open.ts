/**
 * Opening files: the descriptor through the page cache, and a second one past it where that can be had.
 *
 * @module
 */
import { describe, errnoName, MoatError } from "../../ffi/errors.ts";
import { STATFS, STATX, STATX_DIRECT } from "../../ffi/layout.ts";
import { C, cString, errno, libc } from "../../ffi/libc.ts";
import { architecture } from "../../ffi/runtime.ts";
import type { Helper } from "../../ffi/helper.ts";

/** How a file is to be opened. */
export interface OpenOptions {
  /** To be read. True by default. */
  read?: boolean;
  /** To be written. False by default. */
  write?: boolean;
  /** Makes the file if there is none; it can be written then. False by default. */
  create?: boolean;
  /** Empties the file; it can be written then. False by default. */
  truncate?: boolean;
  /**
   * Goes past the page cache (`O_DIRECT`) where the file system and the alignment of file offset, memory and
   * length allow it. True by default.
   */
  direct?: boolean;
}

/** An open file. */
export interface OpenFile {
  readonly path: string;
  readonly fd: number;
  /** The same file past the page cache, or -1. */
  readonly directFd: number;
  /** What alignment that wants, in bytes. */
  readonly memoryAlign: number;
  readonly offsetAlign: number;
}

const O_WRONLY = 1, O_RDWR = 2, O_CREAT = 0o100, O_TRUNC = 0o1000;
const O_DIRECT = architecture() === "x86_64" ? 0o40000 : 0o200000;
const S_IFMT = 0o170000, S_IFDIR = 0o040000, S_IFREG = 0o100000, S_IFBLK = 0o060000;
const EPERM = 1, ENOENT = 2, EACCES = 13, EISDIR = 21, ENOSPC = 28, EROFS = 30, EFBIG = 27;

const HINTS: Record<number, string> = {
  [ENOENT]: "pass create: true to make it, and see that its directory exists",
  [ENOSPC]: "the file system is full",
  [EISDIR]: "name a file in it",
  [EFBIG]: "the file system, or ulimit -f, does not allow a file this large",
};

/** The error of a system call on a file. */
export function fileError(what: string, path: string, errno: number): MoatError {
  const message = `${what} ${JSON.stringify(path)} failed: ${errnoName(errno)}`;
  if (errno === EACCES || errno === EPERM || errno === EROFS) {
    const hint = errno === EROFS ? "the file system is mounted read-only" : "see its permissions";
    return new MoatError("PERMISSION_DENIED", message, { errno, hint });
  }
  const hint = HINTS[errno];
  return new MoatError("SYSTEM", message, { errno, ...(hint === undefined ? {} : { hint }) });
}

/**
 * Opens a file.
 *
 * @throws {MoatError} `INVALID_ARGUMENT`, `PERMISSION_DENIED`, or `SYSTEM` with the errno of open(2)
 */
export function openFile(helper: Helper, path: unknown, options: OpenOptions): OpenFile {
  assertPath("open", path);
  const { read = true, create = false, truncate = false, direct = true } = options;
  const write = (options.write ?? false) || create || truncate;
  if (!read && !write) {
    throw new MoatError("INVALID_ARGUMENT", `open of ${JSON.stringify(path)} for nothing`, {
      hint: "pass read: true or write: true",
    });
  }
  const access = !write ? 0 : read ? O_RDWR : O_WRONLY;
  // Without O_NONBLOCK a named pipe that nobody else has open would block here.
  const flags = access | C.O_CLOEXEC | C.O_NONBLOCK | (create ? O_CREAT : 0) |
    (truncate ? O_TRUNC : 0);
  const fd = libc().open(cString(path), flags, 0o666);
  if (fd < 0) throw fileError("open of", path, errno());
  try {
    const stat = assertFile(helper, fd, path);
    libc().fcntl(fd, C.F_SETFL, 0);
    return { path, fd, ...(direct ? openDirect(fd, access, stat) : NOT_DIRECT) };
  } catch (error) {
    libc().close(fd);
    throw error;
  }
}

/** Checks that something is the path of a file. */
export function assertPath(what: string, path: unknown): asserts path is string {
  if (typeof path === "string" && path !== "" && !path.includes("\0")) return;
  throw new MoatError("INVALID_ARGUMENT", `${what} of ${describe(path)}`, {
    hint: "pass the path of a file as a string",
  });
}

/** What statx(2) says of a descriptor that must be a file's. */
export function assertFile(helper: Helper, fd: number, path: string): DataView {
  const stat = statOf(helper, fd, path);
  const kind = stat.getUint16(STATX.mode, true) & S_IFMT;
  if (kind === S_IFDIR) throw fileError("open of", path, EISDIR);
  if (kind === S_IFREG || kind === S_IFBLK) return stat;
  throw new MoatError(
    "INVALID_ARGUMENT",
    `open of ${JSON.stringify(path)}: it is neither a file nor a disk`,
    { hint: "pipes, sockets and terminals have no offsets" },
  );
}

/** What statx(2) says of a descriptor. */
export function statOf(helper: Helper, fd: number, path: string): DataView {
  const stat = new Uint8Array(STATX.size), r = helper.moat_file_stat(fd, stat);
  if (r < 0) throw fileError("statx of", path, -r);
  return new DataView(stat.buffer);
}

/** The bytes of a file. */
export function sizeOf(stat: DataView): number {
  return Number(stat.getBigUint64(STATX.bytes, true));
}

const NOT_DIRECT = { directFd: -1, memoryAlign: 0, offsetAlign: 0 } as const;
// What is asked for where the file system does not say: a page suits them all.
const SAFE_ALIGN = 4096;

function openDirect(
  fd: number,
  access: number,
  stat: DataView,
): Pick<OpenFile, "directFd" | "memoryAlign" | "offsetAlign"> {
  const says = (stat.getUint32(STATX.mask, true) & STATX_DIRECT) !== 0;
  const memoryAlign = says ? stat.getUint32(STATX.memoryAlign, true) : SAFE_ALIGN;
  const offsetAlign = says ? stat.getUint32(STATX.offsetAlign, true) : SAFE_ALIGN;
  // tmpfs takes the flag and ignores it.
  if (memoryAlign === 0 || offsetAlign === 0 || isTmpfs(fd)) return NOT_DIRECT;
  // By its descriptor, so that it is the same file whatever has become of the path.
  const again = cString(`/proc/self/fd/${fd}`);
  const directFd = libc().open(again, access | C.O_CLOEXEC | O_DIRECT, 0);
  return directFd < 0 ? NOT_DIRECT : { directFd, memoryAlign, offsetAlign };
}

function isTmpfs(fd: number): boolean {
  const statfs = new DataView(new ArrayBuffer(STATFS.size));
  return libc().fstatfs(fd, new Uint8Array(statfs.buffer)) === 0 &&
    statfs.getInt32(STATFS.type, true) === C.TMPFS_MAGIC;
}
