// Rings (uring.h): making them, submitting, reaping. Every function but those that JavaScript calls may run
// in the fault handler of any thread.
#include "conn.h"

static s32 bell_thread(s32 bell);  // bell.c
static s32 bell_watch_ring(s32 bell, s32 fd, s32 pool);

static struct uring urings[MAX_POOLS];

static inline struct uring *uring_of(s32 pool) {
  return pool >= 0 && pool < MAX_POOLS && load_acq(&urings[pool].live) ? &urings[pool] : 0;
}

// ---- making one

static s32 uring_map(struct uring *u, const struct uring_params *q) {
  u64 sq = q->sq_off.array + (u64)q->sq_entries * 4, cq = q->cq_off.cqes + (u64)q->cq_entries * sizeof(struct cqe);
  u->ring_bytes = sq > cq ? sq : cq;
  u->sqes_bytes = (u64)q->sq_entries * sizeof(struct sqe);
  s64 ring = sys6(NR_mmap, 0, (s64)u->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, u->fd, 0);
  if (ring < 0 && ring > -4096) return (s32)ring;
  s64 sqes = sys6(NR_mmap, 0, (s64)u->sqes_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, u->fd, 0x10000000);
  if (sqes < 0 && sqes > -4096) {
    sys2(NR_munmap, ring, u->ring_bytes);
    return (s32)sqes;
  }
  u8 *r = (u8 *)ring;
  u->ring = (u64)ring;
  u->sqes = (struct sqe *)sqes;
  u->sq_head = (u32 *)(r + q->sq_off.head);
  u->sq_tail = (u32 *)(r + q->sq_off.tail);
  u->sq_flags = (u32 *)(r + q->sq_off.flags);
  u->sq_array = (u32 *)(r + q->sq_off.array);
  u->sq_mask = *(u32 *)(r + q->sq_off.ring_mask);
  u->sq_entries = q->sq_entries;
  u->cq_head = (u32 *)(r + q->cq_off.head);
  u->cq_tail = (u32 *)(r + q->cq_off.tail);
  u->cq_mask = *(u32 *)(r + q->cq_off.ring_mask);
  u->cqes = (struct cqe *)(r + q->cq_off.cqes);
  return 0;
}

// Registers the device view, so that its pages are pinned once and not for each request. A refusal (usually
// RLIMIT_MEMLOCK) costs speed, nothing else.
static void uring_register(struct uring *u, u64 dev, u64 bytes) {
  static struct iovec pieces[URING_PIECES];  // too large for the stack; JavaScript's threads take turns
  static u32 busy;
  u32 n = 0;
  u->dev = dev;
  lock(&busy);
  for (u64 at = 0; at < bytes && n < URING_PIECES; at += URING_PIECE)
    pieces[n++] = (struct iovec){ dev + at, bytes - at < URING_PIECE ? bytes - at : URING_PIECE };
  s64 r = sys4(NR_io_uring_register, u->fd, 0 /* IORING_REGISTER_BUFFERS */, pieces, n);
  unlock(&busy);
  u->registered = r < 0 ? 0 : (u64)n * URING_PIECE < bytes ? (u64)n * URING_PIECE : bytes;
  u->refused = r < 0 ? (s32)r : 0;
}

// The pool's ring, made at the first call by the thread that owns the pool. Its descriptor, or -errno: -ENOSYS
// and -EPERM where io_uring cannot be had.
EXPORT s32 moat_uring_open(s32 pool) {
  struct pool *p = pool_of(pool);
  if (!p) return -E_INVAL;
  struct uring *u = &urings[pool];
  if (u->live) return u->fd;
  struct uring_params q;
  memset(&q, 0, sizeof q);
  q.flags = 8u | 16u /* IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP */;
  q.cq_entries = URING_CQ;
  s32 fd = (s32)sys2(NR_io_uring_setup, URING_SQ, &q);
  if (fd < 0) return fd;
  lock(&u->sq_lock);  // a handler may be looking at the ring that had this place
  u->fd = fd;
  u->owner = thread_id();
  u->bell = -1;
  u->under_way = 0;
  // One mapping for both rings, and no completion lost when theirs is full: Linux 5.5.
  s32 r = (q.features & 3u) == 3u ? uring_map(u, &q) : -E_NOSYS;
  if (!r) uring_register(u, p->dev, (u64)p->frames << G.page_shift);
  if (!r) store_rel(&u->live, 1);
  unlock(&u->sq_lock);
  if (r) sys1(NR_close, fd);
  return r ? r : fd;
}

// Can io_uring be had here? 0 or -errno, without making anything that stays.
EXPORT s32 moat_uring_probe(void) {
  struct uring_params q;
  memset(&q, 0, sizeof q);
  s32 fd = (s32)sys2(NR_io_uring_setup, 1, &q);
  if (fd < 0) return fd;
  sys1(NR_close, fd);
  return 0;
}
// Nanoseconds from handing over a request that does nothing to having its completion: the least of eight.
EXPORT f64 moat_uring_round_trip(s32 pool) {
  struct uring *u = uring_of(pool);
  if (!u) return -E_INVAL;
  u64 least = ~0ul;
  for (int i = 0; i < 8; i++) {
    struct sqe e;
    memset(&e, 0, sizeof e);
    e.opcode = IORING_OP_NOP;
    e.user_data = ~0ul << 32;  // of no connection
    u64 t0 = now_ns();
    if (uring_submit(u, &e)) return -E_AGAIN;
    uring_reap(pool);
    u64 t = now_ns() - t0;
    if (t < least) least = t;
  }
  return (f64)least;
}

// Its completions wake the doorbell's thread from now on.
EXPORT s32 moat_uring_watch(s32 pool, s32 bell) {
  struct uring *u = uring_of(pool);
  if (!u) return -E_INVAL;
  u->bell = bell;
  return bell_watch_ring(bell, u->fd, pool);
}

// What JavaScript asks of a ring: its descriptor, the bytes of the device view that are registered, the errno
// if that was refused, and the requests under way.
enum { U_FD, U_REGISTERED, U_REFUSED, U_UNDER_WAY };
EXPORT f64 moat_uring_query(s32 pool, s32 what) {
  struct uring *u = uring_of(pool);
  if (!u) return -E_INVAL;
  switch (what) {
    case U_FD: return u->fd;
    case U_REGISTERED: return (f64)u->registered;
    case U_REFUSED: return -u->refused;
    case U_UNDER_WAY: return load_rlx(&u->under_way);
  }
  return -E_INVAL;
}

// Goes with its pool. Nothing is under way, but any thread may be looking whether something has ended.
static void uring_close(s32 pool) {
  struct uring *u = uring_of(pool);
  if (!u) return;
  __atomic_store_n(&u->live, 0, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&u->lookers, __ATOMIC_SEQ_CST)) sys0(NR_sched_yield);
  lock(&u->sq_lock);
  sys2(NR_munmap, u->ring, u->ring_bytes);
  sys2(NR_munmap, u->sqes, u->sqes_bytes);
  sys1(NR_close, u->fd);
  unlock(&u->sq_lock);
}

// ---- submitting

static int uring_may_submit(const struct uring *u) {
  s32 me = thread_id();
  return me == u->owner || me == bell_thread(u->bell);
}
static void uring_kick(struct uring *u) { bell_kick(u->bell); }

static s32 uring_buffer(const struct uring *u, u64 address, u64 bytes) {
  u64 at = address - u->dev;
  if (!bytes || at >= u->registered || bytes > u->registered - at) return -1;
  u64 piece = at / URING_PIECE;
  return (at + bytes - 1) / URING_PIECE == piece ? (s32)piece : -1;
}

static s32 uring_submit(struct uring *u, const struct sqe *e) {
  struct conn *c = conn_at((s32)(e->user_data >> 32));
  lock(&u->sq_lock);
  u32 tail = u->live ? *u->sq_tail : 0;
  if (!u->live || tail - load_acq(u->sq_head) >= u->sq_entries) {
    unlock(&u->sq_lock);
    return -E_AGAIN;
  }
  // Counted first: its completion may be reaped before the system call is back.
  __atomic_add_fetch(&u->under_way, 1, __ATOMIC_RELAXED);
  if (c) __atomic_add_fetch(&c->in_ring, 1, __ATOMIC_RELAXED);
  u->sqes[tail & u->sq_mask] = *e;
  u->sq_array[tail & u->sq_mask] = tail & u->sq_mask;
  store_rel(u->sq_tail, tail + 1);
  s64 r;
  do r = sys6(NR_io_uring_enter, u->fd, 1, 0, 0, 0, 0);
  while (r == -E_INTR);
  if (r != 1) {  // the kernel has not looked at it: no memory, or completions that nobody has taken
    store_rel(u->sq_tail, tail);
    __atomic_sub_fetch(&u->under_way, 1, __ATOMIC_RELAXED);
    if (c) __atomic_sub_fetch(&c->in_ring, 1, __ATOMIC_RELAXED);
  }
  unlock(&u->sq_lock);
  return r == 1 ? 0 : -E_AGAIN;
}

// ---- reaping

static void uring_deliver(struct uring *u, const struct cqe *e) {
  s32 i = (s32)(e->user_data >> 32);
  struct conn *c = conn_at(i);
  int last = !(e->flags & IORING_CQE_F_MORE);
  if (last) __atomic_sub_fetch(&u->under_way, 1, __ATOMIC_RELAXED);
  if (!c) return;  // of nobody: a connection is not removed before its last completion
  lock(&c->lock);
  if (last) __atomic_sub_fetch(&c->in_ring, 1, __ATOMIC_RELAXED);
  if (transport_of(c)->cqe) transport_of(c)->cqe(c, i, (u32)e->user_data, e->res, e->flags);
  // This may be a handler, or JavaScript that looks after another connection: the doorbell's thread then finds
  // nothing that it would ring for.
  if (c->cq.head >= 0 && c->asleep) {
    c->asleep = 0;
    bell_ring(c->bell);
  }
  unlock(&c->lock);
}

static void uring_take(struct uring *u) {
  // Whoever reaps looks once more when it has let go: another may have come, found the lock taken, and gone.
  while (load_acq(u->cq_tail) != load_rlx(u->cq_head) || load_rlx(u->sq_flags) & 2u) {
    if (!trylock(&u->reap_lock)) return;
    // Completions that found no room wait in the kernel, and come when asked for.
    if (load_rlx(u->sq_flags) & 2u /* IORING_SQ_CQ_OVERFLOW */)
      sys6(NR_io_uring_enter, u->fd, 0, 0, 1 /* IORING_ENTER_GETEVENTS */, 0, 0);
    for (u32 head = *u->cq_head; head != load_acq(u->cq_tail);) {
      struct cqe e = u->cqes[head & u->cq_mask];
      store_rel(u->cq_head, ++head);
      uring_deliver(u, &e);
    }
    unlock(&u->reap_lock);
  }
}

static void uring_reap(s32 pool) {
  struct uring *u = uring_of(pool);
  if (!u) return;
  __atomic_add_fetch(&u->lookers, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&u->live, __ATOMIC_SEQ_CST)) uring_take(u);
  __atomic_sub_fetch(&u->lookers, 1, __ATOMIC_RELEASE);
}

static void uring_reap_all(void) {
  for (s32 i = 0, n = (s32)load_acq(&G.pool_high); i < n; i++) uring_reap(i);
}
