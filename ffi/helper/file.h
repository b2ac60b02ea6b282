// Files: a connection whose other end is the disk. A send is a write, a receive is a read; each knows where in
// the file. Operations of a file do not wait for each other.
#ifndef MOAT_FILE_H
#define MOAT_FILE_H
#include "memory.h"
#include "uring.h"

#define FILE_IOVS 64u            // pieces of memory in one request; the rest follows in the next
#define FILE_MOST (1ul << 30)    // bytes in one request
#define FILE_INLINE (64u << 10)  // larger requests through the page cache copy in a thread of the kernel, not in ours
#define FILE_SPLIT (64u << 10)   // from so many bytes past the page cache, odd ends travel through it on their own

enum { FILE_DIRECT = 1, FILE_NOT_DIRECT = 2 };  // op.seq: the request at the disk; none may be again

// What a connection has besides the fields of every connection (conn.h). Its `fd` goes through the page cache.
#define FILE_FIELDS {                                                                                         \
  s32 direct_fd;              /* the same file past the page cache, or -1 */                                  \
  u32 mem_align, off_align;   /* of the memory, and of offsets and lengths, for that */                       \
  u32 worker;                 /* there is no io_uring: the worker's thread does the system calls */           \
}

#endif
