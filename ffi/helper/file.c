// Reading and writing files (file.h), by the pool's ring or, where io_uring is forbidden, by a thread that does
// plain system calls. Device-view addresses only, so no guard is in the kernel's way. Locks: the connection's is
// held wherever an operation changes hands, but for the worker's system calls.
#include "conn.h"

// One request: the pieces of memory, and where in the file.
struct request {
  struct iovec iov[FILE_IOVS];
  u32 n;
  int direct;
  u64 bytes, at;
};

// The neighbouring bytes of an operation from `at` on: of a write in its list of frames, of a read in its pages.
static u64 file_place(const struct pool *p, const struct op *o, u64 at, struct runs *it, struct run *r, u64 *skip,
                      u64 most, u8 **address) {
  if (o->kind == OP_IN) return place_of(p, o, at, most, address);
  if (o->flags & OP_LENT) {
    *address = (u8 *)o->src + at;
    return most;
  }
  u64 n;
  for (;;) {
    n = (u64)r->count << G.page_shift;
    if (*skip < n) break;
    *skip -= n;
    if (runs_next(it, r) != 1) return 0;
  }
  *address = (u8 *)(p->dev + ((u64)r->frame << G.page_shift)) + *skip;
  n -= *skip;
  if (n > most) n = most;
  *skip += n;
  return n;
}

// What is left of an operation, as far as one request goes.
static void file_gather(const struct op *o, struct request *q) {
  const struct pool *p = &G.pool[o->pool];
  struct runs it = runs_of(p->dev, p->frames, &o->d);
  struct run r = { 0, 0 };
  u64 skip = o->d.off + o->got, left = o->len - o->got;
  q->n = 0;
  q->bytes = 0;
  q->at = o->at + o->got;
  if (left > FILE_MOST) left = FILE_MOST;
  while (left && q->n < FILE_IOVS) {
    u8 *address;
    u64 n = file_place(p, o, o->got + q->bytes, &it, &r, &skip, left, &address);
    if (!n) break;
    q->iov[q->n++] = (struct iovec){ (u64)address, n };
    q->bytes += n;
    left -= n;
  }
}

// The bytes from the start of a request that may go past the page cache.
static u64 file_aligned(const struct conn *c, const struct request *q, u64 at, u64 skip) {
  u64 bytes = 0;
  if (c->direct_fd < 0 || at % c->off_align) return 0;
  for (u32 i = 0; i < q->n; i++) {
    u64 base = q->iov[i].base, len = q->iov[i].len;
    if (skip >= len) {
      skip -= len;
      continue;
    }
    base += skip;
    len -= skip;
    skip = 0;
    if (base % c->mem_align) break;
    u64 whole = len - len % c->off_align;
    bytes += whole;
    if (whole != len) break;
  }
  return bytes;
}

static void file_cut(struct request *q, u64 bytes) {
  q->bytes = bytes;
  for (u32 i = 0; i < q->n; i++) {
    if (q->iov[i].len >= bytes) {
      q->iov[i].len = bytes;
      q->n = i + 1;
      return;
    }
    bytes -= q->iov[i].len;
  }
}

// A read past the page cache would put zeros behind the end of the file, up to the end of the buffer: it goes to
// the last whole block, and what follows is read through the cache, which leaves the rest alone.
static u64 file_within(const struct conn *c, const struct op *o, u64 at, u64 bytes) {
  if (!bytes || o->kind != OP_IN) return bytes;
  s64 size = sys3(NR_lseek, c->fd, 0, 2 /* SEEK_END; nothing here uses the descriptor's own offset */);
  u64 end = size < 0 ? 0 : (u64)size - (u64)size % c->off_align;
  return at >= end ? 0 : bytes > end - at ? end - at : bytes;
}

// Past the page cache, as much as is aligned; what is not, before it and behind it, goes through the cache.
static void file_plan(const struct conn *c, const struct op *o, struct request *q) {
  file_gather(o, q);
  q->direct = 0;
  if (o->seq & FILE_NOT_DIRECT) return;
  u64 bytes = file_within(c, o, q->at, file_aligned(c, q, q->at, 0));
  if (bytes) {
    q->direct = 1;
    file_cut(q, bytes);
    return;
  }
  u64 fringe = G.page_size - q->at % G.page_size;
  if (fringe >= q->bytes) return;
  bytes = file_within(c, o, q->at + fringe, file_aligned(c, q, q->at + fringe, fringe));
  if (bytes >= FILE_SPLIT) file_cut(q, fringe);
}

// ---- what becomes of a request

static s32 file_next(struct conn *c, s32 me, s32 i);

// The request of operation i at the disk has ended. The connection is locked.
static void file_cqe(struct conn *c, s32 me, u32 tag, s32 res, u32 flags) {
  (void)flags;
  s32 i = (s32)tag;
  struct op *o = &G.op[i];
  if (tag >= G.op_high || o->conn != me || load_acq(&o->state) != OP_POSTED) return;
  int direct = o->seq & FILE_DIRECT;
  if (res == -E_INVAL && direct) {  // the file system wants it otherwise than it said
    o->seq |= FILE_NOT_DIRECT;
  } else if (res < 0 && res != -E_AGAIN && res != -E_INTR) {
    complete(c, i, res);
    return;
  } else if (o->kind == OP_TAKE || (res == 0 && o->kind == OP_IN)) {  // synchronised; the end of the file
    complete(c, i, 0);
    return;
  } else if (res == 0) {
    complete(c, i, -E_IO);
    return;
  } else if (res > 0) {
    o->got += (u64)res;
    if (direct) o->direct += (u64)res;
    if (o->got >= o->len) {
      complete(c, i, 0);
      return;
    }
  }
  store_rel(&o->state, OP_QUEUED);
  struct queue *q = o->kind == OP_IN ? &c->rq : &c->sq;
  push_front(q, i);
  if (!c->worker && !file_next(c, me, i)) pop(q);
}

// ---- by the ring

// Submits the next request of an operation. 0, or -EAGAIN.
static s32 file_next(struct conn *c, s32 me, s32 i) {
  struct uring *u = uring_of(c->pool);
  struct op *o = &G.op[i];
  if (!u) return -E_AGAIN;
  if (!uring_may_submit(u)) {
    uring_kick(u);
    return -E_AGAIN;
  }
  struct sqe e;
  memset(&e, 0, sizeof e);
  e.user_data = (u64)me << 32 | (u32)i;
  e.fd = c->fd;
  struct request q;
  if (o->kind == OP_TAKE) {
    e.opcode = IORING_OP_FSYNC;
  } else {
    file_plan(c, o, &q);
    int in = o->kind == OP_IN;
    s32 buffer = q.n == 1 ? uring_buffer(u, q.iov[0].base, q.bytes) : -1;
    o->seq = (o->seq & FILE_NOT_DIRECT) | (q.direct ? FILE_DIRECT : 0);
    if (q.direct) e.fd = c->direct_fd;
    e.flags = !q.direct && q.bytes > FILE_INLINE ? IOSQE_ASYNC : 0;
    e.off = q.at;
    e.addr = q.n == 1 ? q.iov[0].base : (u64)q.iov;
    e.len = q.n == 1 ? (u32)q.bytes : q.n;
    if (buffer >= 0)
      e.opcode = in ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED;
    else if (q.n == 1)
      e.opcode = in ? IORING_OP_READ : IORING_OP_WRITE;
    else
      e.opcode = in ? IORING_OP_READV : IORING_OP_WRITEV;  // the kernel has copied the list when this returns
    e.buf_index = buffer > 0 ? (u16)buffer : 0;
  }
  store_rel(&o->state, OP_POSTED);
  s32 r = uring_submit(u, &e);
  if (r) store_rel(&o->state, OP_QUEUED);
  return r;
}

// ---- by the worker

static u32 worker_posted, worker_runs, worker_sleeps;

static void worker_wake(void) {
  __atomic_add_fetch(&worker_posted, 1, __ATOMIC_SEQ_CST);
  if (!__atomic_load_n(&worker_sleeps, __ATOMIC_SEQ_CST)) return;  // it looks again by itself
  sys6(NR_futex, (s64)&worker_posted, 1 | 128 /* FUTEX_WAKE | FUTEX_PRIVATE_FLAG */, 1, 0, 0, 0);
}

// Does one request of a connection. 1 if there was one.
static int worker_turn(struct conn *c, s32 me) {
  struct request q;
  lock(&c->lock);
  s32 i = -1;
  if (c->live && c->kind == CONN_FILE && c->worker) {
    if (c->sq.head >= 0 && !unstage(c, c->sq.head, 0))
      i = pop(&c->sq);
    else
      i = pop(&c->rq);
  }
  if (i < 0) {
    unlock(&c->lock);
    return 0;
  }
  struct op *o = &G.op[i];
  int kind = o->kind;
  s32 fd = c->fd;
  if (kind != OP_TAKE) {
    file_plan(c, o, &q);
    o->seq = (o->seq & FILE_NOT_DIRECT) | (q.direct ? FILE_DIRECT : 0);
    if (q.direct) fd = c->direct_fd;
  }
  store_rel(&o->state, OP_POSTED);
  c->inflight++;  // keeps the connection, and its descriptors
  unlock(&c->lock);
  s64 res = kind == OP_TAKE ? sys1(NR_fsync, fd)
            : sys6(kind == OP_IN ? NR_preadv : NR_pwritev, fd, (s64)q.iov, q.n, (s64)q.at, 0, 0);
  lock(&c->lock);
  c->inflight--;
  file_cqe(c, me, (u32)i, (s32)res, 0);
  s32 bell = c->cq.head >= 0 ? c->bell : -1;
  unlock(&c->lock);
  bell_ring(bell);
  return 1;
}

EXPORT void *moat_file_main(void *arg) {
  (void)arg;
  block_signals();
  for (;;) {
    u32 seen = __atomic_load_n(&worker_posted, __ATOMIC_SEQ_CST);
    int did = 0;
    for (u32 i = 0, n = load_acq(&conns_high); i < n; i++) {
      struct conn *c = conn_at((s32)i);
      if (c && c->kind == CONN_FILE && c->worker) did |= worker_turn(c, (s32)i);
    }
    if (did) continue;
    __atomic_store_n(&worker_sleeps, 1, __ATOMIC_SEQ_CST);
    sys6(NR_futex, (s64)&worker_posted, 0 | 128 /* FUTEX_WAIT, if it is still what was seen */, seen, 0, 0, 0);
    __atomic_store_n(&worker_sleeps, 0, __ATOMIC_SEQ_CST);
  }
  return 0;
}
EXPORT f64 moat_file_main_address(void) { return (f64)(u64)moat_file_main; }
// 1 for the one caller who has to make the worker's thread.
EXPORT s32 moat_file_worker(void) { return !__atomic_exchange_n(&worker_runs, 1, __ATOMIC_RELAXED); }

// ---- the connection

// Submits what is queued, as far as the ring has room.
static int file_poll(struct conn *c, s32 me) {
  if (c->worker) {
    if (c->sq.head >= 0 || c->rq.head >= 0) worker_wake();
    return 0;
  }
  while (c->sq.head >= 0 && !unstage(c, c->sq.head, 0) && !file_next(c, me, c->sq.head)) pop(&c->sq);
  while (c->rq.head >= 0 && !file_next(c, me, c->rq.head)) pop(&c->rq);
  return 0;
}
static void file_check(struct conn *c, s32 me) { (void)c, (void)me; }
static s32 file_eager(struct conn *c, s32 me, const u8 *src, u32 len) {
  (void)c, (void)me, (void)src, (void)len;
  return -E_INVAL;
}
static s32 file_take(struct conn *c, s32 me) {
  (void)c, (void)me;
  return -E_INVAL;
}
// Completions ring by themselves; what the ring had no room for has to be tried again.
static int file_arm(struct conn *c, s32 me) {
  file_poll(c, me);
  if (c->worker) return 0;
  return c->rq.head >= 0 || (c->sq.head >= 0 && !(G.op[c->sq.head].flags & OP_STAGED));
}
static void file_flush(struct conn *c) { (void)c; }
static void file_end(struct conn *c, s32 abort) { (void)c, (void)abort; }
static void file_hang_up(struct conn *c) { (void)c; }
static s32 file_collect(struct conn *c, s32 me, s32 op, struct op *o, u8 *to) {
  (void)c, (void)me, (void)op, (void)o, (void)to;
  return -E_INVAL;
}

// What JavaScript has opened. direct_fd: the same file with O_DIRECT and what alignment that wants, or -1.
EXPORT s32 moat_file_add(s32 pool, s32 fd, s32 direct_fd, u32 mem_align, u32 off_align) {
  if (!pool_of(pool)) return -E_INVAL;
  struct conn *c;
  s32 i = conn_new(pool, CONN_FILE, fd, 0, &c);
  if (i < 0) return i;
  c->direct_fd = direct_fd;
  c->mem_align = mem_align;
  c->off_align = off_align;
  c->worker = !uring_of(pool);
  conn_begin(c);
  return i;
}

// Hands over an operation: a write (OP_OUT) or a read (OP_IN) at a place of the file, or (OP_TAKE) a
// synchronisation. It comes back by moat_conn_next().
EXPORT s32 moat_file_start(s32 i, s32 op, f64 at) {
  struct conn *c = conn_at(i);
  if (!c || c->kind != CONN_FILE || op < 0 || (u32)op >= G.op_high || G.op[op].state != OP_HELD) return -E_INVAL;
  struct op *o = &G.op[op];
  lock(&c->lock);
  o->at = (u64)at;
  o->conn = i;
  store_rel(&o->state, OP_QUEUED);
  push(o->kind == OP_IN ? &c->rq : &c->sq, op);
  file_poll(c, i);
  unlock(&c->lock);
  return 0;
}

// statx(2) of a descriptor: size, kind, alignment for O_DIRECT.
EXPORT s32 moat_file_stat(s32 fd, u8 *to) {
  return (s32)sys5(NR_statx, fd, "", 0x1000 /* AT_EMPTY_PATH */, 0x7ffu | 0x2000u /* STATX_BASIC_STATS | STATX_DIOALIGN */, to);
}

static const struct transport file_transport = {
  .poll = file_poll, .check = file_check, .eager = file_eager, .flush = file_flush, .take = file_take, .arm = file_arm, .end = file_end,
  .hang_up = file_hang_up, .collect = file_collect, .cqe = file_cqe,
};
