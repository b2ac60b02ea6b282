/**
 * The C library: the functions used, with their C declarations.
 *
 * @module
 */
import { MoatError, systemError } from "./errors.ts";
import { type Functions, runtime, type Symbols } from "./runtime.ts";

const symbols = {
  // int *__errno_location(void);
  __errno_location: { parameters: [], result: "address" },
  // void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
  mmap: { parameters: ["address", "size", "i32", "i32", "i32", "size"], result: "address" },
  // int munmap(void *addr, size_t length);
  munmap: { parameters: ["address", "size"], result: "i32" },
  // int mprotect(void *addr, size_t length, int prot);
  mprotect: { parameters: ["address", "size", "i32"], result: "i32" },
  // int memfd_create(const char *name, unsigned int flags);
  memfd_create: { parameters: ["buffer", "u32"], result: "i32" },
  // int ftruncate(int fd, off_t length);
  ftruncate: { parameters: ["i32", "size"], result: "i32" },
  // int fstatfs(int fd, struct statfs *buf);
  fstatfs: { parameters: ["i32", "buffer"], result: "i32" },
  // off_t lseek(int fd, off_t offset, int whence);
  lseek: { parameters: ["i32", "size", "i32"], result: "size" },
  // ssize_t write(int fd, const void *buf, size_t count);
  write: { parameters: ["i32", "buffer", "size"], result: "size" },
  // ssize_t read(int fd, void *buf, size_t count);
  read: { parameters: ["i32", "buffer", "size"], result: "size" },
  // int close(int fd);
  close: { parameters: ["i32"], result: "i32" },
  // int open(const char *pathname, int flags, ... mode_t mode);
  open: { parameters: ["buffer", "i32", "i32"], result: "i32" },
  // int flock(int fd, int operation);
  flock: { parameters: ["i32", "i32"], result: "i32" },
  // int fcntl(int fd, int cmd, ... int arg);
  fcntl: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // ssize_t readlink(const char *path, char *buf, size_t size);
  readlink: { parameters: ["buffer", "buffer", "size"], result: "size" },
  // int mkdir(const char *path, mode_t mode);
  mkdir: { parameters: ["buffer", "u32"], result: "i32" },
  // int chmod(const char *path, mode_t mode);
  chmod: { parameters: ["buffer", "u32"], result: "i32" },
  // int unlink(const char *path);
  unlink: { parameters: ["buffer"], result: "i32" },
  // long sysconf(int name);
  sysconf: { parameters: ["i32"], result: "size" },
  // pid_t getpid(void);
  getpid: { parameters: [], result: "i32" },
  // uid_t getuid(void);
  getuid: { parameters: [], result: "u32" },
  // int sigaction(int sig, const struct sigaction *act, struct sigaction *oldact);
  sigaction: { parameters: ["i32", "buffer", "address"], result: "i32" },
  // int pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
  pthread_create: { parameters: ["buffer", "address", "address", "address"], result: "i32" },
  // int pthread_detach(pthread_t thread);
  pthread_detach: { parameters: ["size"], result: "i32" },
  // int epoll_create1(int flags);
  epoll_create1: { parameters: ["i32"], result: "i32" },
  // int eventfd(unsigned int initval, int flags);
  eventfd: { parameters: ["u32", "i32"], result: "i32" },
  // int socket(int domain, int type, int protocol);
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int socketpair(int domain, int type, int protocol, int sv[2]);
  socketpair: { parameters: ["i32", "i32", "i32", "buffer"], result: "i32" },
  // int bind(int fd, const struct sockaddr *addr, socklen_t len);
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // int listen(int fd, int backlog);
  listen: { parameters: ["i32", "i32"], result: "i32" },
  // int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags);
  accept4: { parameters: ["i32", "address", "address", "i32"], result: "i32" },
  // int connect(int fd, const struct sockaddr *addr, socklen_t len);
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // int getsockopt(int fd, int level, int name, void *value, socklen_t *len);
  getsockopt: { parameters: ["i32", "i32", "i32", "buffer", "buffer"], result: "i32" },
  // int setsockopt(int fd, int level, int name, const void *value, socklen_t len);
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  // int getsockname(int fd, struct sockaddr *addr, socklen_t *len), getpeername(...);
  getsockname: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  getpeername: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  // ssize_t send(int fd, const void *buf, size_t len, int flags);
  send: { parameters: ["i32", "buffer", "size", "i32"], result: "size" },
  // ssize_t sendmsg(int fd, const struct msghdr *msg, int flags);
  sendmsg: { parameters: ["i32", "buffer", "i32"], result: "size" },
  // ssize_t recvmsg(int fd, struct msghdr *msg, int flags);
  recvmsg: { parameters: ["i32", "buffer", "i32"], result: "size" },
  // int shutdown(int fd, int how);
  shutdown: { parameters: ["i32", "i32"], result: "i32" },
  // char *getenv(const char *name);
  getenv: { parameters: ["buffer"], result: "address" },
  // size_t strlen(const char *s);
  strlen: { parameters: ["address"], result: "size" },
} as const satisfies Symbols;

/** Where the C library may be: glibc, then musl. */
export const LIBC_PATHS: readonly string[] = [
  "libc.so.6",
  "libc.musl-x86_64.so.1",
  "libc.musl-aarch64.so.1",
];

/**
 * Opens the first library of a list that can be opened.
 *
 * @throws {MoatError} `LIBRARY_NOT_FOUND` with every path that was tried and what the loader said;
 * `PERMISSION_DENIED` if Deno may not open libraries.
 */
export function openFirst<S extends Symbols>(
  what: string,
  paths: readonly string[],
  wanted: S,
  hint: string,
): Functions<S> {
  const said: string[] = [];
  for (const path of paths) {
    try {
      return runtime().open(path, wanted);
    } catch (error) {
      if (error instanceof Error && error.name === "NotCapable") {
        throw new MoatError("PERMISSION_DENIED", "Deno's permission for FFI has not been granted", {
          cause: error,
          hint: "run it with --allow-ffi, for all paths: deno run --allow-ffi SCRIPT",
        });
      }
      said.push(`${path} (${error instanceof Error ? error.message.split("\n")[0] : error})`);
    }
  }
  throw new MoatError(
    "LIBRARY_NOT_FOUND",
    `${what} could not be opened; tried ${said.join(", ")}`,
    { hint },
  );
}

/** The functions of the C library. */
export type Libc = Functions<typeof symbols>;

let opened: Libc | undefined;
let errnoView: Int32Array | undefined;

/** The C library, opened at its first use. */
export function libc(): Libc {
  if (!opened) {
    opened = openFirst("The C library", LIBC_PATHS, symbols, "install glibc or musl");
    errnoView = new Int32Array(runtime().viewOf(opened.__errno_location(), 4));
  }
  return opened;
}

/** The errno of the call just made. To be read before any other foreign call. */
export function errno(): number {
  return errnoView![0]!;
}

/** Passes on what a call returned, or throws its errno as a {@linkcode MoatError} `SYSTEM`. */
export function checked(call: string, result: number, hint?: string): number {
  if (result === -1) throw systemError(call, errno(), hint);
  return result;
}

const encoder = new TextEncoder();

/** A NUL-terminated string. */
export function cString(text: string): Uint8Array {
  return encoder.encode(`${text}\0`);
}

/** Flags and numbers of the C library, the same on x86-64 and aarch64. */
export const C = {
  PROT_NONE: 0,
  PROT_READ: 1,
  PROT_WRITE: 2,
  MAP_SHARED: 0x01,
  MAP_PRIVATE: 0x02,
  MAP_FIXED: 0x10,
  MAP_ANONYMOUS: 0x20,
  MAP_NORESERVE: 0x4000,
  MFD_CLOEXEC: 1,
  MFD_ALLOW_SEALING: 2,
  O_CLOEXEC: 0o2000000,
  O_NONBLOCK: 0o4000,
  LOCK_EX: 2,
  F_SETFD: 2,
  F_GETFL: 3,
  F_SETFL: 4,
  F_ADD_SEALS: 1033,
  F_GET_SEALS: 1034,
  F_SEAL_SEAL: 1,
  F_SEAL_SHRINK: 2,
  F_SEAL_GROW: 4,
  F_SEAL_WRITE: 8,
  F_SEAL_FUTURE_WRITE: 16,
  SEEK_END: 2,
  TMPFS_MAGIC: 0x01021994,
  SC_PAGESIZE: 30,
  SIGBUS: 7,
  SIGSEGV: 11,
  SA_SIGINFO: 4,
  SA_ONSTACK: 0x08000000,
  AF_UNIX: 1,
  AF_INET: 2,
  AF_INET6: 10,
  SOCK_STREAM: 1,
  SOCK_SEQPACKET: 5,
  SOCK_CLOEXEC: 0o2000000,
  SOCK_NONBLOCK: 0o4000,
  SOL_SOCKET: 1,
  SCM_RIGHTS: 1,
  SO_REUSEADDR: 2,
  SO_KEEPALIVE: 9,
  SO_LINGER: 13,
  SO_PEERCRED: 17,
  IPPROTO_TCP: 6,
  TCP_NODELAY: 1,
  TCP_KEEPIDLE: 4,
  TCP_KEEPINTVL: 5,
  TCP_KEEPCNT: 6,
  MSG_CTRUNC: 8,
  MSG_DONTWAIT: 0x40,
  MSG_NOSIGNAL: 0x4000,
  MSG_CMSG_CLOEXEC: 0x40000000,
  SHUT_WR: 1,
  EPOLL_CLOEXEC: 0o2000000,
  EFD_CLOEXEC: 0o2000000,
  EFD_NONBLOCK: 0o4000,
  EINTR: 4,
  EAGAIN: 11,
  EACCES: 13,
  EEXIST: 17,
  ENOENT: 2,
  EPIPE: 32,
  EADDRINUSE: 98,
  EADDRNOTAVAIL: 99,
  ENETUNREACH: 101,
  ECONNABORTED: 103,
  ECONNRESET: 104,
  EISCONN: 106,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
  EHOSTUNREACH: 113,
  EALREADY: 114,
  EINPROGRESS: 115,
} as const;

/** The text of a C string that lives elsewhere, or "" for `NULL`. */
export function cText(address: number): string {
  if (address === 0) return "";
  const length = libc().strlen(address);
  if (length === 0) return "";
  return new TextDecoder().decode(new Uint8Array(runtime().viewOf(address, length)).slice());
}

/**
 * A variable of the process's environment, or "". Through the C library, because Deno would ask the user for
 * the permission otherwise.
 */
export function environment(name: string): string {
  return cText(libc().getenv(cString(name)));
}

/** The bytes of a page. */
export function pageSize(): number {
  return cachedPageSize ??= libc().sysconf(C.SC_PAGESIZE);
}
let cachedPageSize: number | undefined;

/**
 * Maps memory.
 *
 * @throws {MoatError} `SYSTEM` with the errno of mmap(2).
 */
export function map(
  bytes: number,
  prot: number,
  flags: number,
  fd: number,
  offset = 0,
  at = 0,
): number {
  const address = libc().mmap(at, bytes, prot, flags, fd, offset);
  if (address === -1) {
    throw systemError(
      `mmap of ${bytes} bytes`,
      errno(),
      "the limit may be memory, vm.max_map_count or the overcommit policy",
    );
  }
  return address;
}

/** The bytes that one entry of the second level of the page table maps, where pages have 4 KiB. */
export const HUGE_PAGE: number = 2 << 20;

/** Maps the start of a file or new memory at an address that is a multiple of {@linkcode HUGE_PAGE}. */
export function mapAligned(bytes: number, prot: number, flags: number, fd: number): number {
  const anonymous = C.MAP_PRIVATE | C.MAP_ANONYMOUS | C.MAP_NORESERVE;
  const reserved = bytes + HUGE_PAGE, start = map(reserved, C.PROT_NONE, anonymous, -1);
  const at = Math.ceil(start / HUGE_PAGE) * HUGE_PAGE, page = pageSize();
  const end = at + Math.ceil(bytes / page) * page;
  if (at > start) libc().munmap(start, at - start);
  if (start + reserved > end) libc().munmap(end, start + reserved - end);
  try {
    return map(bytes, prot, flags | C.MAP_FIXED, fd, 0, at);
  } catch (error) {
    libc().munmap(at, bytes);
    throw error;
  }
}

/** Reads a whole small file through the C library, or "" if it cannot be read. */
export function readText(path: string): string {
  const fd = libc().open(cString(path), 0, 0);
  if (fd < 0) return "";
  const chunk = new Uint8Array(65536), parts: string[] = [];
  const decoder = new TextDecoder();
  for (let n; (n = libc().read(fd, chunk, chunk.length)) > 0;) {
    parts.push(decoder.decode(chunk.subarray(0, n), { stream: true }));
  }
  libc().close(fd);
  return parts.join("");
}
