/**
 * Looking at the system through the C library, so that on Deno `--allow-ffi` is all it takes and nobody is
 * asked for a permission.
 *
 * @module
 */
import { C, cString, cText, errno, libc, LIBC_PATHS, openFirst, readText } from "../../ffi/libc.ts";
import type { Functions, Symbols } from "../../ffi/runtime.ts";

const symbols = {
  // DIR *opendir(const char *name);
  opendir: { parameters: ["buffer"], result: "address" },
  // struct dirent *readdir(DIR *dirp);
  readdir: { parameters: ["address"], result: "address" },
  // int closedir(DIR *dirp);
  closedir: { parameters: ["address"], result: "i32" },
  // int statx(int dirfd, const char *pathname, int flags, unsigned int mask, struct statx *statxbuf);
  statx: { parameters: ["i32", "buffer", "i32", "u32", "buffer"], result: "i32" },
  // long syscall(long number, ...);
  syscall: { parameters: ["size", "size", "size", "buffer", "size"], result: "size" },
} as const satisfies Symbols;

// struct dirent of 64-bit Linux: d_ino, d_off, d_reclen and d_type come first.
const DIRENT_NAME = 19;
const AT_FDCWD = -100, STATX_BASIC_STATS = 0x7ff;
const STATX_UID = 20, STATX_GID = 24, STATX_MODE = 28, STATX_SIZE = 256;
const O_PATH = 0o10000000, O_RDWR = 2;

let opened: Functions<typeof symbols> | undefined;

function native(): Functions<typeof symbols> {
  return opened ??= openFirst("The C library", LIBC_PATHS, symbols, "install glibc or musl");
}

/** A system call that has no function in every C library; `-errno` on failure. */
export function systemCall(
  number: number,
  a: number,
  b: number,
  buffer: Uint8Array = new Uint8Array(8),
  d = 0,
): number {
  const r = native().syscall(number, a, b, buffer, d);
  return r === -1 ? -errno() : r;
}

/** The contents of a small file without space around them, or "" if it cannot be read. */
export function readLine(path: string): string {
  return readText(path).trim();
}

/** Whether something is there by this path. */
export function exists(path: string): boolean {
  const fd = libc().open(cString(path), O_PATH | C.O_CLOEXEC, 0);
  if (fd >= 0) libc().close(fd);
  return fd >= 0;
}

/** Opens a device for reading and writing, as whoever uses it will. 0, or the errno. */
export function tryOpen(path: string): number {
  const fd = libc().open(cString(path), O_RDWR | C.O_CLOEXEC | C.O_NONBLOCK, 0);
  if (fd < 0) return errno();
  libc().close(fd);
  return 0;
}

/** The names in a directory, sorted; none if it cannot be read. */
export function list(path: string): string[] {
  const directory = native().opendir(cString(path)), names: string[] = [];
  if (directory === 0) return names;
  for (let entry; (entry = native().readdir(directory)) !== 0;) {
    const name = cText(entry + DIRENT_NAME);
    if (name !== "." && name !== "..") names.push(name);
  }
  native().closedir(directory);
  return names.sort();
}

/** Whom a file belongs to, and who may do what with it. */
export interface Owner {
  readonly uid: number;
  readonly gid: number;
  /** The lower bits: 0o660. */
  readonly mode: number;
}

/** Whom a file belongs to; `undefined` if it is not there. */
export function ownerOf(path: string): Owner | undefined {
  const stat = new Uint8Array(STATX_SIZE), view = new DataView(stat.buffer);
  if (native().statx(AT_FDCWD, cString(path), 0, STATX_BASIC_STATS, stat) !== 0) return undefined;
  return {
    uid: view.getUint32(STATX_UID, true),
    gid: view.getUint32(STATX_GID, true),
    mode: view.getUint16(STATX_MODE, true) & 0o7777,
  };
}

/** The name of a user or a group by its number, or the number. */
export function nameIn(file: "/etc/passwd" | "/etc/group", id: number): string {
  const line = readText(file).split("\n").find((each) => each.split(":")[2] === String(id));
  return line?.split(":")[0] || String(id);
}

/** A limit of this process, soft and hard, `Infinity` for none: `limit("Max open files")`. */
export function limit(name: string): { soft: number; hard: number } {
  const line = readText("/proc/self/limits").split("\n").find((each) => each.startsWith(name));
  const [soft, hard] = line?.slice(name.length).trim().split(/\s+/) ?? [];
  const number = (text: string | undefined): number =>
    text === "unlimited" ? Infinity : Number(text);
  return { soft: number(soft), hard: number(hard) };
}

/** A field of `/proc/self/status`, or "". */
export function status(field: string): string {
  const line = readText("/proc/self/status").split("\n").find((each) =>
    each.startsWith(`${field}:`)
  );
  return line?.slice(field.length + 1).trim() ?? "";
}

const CAP_IPC_LOCK = 14n;

/** Whether the kernel lets this process lock memory beyond its limit. */
export function maySkipMemlock(): boolean {
  const capabilities = BigInt(`0x${status("CapEff") || "0"}`);
  // Those of a container with users of its own do not count.
  const own = /^\s*0\s+0\s+4294967295\s*$/.test(readText("/proc/self/uid_map"));
  return own && (capabilities >> CAP_IPC_LOCK & 1n) === 1n;
}

/** A number of bytes for people: `8 MiB`. */
export function size(bytes: number): string {
  if (bytes === Infinity) return "unlimited";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit++) bytes /= 1024;
  return `${Number.isInteger(bytes) ? bytes : bytes.toFixed(1)} ${units[unit]}`;
}

/** A number for people: `65,530`. */
export function count(number: number): string {
  return number === Infinity ? "unlimited" : number.toLocaleString("en");
}
