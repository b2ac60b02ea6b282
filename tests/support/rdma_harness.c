// Runs the native helper's transport over verbs (ffi/helper/rdma.c) against a device that is made here: queue
// pairs in memory, which can be slow, lose things, fail, or have a peer that keeps to no protocol. Soft-RoCE
// does none of that when it is asked to, and it is not there for every processor or under a sanitizer. What
// this device does not know is how real ones behave: that is shown over soft-RoCE, in tests/vm.
//
//     rdma_harness HELPER.so CASE [SEED]
//
// Prints "ok" and exits with 0, or says what was expected and exits with 1.
#include "helper_harness.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

#define UNUSED __attribute__((unused))

// ---- what the helper and the device know of each other (ffi/helper/rdma.h and verbs.h)

enum { SLOT = 4096, DATA_SLOTS = 48, RECV_SLOTS = 64, SEND_SLOTS = 32, CONTROL_SLOTS = 4, SQ = 256, CQ = SQ + 1024 };
enum { HEADER = 24, EAGER = SLOT - HEADER, RUNS = EAGER / 8, CHAIN = 24, INLINE = 188, READ_BYTES = 1 << 16 };
enum { M_EAGER = 1, M_PAGES, M_CONTROL };
enum { OPEN, ENDED, LOST, BROKEN, ABORTED, PEER_ABORTED };
enum { R_BYE_DONE, R_DEAD, R_STUCK, R_EVENTS, R_ERROR, R_HAS_ERROR };
enum { MENDED = 11 };
struct header { uint8_t kind, flag; uint16_t count; uint32_t consumed; uint64_t len; uint32_t id, off; };

enum { WR_SEND = 2, WR_READ = 4, SIGNALED = 2, INLINED = 8 };
enum { OK, LENGTH_ERROR = 1, FLUSHED = 5, ACCESS_ERROR = 10, RETRIED = 12 };
struct sge { uint64_t addr; uint32_t length, lkey; };
struct send_wr {
  uint64_t wr_id;
  struct send_wr *next;
  struct sge *sg_list;
  int num_sge;
  uint32_t opcode, send_flags, imm_data;
  uint64_t remote_addr;
  uint32_t rkey, other[19];
};
struct recv_wr { uint64_t wr_id; struct recv_wr *next; struct sge *sg_list; int num_sge; };
struct wc {
  uint64_t wr_id;
  uint32_t status, opcode, vendor_err, byte_len, imm_data, qp_num, src_qp, wc_flags;
  uint16_t pkey_index, slid;
  uint8_t sl, dlid_path_bits;
};
struct qp;
struct cq;
struct context {
  void *device, *before[11];
  int (*poll_cq)(struct cq *, int, struct wc *);
  int (*req_notify_cq)(struct cq *, int);
  void *between[12];
  int (*post_send)(struct qp *, struct send_wr *, struct send_wr **);
  int (*post_recv)(struct qp *, struct recv_wr *, struct recv_wr **);
};

// ---- the device

struct request { uint64_t id, remote; uint32_t opcode, flags, nsge, rkey; struct sge sge[16]; uint8_t bytes[INLINE]; };
struct receive { uint64_t id; uint32_t nsge; struct sge sge[16]; };
struct qp {
  struct context *context;
  struct end *end;
  struct qp *peer;
  struct request sq[SQ];
  uint64_t posted, executed, freed;  // requests; an entry is free when its completion, or a later one, was polled
  struct receive rq[1024];
  uint64_t receives, received;
  int error;
  int paused;        // nothing is carried out, nothing flushed
  int no_reads;      // reads are not carried out, nor anything behind them
  int no_flush;      // what is there when it comes to error is never given back
  int fail_post;     // the n-th from now
  int fail_request;  // the n-th from now to be carried out, with
  uint32_t status;
  int sink;          // takes every message, and throws it away
  long reads, sends;
};
struct cq {
  struct context *context;
  struct end *end;
  struct wc wc[CQ];
  uint64_t upto[CQ];
  uint64_t head, tail;
  int armed, held;  // held: nothing is seen of what has come
};
struct end {
  struct pool *pool;
  struct qp qp;
  struct cq cq;
  uint8_t *slots;
  int conn, channel, raw;
  uint32_t max_sge;
  uint8_t used[4096];   // pages of the window
  int started;          // receives
  struct result { int status, consumed; long len; uint64_t hash; } result[8192];
  int sent;             // messages, in the order they were sent
  struct { long len; uint64_t hash; } message[8192];
  int live;             // operations
};
enum { SLOT_KEY = 7, POOL_KEY = 9, REMOTE_KEY = 11 };

static int device_lock, automatic = 1;
static void lock_device(void) {
  while (__atomic_exchange_n(&device_lock, 1, __ATOMIC_ACQUIRE)) sched_yield();
}
static void unlock_device(void) { __atomic_store_n(&device_lock, 0, __ATOMIC_RELEASE); }

// A slot that the device has, and what is behind a message in one, is nobody else's: a sanitizer says so.
extern void __asan_poison_memory_region(const void *, size_t) __attribute__((weak));
extern void __asan_unpoison_memory_region(const void *, size_t) __attribute__((weak));
static void poison(uint64_t at, size_t n) {
  if (__asan_poison_memory_region) __asan_poison_memory_region((void *)(uintptr_t)at, n);
}
static void unpoison(uint64_t at, size_t n) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region((void *)(uintptr_t)at, n);
}

static uint64_t pool_bytes(const struct end *e) { return (uint64_t)e->pool->frames * page_size; }
static void check_sges(const struct end *e, const struct sge *sge, uint32_t n, int receives) {
  for (uint32_t i = 0; i < n; i++) {
    CHECK(sge[i].lkey == SLOT_KEY || sge[i].lkey == POOL_KEY);
    uint64_t base = sge[i].lkey == SLOT_KEY ? (uintptr_t)e->slots : (uintptr_t)e->pool->device;
    uint64_t bytes = sge[i].lkey == SLOT_KEY ? (RECV_SLOTS + SEND_SLOTS) * SLOT + 8 : pool_bytes(e);
    CHECK(sge[i].addr >= base && sge[i].addr - base <= bytes && sge[i].length <= bytes - (sge[i].addr - base));
    if (sge[i].lkey == SLOT_KEY && receives) CHECK(sge[i].addr - base < RECV_SLOTS * SLOT && sge[i].length == SLOT);
  }
}
static uint64_t length_of(const struct sge *sge, uint32_t n) {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < n; i++) bytes += sge[i].length;
  return bytes;
}
static void push_wc(struct end *e, uint64_t id, uint32_t status, uint32_t bytes, uint64_t upto) {
  struct cq *c = &e->cq;
  CHECK(c->tail - c->head < CQ);
  c->upto[c->tail % CQ] = upto;
  c->wc[c->tail++ % CQ] = (struct wc){ .wr_id = id, .status = status, .byte_len = bytes };
  if (c->armed) {
    c->armed = 0;
    uint64_t one = 1;
    CHECK(write(e->channel, &one, 8) == 8);
  }
}
static void scatter_to(const struct receive *r, const uint8_t *from, uint64_t bytes) {
  for (uint32_t i = 0; bytes; i++) {
    uint64_t n = r->sge[i].length < bytes ? r->sge[i].length : bytes;
    if (r->sge[i].lkey == SLOT_KEY) unpoison(r->sge[i].addr, n);
    memcpy((void *)(uintptr_t)r->sge[i].addr, from, n);
    from += n;
    bytes -= n;
  }
}
static uint8_t wire[1 << 22];
// A message for a queue pair. 0 if it has no receive for it.
static int deliver(struct qp *q, const uint8_t *bytes, uint64_t n) {
  if (q->received == q->receives) return 0;
  struct receive *r = &q->rq[q->received++ % 1024];
  if (length_of(r->sge, r->nsge) < n) {
    push_wc(q->end, r->id, LENGTH_ERROR, 0, 0);
    q->error = 1;
    return 1;
  }
  scatter_to(r, bytes, n);
  push_wc(q->end, r->id, OK, (uint32_t)n, 0);
  return 1;
}
static int finish(struct qp *q, const struct request *w, uint32_t status) {
  q->executed++;
  if (status || (w->flags & SIGNALED)) push_wc(q->end, w->id, status, 0, q->executed);
  if (status && status != FLUSHED) q->error = 1;
  return 1;
}
// Carries out one request of a queue pair, or gives back one. 0 if there is nothing to be done.
static int step(struct qp *q) {
  if (!q->context || q->paused) return 0;
  struct request *w = &q->sq[q->executed % SQ];
  if (q->error) {
    if (q->no_flush) return 0;
    if (q->executed != q->posted) return finish(q, w, FLUSHED);
    if (q->received == q->receives) return 0;
    push_wc(q->end, q->rq[q->received++ % 1024].id, FLUSHED, 0, 0);
    return 1;
  }
  if (q->executed == q->posted) return 0;
  if (q->fail_request && !--q->fail_request) return finish(q, w, q->status);
  if (q->peer->error) return finish(q, w, RETRIED);
  if (w->opcode == WR_SEND) {
    const uint8_t *from = w->bytes;
    uint64_t n = length_of(w->sge, w->nsge);
    CHECK(n <= sizeof wire);
    if (!(w->flags & INLINED)) {
      uint8_t *to = wire;
      for (uint32_t i = 0; i < w->nsge; to += w->sge[i++].length)
        memcpy(to, (void *)(uintptr_t)w->sge[i].addr, w->sge[i].length);
      from = wire;
    }
    if (!q->peer->sink && !deliver(q->peer, from, n)) return 0;  // RNR: it tries again
    q->sends++;
    return finish(q, w, OK);
  }
  CHECK(w->opcode == WR_READ);
  if (q->no_reads) return 0;
  const struct end *peer = q->peer->end;
  uint64_t at = w->remote - (uintptr_t)peer->pool->device, n = length_of(w->sge, w->nsge);
  // The helper has checked every list of frames before it reads by it.
  CHECK(w->rkey == REMOTE_KEY && at < pool_bytes(peer) && n <= pool_bytes(peer) - at && n > 0);
  struct receive to = { .nsge = w->nsge };
  memcpy(to.sge, w->sge, sizeof to.sge);
  scatter_to(&to, (const uint8_t *)peer->pool->device + at, n);
  q->reads++;
  return finish(q, w, OK);
}
static struct end ends[2];
static void run_device(void) {
  for (int more = 1; more;) {
    more = 0;
    for (int i = 0; i < 2; i++)
      while (step(&ends[i].qp)) more = 1;
  }
}

static int poll_cq(struct cq *c, int n, struct wc *wc) {
  int k = 0;
  lock_device();
  if (automatic) run_device();
  for (; k < n && c->head != c->tail && !c->held; k++) {
    uint64_t upto = c->upto[c->head % CQ];
    if (upto) c->end->qp.freed = upto;
    wc[k] = c->wc[c->head++ % CQ];
  }
  unlock_device();
  return k;
}
static int req_notify_cq(struct cq *c, int solicited) {
  EQUAL(solicited, 0);
  lock_device();
  c->armed = 1;
  unlock_device();
  return 0;
}
static int post_send(struct qp *q, struct send_wr *wr, struct send_wr **bad) {
  CHECK(!wr->next && (uint32_t)wr->num_sge <= q->end->max_sge);
  check_sges(q->end, wr->sg_list, (uint32_t)wr->num_sge, 0);
  lock_device();
  int refused = q->fail_post && !--q->fail_post;
  if (!refused) {
    CHECK(q->posted - q->freed < SQ);  // the send queue holds no more
    struct request *w = &q->sq[q->posted++ % SQ];
    memset(w, 0, sizeof *w);
    w->id = wr->wr_id;
    w->remote = wr->remote_addr;
    w->rkey = wr->rkey;
    w->opcode = wr->opcode;
    w->flags = wr->send_flags;
    w->nsge = (uint32_t)wr->num_sge;
    if (w->nsge) memcpy(w->sge, wr->sg_list, w->nsge * sizeof *w->sge);
    if (w->flags & INLINED) {
      CHECK(w->nsge == 1 && w->sge[0].length <= INLINE);
      memcpy(w->bytes, (void *)(uintptr_t)w->sge[0].addr, w->sge[0].length);
    }
  } else {
    *bad = wr;
  }
  unlock_device();
  return refused ? ENOMEM : 0;
}
static int post_recv(struct qp *q, struct recv_wr *wr, struct recv_wr **bad) {
  (void)bad;
  CHECK(!wr->next && (uint32_t)wr->num_sge <= q->end->max_sge);
  check_sges(q->end, wr->sg_list, (uint32_t)wr->num_sge, 1);
  lock_device();
  CHECK(q->receives - q->received < (q->end->raw ? 1024 : RECV_SLOTS));
  struct receive *r = &q->rq[q->receives++ % 1024];
  r->id = wr->wr_id;
  r->nsge = (uint32_t)wr->num_sge;
  memcpy(r->sge, wr->sg_list, r->nsge * sizeof *r->sge);
  if (r->nsge && r->sge[0].lkey == SLOT_KEY) poison(r->sge[0].addr, SLOT);
  unlock_device();
  return 0;
}
static int modify_qp(struct qp *q, void *attributes, int mask) {
  EQUAL(mask, 1);
  EQUAL(*(uint32_t *)attributes, 6);
  lock_device();
  q->error = 1;
  unlock_device();
  return 0;
}
static int get_cq_event(struct end *e, struct cq **cq, void **context) {
  uint64_t one;
  if (read(e->channel, &one, 8) != 8) return -1;
  *cq = &e->cq;
  *context = NULL;
  return 0;
}
static struct context device = {
  .poll_cq = poll_cq, .req_notify_cq = req_notify_cq, .post_send = post_send, .post_recv = post_recv
};

// ---- two connections

struct options { uint32_t pages, reserve, max_sge; int raw, local; };
static int reserve, ops_live;
static struct end *const a = &ends[0], *const b = &ends[1];

static void plug(struct end *e, const struct options *o) {
  memset(&e->qp, 0, sizeof e->qp);
  memset(&e->cq, 0, sizeof e->cq);
  e->qp.context = e->cq.context = &device;
  e->qp.end = e->cq.end = e;
  e->qp.peer = e == a ? &b->qp : &a->qp;
  e->raw = o->raw;
  e->max_sge = o->max_sge ? o->max_sge : 16;
  e->channel = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK);
  e->slots = aligned_alloc(SLOT, (RECV_SLOTS + SEND_SLOTS + 1) * SLOT);
  e->started = e->sent = e->live = 0;
  CHECK(e->channel >= 0 && e->slots);
  memset(e->slots, 0xee, (RECV_SLOTS + SEND_SLOTS) * SLOT);
  uint64_t config[] = { (uintptr_t)&e->qp, (uintptr_t)&e->cq, (uintptr_t)modify_qp, (uintptr_t)get_cq_event,
                        (uintptr_t)e, (uintptr_t)e->slots, SLOT_KEY, POOL_KEY, INLINE, e->max_sge, 32, READ_BYTES,
                        (uint64_t)o->raw };
  e->conn = moat_rdma_add(e->pool->index, e->channel, config);
  CHECK(e->conn >= 0);
}
static void begin(struct end *e, const struct options *o) {
  const struct end *peer = e->qp.peer->end;
  EQUAL(moat_rdma_begin(e->conn, (uintptr_t)peer->pool->device, peer->pool->frames, REMOTE_KEY, o->local ? getpid() : 0), 0);
}
static void make_pools(struct options o) {
  if (!o.pages) o.pages = 512;
  if (!o.reserve) o.reserve = 512;
  reserve = (int)o.reserve;
  for (int i = 0; i < 2; i++) ends[i].pool = new_pool(o.pages, o.reserve, o.local ? 2000 : 30000);
  ops_live = (int)moat_query(Q_OPS_LIVE, 0);
}
static void meet(struct options o) {
  if (!a->pool) make_pools(o);
  automatic = 1;
  for (int i = 0; i < 2; i++) plug(&ends[i], &o);
  for (int i = 0; i < 2; i++) begin(&ends[i], &o);
}

// ---- a program, as lib/native_transport.ts and lib/rdma/transport.ts are one

static uint64_t random_state = 1;
static uint64_t next_random(void) {
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}
static uint32_t below(uint32_t n) { return (uint32_t)(next_random() % n); }

struct unaligned { uint64_t word; } __attribute__((packed, may_alias));
// By words, and not by memset(3) or memcpy(3): see fill().
static void write_bytes(volatile uint8_t *at, long bytes) {
  for (; bytes >= 8; bytes -= 8, at += 8) ((volatile struct unaligned *)at)->word = next_random();
  for (; bytes > 0; bytes--) *at++ = (uint8_t)next_random();
}
static uint64_t hash_of(const volatile uint8_t *at, long bytes) {
  uint64_t h = (uint64_t)bytes;
  for (; bytes >= 8; bytes -= 8, at += 8) h = (h ^ ((const volatile struct unaligned *)at)->word) * 0x9e3779b97f4a7c15 + (h >> 29);
  for (; bytes > 0; bytes--) h = (h ^ *at++) * 0x9e3779b97f4a7c15 + (h >> 29);
  return h;
}

enum { NOTHING, SEND, RECEIVE, TAKE };
static struct track { int kind, take, order; struct end *end; uint32_t page, pages, off; } track[1 << 14];

static volatile uint8_t *window(struct end *e, uint32_t page, uint32_t off) { return e->pool->window + page * page_size + off; }
static int find_pages(struct end *e, uint32_t n) {
  for (uint32_t i = 0, run = 0; i < e->pool->pages; i++) {
    run = e->used[i] ? 0 : run + 1;
    if (run < n) continue;
    memset(e->used + i + 1 - n, 1, n);
    return (int)(i + 1 - n);
  }
  return -1;
}
static uint32_t pages_for(uint32_t off, long len) {
  uint32_t n = (uint32_t)((off + (uint64_t)len + page_size - 1) / page_size);
  return n ? n : 1;
}
static void start_op(struct end *e, int op, int kind, uint32_t page, uint32_t pages, uint32_t off) {
  CHECK(op >= 0 && op < (1 << 14) && track[op].kind == NOTHING);
  track[op] = (struct track){ kind, -1, kind == SEND ? -1 : e->started++, e, page, pages, off };
  if (kind != SEND) e->result[track[op].order] = (struct result){ -EINPROGRESS, 0, 0, 0 };
  e->live++;
}
// Sends pages of the window that hold anything. The operation, or -1 without a page.
static int send_pages(struct end *e, uint32_t off, long len, int guard) {
  uint32_t n = pages_for(off, len);
  int page = find_pages(e, n);
  if (page < 0) return -1;
  write_bytes(window(e, (uint32_t)page, off), len);
  int op = moat_out(e->pool->index, (uint32_t)page, n, off, (double)len, guard);
  if (op < 0) {
    EQUAL(op, -ENOBUFS);
    memset(e->used + page, 0, n);
    return -1;
  }
  start_op(e, op, SEND, (uint32_t)page, n, off);
  e->message[e->sent].len = len;
  e->message[e->sent++].hash = hash_of(window(e, (uint32_t)page, off), len);
  EQUAL(moat_conn_send(e->conn, op), 0);
  return op;
}
static uint8_t scratch[1 << 20];
static int send_copy(struct end *e, long len, int staged) {
  uint8_t *bytes = staged ? malloc((size_t)len + 1) : scratch;
  write_bytes(bytes, len);
  int op = staged ? moat_out_staged(e->pool->index, (double)(uintptr_t)bytes, (double)len)
                  : moat_out_copy(e->pool->index, bytes, (double)len);
  if (op < 0) return -1;
  start_op(e, op, SEND, 0, 0, 0);
  e->message[e->sent].len = len;
  e->message[e->sent++].hash = hash_of(bytes, len);
  EQUAL(moat_conn_send(e->conn, op), 0);
  return op;  // the staged bytes stay until the process ends
}
static int send_eager(struct end *e, long len) {
  write_bytes(scratch, len);
  int r = moat_conn_eager(e->conn, scratch, (uint32_t)len);
  if (r) return r;
  e->message[e->sent].len = len;
  e->message[e->sent++].hash = hash_of(scratch, len);
  return 0;
}
static int receive_pages(struct end *e, uint32_t off, long len) {
  uint32_t n = pages_for(off, len);
  int page = find_pages(e, n);
  if (page < 0) return -1;
  int op = moat_in(e->pool->index, (uint32_t)page, n, off, (double)len, WAIT);
  if (op < 0) {
    EQUAL(op, -ENOBUFS);
    memset(e->used + page, 0, n);
    return -1;
  }
  start_op(e, op, RECEIVE, (uint32_t)page, n, off);
  EQUAL(moat_conn_recv(e->conn, op), 0);
  return op;
}
static int receive_any(struct end *e) {
  int op = moat_take_new(e->pool->index);
  start_op(e, op, TAKE, 0, 0, 0);
  EQUAL(moat_conn_recv(e->conn, op), 0);
  return op;
}
static struct op *taken(struct end *e) { return (struct op *)(uintptr_t)moat_conn_report(e->conn); }
static struct op *ended(struct end *e) { return (struct op *)((uint8_t *)taken(e) + 160); }
static int take(struct end *e) {
  int r = moat_conn_take(e->conn, 0);
  if (r != 1) return r;
  struct op *o = taken(e);
  CHECK(o->got <= EAGER);
  uint8_t *exact = malloc(o->got + 1);
  EQUAL(moat_msg_copy(e->conn, -1, exact), 0);
  EQUAL(moat_msg_copy(e->conn, -1, exact), -EINVAL);
  e->result[e->started++] = (struct result){ 0, 1, (long)o->got, hash_of(exact, (long)o->got) };
  free(exact);
  return 1;
}
static int no_room;
static void land(struct end *e) {
  for (double n; (n = moat_rdma_wants(e->conn)) > 0;) {
    long len = e->raw ? 20000 : (long)n;
    uint32_t pages = pages_for(0, len);
    int page = no_room || len > (long)(e->pool->pages * page_size) ? -1 : find_pages(e, pages), op = -1;
    if (page >= 0) op = moat_in(e->pool->index, (uint32_t)page, pages, 0, (double)len, NO_GUARD);
    if (op < 0 && page >= 0) memset(e->used + page, 0, pages);
    int take = moat_rdma_land(e->conn, op);
    if (op < 0) {
      CHECK(take >= 0);
      continue;
    }
    if (take < 0) {
      EQUAL(take, -EAGAIN);
      EQUAL(moat_op_done(op, -ECANCELED), 0);
      EQUAL(moat_op_free(op), 0);
      memset(e->used + page, 0, pages);
      continue;
    }
    CHECK(track[take].kind == TAKE && track[take].end == e);
    CHECK(track[op].kind == NOTHING);
    track[op] = (struct track){ RECEIVE, take, track[take].order, e, (uint32_t)page, pages, 0 };
  }
}
static void destroy_queue_pair(struct end *e) {
  EQUAL(moat_rdma_kill(e->conn), 0);
  lock_device();
  e->qp.context = NULL;
  e->qp.error = 1;
  unlock_device();
  EQUAL(moat_rdma_gone(e->conn), 0);
}
static int last_status;
// The next operation that ended, or -1. Each ends once.
static int collect(struct end *e) {
  land(e);
  int op = moat_conn_next(e->conn);
  if (op < 0) {
    if (moat_rdma_query(e->conn, R_STUCK) == 1 && e->qp.context) destroy_queue_pair(e);
    return -1;
  }
  struct op *o = ended(e);
  struct track t = track[op];
  CHECK(t.kind != NOTHING && t.end == e);
  last_status = o->status;
  long got = (long)o->got;
  uint64_t hash = 0;
  if (t.kind == RECEIVE && o->status == 0) hash = hash_of(window(e, t.page, t.off), got);
  if (t.kind == TAKE && o->status == 0) {
    EQUAL(o->d.kind, 1);
    uint8_t *exact = malloc((size_t)got + 1);
    EQUAL(moat_msg_copy(e->conn, op, exact), 0);
    hash = hash_of(exact, got);
    free(exact);
  }
  if (t.kind != SEND) e->result[t.order] = (struct result){ o->status, o->status == 0, got, hash };
  EQUAL(moat_op_free(op), 0);
  EQUAL(moat_op_free(op), -EINVAL);
  if (t.take >= 0) {
    EQUAL(moat_op_done(t.take, o->status), 0);
    EQUAL(moat_op_free(t.take), 0);
    track[t.take].kind = NOTHING;
  }
  // An operation that the device is through with leaves no page that stays closed.
  if (t.kind == RECEIVE) EQUAL(moat_restore(e->pool->index, t.page, t.pages), 0);
  memset(e->used + t.page, 0, t.pages);
  track[op].kind = NOTHING;
  e->live--;
  return op;
}
static void collect_all(void) {
  for (int quiet = 0; quiet < 3; quiet++)
    for (int i = 0; i < 2; i++)
      while (ends[i].conn >= 0 && collect(&ends[i]) >= 0) quiet = 0;
}
// Until everything that was begun has ended.
static void settle(struct end *e) {
  for (int i = 0; e->live; i++) {
    CHECK(i < 4000);
    collect_all();
    if (e->live) usleep(1000);
  }
}

// What arrived is what was sent, in order. A receive that the end of the connection took may have had a message.
static int compare(struct end *from, struct end *to) {
  int k = 0, doubt = 0, ok = 0;
  for (int i = 0; i < to->started; i++) {
    const struct result *r = &to->result[i];
    CHECK(r->status != -EINPROGRESS);
    if (r->status == -EMSGSIZE || r->status == -ECANCELED || r->status == -ENOBUFS) continue;
    if (r->status) {
      doubt++;
      continue;
    }
    while (doubt && k < from->sent && (from->message[k].hash != r->hash || from->message[k].len != r->len)) k++, doubt--;
    CHECK(k < from->sent);
    EQUAL(r->len, from->message[k].len);
    CHECK(r->hash == from->message[k].hash);
    k++;
    ok++;
  }
  return ok;
}

static void unplug(struct end *e) {
  destroy_queue_pair(e);
  settle(e);
  EQUAL(moat_conn_busy(e->conn), 0);
  EQUAL(moat_conn_remove(e->conn), 0);
  e->conn = -1;
  unpoison((uintptr_t)e->slots, RECV_SLOTS * SLOT);
  memset(e->slots, 0xdd, RECV_SLOTS * SLOT);
  free(e->slots);
  close(e->channel);
}
static void nothing_lost(void) {
  EQUAL(moat_query(Q_OPS_LIVE, 0), ops_live);
  for (int i = 0; i < 2; i++) {
    struct end *e = &ends[i];
    EQUAL(moat_restore(e->pool->index, 0, e->pool->pages), 0);
    EQUAL(free_frames(e->pool), reserve);
    for (uint32_t k = 0; k < e->pool->pages; k++) EQUAL(e->used[k], 0);
  }
}
// Ends both connections: as programs do that are through, or at once.
static void part(int abort) {
  automatic = 1;
  for (int i = 0; i < 2; i++) {
    struct end *e = &ends[i];
    e->qp.paused = e->qp.no_reads = e->cq.held = 0;
  }
  if (!abort)
    for (int i = 0; i < 2; i++) {
      settle(&ends[i]);
      EQUAL(moat_conn_state(ends[i].conn), OPEN);
    }
  for (int i = 0; i < 2; i++) EQUAL(moat_conn_end(ends[i].conn, abort), 0);
  collect_all();
  for (int i = 0; i < 2; i++)
    if (!abort) EQUAL(moat_rdma_query(ends[i].conn, R_BYE_DONE), 1);
  for (int i = 0; i < 2; i++) unplug(&ends[i]);
  compare(a, b);
  compare(b, a);
  nothing_lost();
}
static void steps(int n) {
  lock_device();
  for (; n > 0; n--) step(&ends[below(2)].qp);
  unlock_device();
}
static void run(void) {
  lock_device();
  run_device();
  unlock_device();
}
static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

#include "rdma_cases.h"
