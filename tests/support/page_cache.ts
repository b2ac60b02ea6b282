/**
 * What the kernel keeps of a file in its page cache.
 *
 * @module
 */
import { systemError } from "../../ffi/errors.ts";
import { C, cString, errno, libc, LIBC_PATHS, map, openFirst, pageSize } from "../../ffi/libc.ts";
import type { Symbols } from "../../ffi/runtime.ts";

const symbols = {
  // int mincore(void *addr, size_t length, unsigned char *vec);
  mincore: { parameters: ["address", "size", "buffer"], result: "i32" },
  // int posix_fadvise(int fd, off_t offset, off_t len, int advice);
  posix_fadvise: { parameters: ["i32", "size", "size", "i32"], result: "i32" },
} as const satisfies Symbols;
const DONTNEED = 4;

/** The pages of the first `bytes` bytes of a file that are in the page cache. */
export function cachedPages(path: string, bytes: number): number {
  const { mincore } = openFirst("The C library", LIBC_PATHS, symbols, "install glibc or musl");
  return withFile(path, (fd) => {
    const address = map(bytes, C.PROT_READ, C.MAP_SHARED, fd);
    const vector = new Uint8Array(Math.ceil(bytes / pageSize()));
    const r = mincore(address, bytes, vector), error = errno();
    libc().munmap(address, bytes);
    if (r < 0) throw systemError("mincore", error);
    return vector.reduce((n, page) => n + (page & 1), 0);
  });
}

/** Has the kernel forget the clean pages of a file. */
export function dropCache(path: string): void {
  const { posix_fadvise } = openFirst(
    "The C library",
    LIBC_PATHS,
    symbols,
    "install glibc or musl",
  );
  withFile(path, (fd) => posix_fadvise(fd, 0, 0, DONTNEED));
}

function withFile<T>(path: string, act: (fd: number) => T): T {
  const fd = libc().open(cString(path), C.O_CLOEXEC, 0);
  if (fd < 0) throw systemError(`open of ${path}`, errno());
  try {
    return act(fd);
  } finally {
    libc().close(fd);
  }
}
