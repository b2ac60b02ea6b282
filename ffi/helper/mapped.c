// Mapped files: a pool whose first frames are the pages of a file. Its device view is a shared mapping of the file,
// with frames of a memfd behind it; its window is a second mapping of the file. So the page cache is sent from, and
// received into, as the frames of any pool are. A write to a page in flight moves the program to a frame of the
// memfd; when no operation holds the file's page any more, what the program has written is copied into it and the
// window goes back there ("home").
//
// The copies touch the file's pages, so they may sleep for the disk, and raise SIGBUS where the file has been cut
// off: that handler (bus.c) takes no lock.
#include "memory.h"
#include "uring.h"

static inline int can_go_home(const struct pool *p, u32 page) {
  u32 f = p->frame[page];
  return f != page && !p->out[page] && !p->in[page] && !p->in[f] && p->state[page] != CLOSED;
}

// Copies n pages, away on neighbouring frames, into the file, and maps them home.
static int go_home(struct pool *p, u32 page, u32 n) {
  int r = protect_all(p, page, n, RO);  // as in privatise
  if (r) return r;
  memcpy(frame_at(p, page), frame_at(p, p->frame[page]), (u64)n << G.page_shift);
  r = remap(p, page, page, n);
  if (!r) p->stat[S_MENDED] += n;
  return r;
}

// Brings home what can go. The pool is locked. Returns the pages of the range that are still away.
static u32 map_merge(struct pool *p, u32 from, u32 to) {
  u32 away = 0;
  for (u32 i = from; i < to;) {
    u32 n = 1;
    if (can_go_home(p, i)) {
      while (i + n < to && can_go_home(p, i + n) && p->frame[i + n] == p->frame[i] + n) n++;
      if (go_home(p, i, n)) away += n;  // no mapping left: the next operation that ends tries again
    } else {
      away += p->frame[i] != i;
    }
    i += n;
  }
  return away;
}

// An operation on a mapped file has ended. The pool is locked.
static void map_settle(struct pool *p, const struct op *o) {
  u32 from = p->due, to = p->due_end;
  p->due = p->due_end = 0;
  if (from < to) map_merge(p, from, to);
  if (o->kind == OP_IN) map_merge(p, o->page, o->page + o->pages);
}

// A program writes to what it has mapped read-only. Its window is a private mapping, so the write shall have a
// copy of the page that nobody else sees; JavaScript says so at the next use. The pool is locked.
static int map_scribble(struct pool *p, u32 page) {
  p->scribbled = 1;
  return sys3(NR_mprotect, window_at(p, page), G.page_size, PROT_READ | PROT_WRITE) == 0;
}

// A system call has met memory that is not there: the file has been cut off, or its disk is full. Touching what it
// would have come to next brings zeros in their place (bus.c). 1: it can be tried again.
#define TOUCH_BYTES (1ul << 20)
static int map_touch(const struct pool *p, const struct iovec *iov, u32 n, int write) {
  if (!p->file_pages) return 0;
  u64 left = TOUCH_BYTES;
  for (u32 i = 0; i < n && left; i++) {
    u64 at = iov[i].base, end = at + (iov[i].len < left ? iov[i].len : left);
    left -= end - at;
    for (; at < end; at = (at | (G.page_size - 1)) + 1)
      if (write)
        __atomic_fetch_or((u8 *)at, 0, __ATOMIC_RELAXED);
      else
        (void)*(volatile u8 *)at;
  }
  return 1;
}

// Makes a pool just added one of a mapped file: all its window pages are the file's.
EXPORT s32 moat_map_begin(s32 pool, s32 read_only) {
  struct pool *p = pool_of(pool);
  if (!p) return -E_INVAL;
  p->read_only = (u32)read_only;
  p->file_pages = p->pages;
  return 0;
}

// What JavaScript asks: whether the file was cut off; whether a read-only one was written to; and, after bringing
// home what can go, how many pages are still away because an operation holds them.
enum { MAP_BROKEN, MAP_SCRIBBLED, MAP_AWAY };
EXPORT s32 moat_map_query(s32 pool, s32 what) {
  struct pool *p = pool_of(pool);
  if (!p) return -E_INVAL;
  if (what == MAP_BROKEN) return (s32)load_acq(&p->broken);
  if (what == MAP_SCRIBBLED) return (s32)load_acq(&p->scribbled);
  lock(&p->lock);
  s32 away = (s32)map_merge(p, 0, p->file_pages);
  unlock(&p->lock);
  return away;
}
// JavaScript has seen that the file is too short, or a system call has.
EXPORT s32 moat_map_break(s32 pool) {
  struct pool *p = pool_of(pool);
  if (!p || !p->file_pages) return -E_INVAL;
  store_rel(&p->broken, 1);
  return 0;
}
