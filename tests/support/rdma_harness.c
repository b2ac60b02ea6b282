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

// ---- what the helper and the device know of each other (ffi/helper/rdma.h and verbs.h)

enum { SLOT = 4096, DATA_SLOTS = 48, RECV_SLOTS = 64, SEND_SLOTS = 32, CONTROL_SLOTS = 4, SQ = 256, CQ = SQ + 1024 };
enum { HEADER = 24, EAGER = SLOT - HEADER, RUNS = EAGER / 8, CHAIN = 21, INLINE = 188, READ_BYTES = 1 << 16, MAX_READS = 32 };
enum { M_EAGER = 1, M_PAGES, M_CONTROL };
enum { OPEN, ENDED, LOST, BROKEN, ABORTED, PEER_ABORTED };
enum { R_BYE_DONE, R_DEAD, R_STUCK, R_EVENTS, R_ERROR, R_HAS_ERROR };
enum { MENDED = 11 };
struct header { uint8_t kind, flag; uint16_t count; uint32_t consumed; uint64_t len; uint32_t id; uint16_t off, head; };

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
  int flood;         // the peer has a message for every receive, without end
  int sink;          // takes every message, and throws it away
  long reads, sends;  // carried out
  uint64_t asked;     // reads
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
  uint8_t used[1 << 14];  // pages of the window
  int started;          // receives
  struct result { int status, consumed; long len; uint64_t hash; } result[8192];
  int sent;             // messages, in the order they were sent
  struct { long len; uint64_t hash; } message[8192];
  int live, takes;      // operations; of them, receives without a place
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
  static const struct header nothing_new = { .kind = M_CONTROL };
  while (c->end->qp.flood && deliver(&c->end->qp, (const uint8_t *)&nothing_new, HEADER)) {}
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
    if (w->opcode == WR_READ) CHECK(q->error || ++q->asked - (uint64_t)q->reads <= MAX_READS + 1);  // and a beat
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
  e->started = e->sent = e->live = e->takes = 0;
  CHECK(e->channel >= 0 && e->slots);
  memset(e->slots, 0xee, (RECV_SLOTS + SEND_SLOTS) * SLOT);
  uint64_t config[] = { (uintptr_t)&e->qp, (uintptr_t)&e->cq, (uintptr_t)modify_qp, (uintptr_t)get_cq_event,
                        (uintptr_t)e, (uintptr_t)e->slots, SLOT_KEY, POOL_KEY, INLINE, e->max_sge, MAX_READS, READ_BYTES,
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

static __thread uint64_t random_state = 1;
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

enum { NOTHING, SEND, RECEIVE, TAKE, PLACE };
static struct track { int kind, order; struct end *end; uint32_t page, pages, off; uint8_t *staged, *head; } track[1 << 14];

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
  track[op] = (struct track){ kind, kind == SEND ? -1 : e->started++, e, page, pages, off, NULL, NULL };
  if (kind != SEND) e->result[track[op].order] = (struct result){ -EINPROGRESS, 0, 0, 0 };
  e->live++;
}
// Headers: of as many bytes each, or (-1) of some messages, or none. What a message is known by includes its own.
static int heads;
enum { HEAD_MAX = 1024 };
static uint64_t give_head(int op) {
  uint8_t bytes[HEAD_MAX];
  uint32_t len = heads >= 0 ? (uint32_t)heads : below(3) ? 0 : 1 + below(HEAD_MAX);
  if (!len) return 0;
  write_bytes(bytes, len);
  int r = moat_op_header(op, bytes, len);
  if (r) {
    EQUAL(r, -ENOBUFS);
    track[op].head = malloc(len);
    memcpy(track[op].head, bytes, len);
    EQUAL(moat_op_header_staged(op, (double)(uintptr_t)track[op].head, len), 0);
  }
  return hash_of(bytes, len);
}
static uint64_t head_of(const struct end *e, int op, const struct op *o) {
  uint8_t *exact = malloc(o->head_len + 1);
  CHECK(o->head_len <= HEAD_MAX);
  EQUAL(moat_msg_header(e->conn, op, exact), 0);
  uint64_t hash = o->head_len ? hash_of(exact, o->head_len) : 0;
  free(exact);
  return hash;
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
  e->message[e->sent++].hash = hash_of(window(e, (uint32_t)page, off), len) ^ give_head(op);
  EQUAL(moat_conn_send(e->conn, op), 0);
  return op;
}
static __thread uint8_t scratch[1 << 20];
static int send_copy(struct end *e, long len, int staged) {
  uint8_t *bytes = staged ? malloc((size_t)len + 1) : scratch;
  write_bytes(bytes, len);
  int op = staged ? moat_out_staged(e->pool->index, (double)(uintptr_t)bytes, (double)len)
                  : moat_out_copy(e->pool->index, bytes, (double)len);
  if (op < 0) return -1;
  start_op(e, op, SEND, 0, 0, 0);
  track[op].staged = staged ? bytes : NULL;
  e->message[e->sent].len = len;
  e->message[e->sent++].hash = hash_of(bytes, len) ^ give_head(op);
  EQUAL(moat_conn_send(e->conn, op), 0);
  return op;
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
  e->takes++;
  EQUAL(moat_conn_recv(e->conn, op), 0);
  return op;
}
static struct op *taken(struct end *e) { return (struct op *)(uintptr_t)moat_conn_report(e->conn); }
static struct op *ended(struct end *e) { return (struct op *)((uint8_t *)taken(e) + 160); }
// A message that landed in a place of its own is read there, and the place given back.
enum { LANDED = 4 };
static uint64_t leave_place(struct end *e, int op, long got) {
  struct track t = track[op];
  CHECK(t.kind == PLACE && t.end == e && op_at(op)->state == 4 && op_at(op)->got == (uint64_t)got);
  uint64_t hash = hash_of(window(e, t.page, t.off), got);
  track[op].kind = NOTHING;
  EQUAL(moat_op_free(op), 0);
  memset(e->used + t.page, 0, t.pages);
  return hash;
}
static int take(struct end *e) {
  int r = moat_conn_take(e->conn, 0);
  if (r != 1) return r;
  struct op *o = taken(e);
  uint64_t head = head_of(e, -1, o);
  if (o->d.kind == LANDED) {
    long got = (long)o->got;
    e->result[e->started++] = (struct result){ 0, 1, got, head ^ leave_place(e, (int)o->seq, got) };
    return 1;
  }
  CHECK(o->got <= EAGER);
  uint8_t *exact = malloc(o->got + 1);
  EQUAL(moat_msg_copy(e->conn, -1, exact), 0);
  EQUAL(moat_msg_copy(e->conn, -1, exact), -EINVAL);
  e->result[e->started++] = (struct result){ 0, 1, (long)o->got, head ^ hash_of(exact, (long)o->got) };
  free(exact);
  return 1;
}
static int no_room;
static void land(struct end *e) {
  for (double n; (n = moat_conn_wants(e->conn)) != 0;) {
    long len = e->raw ? 20000 : (long)(n < 0 ? -n : n);  // less than 0: nobody waits for it yet
    uint32_t pages = pages_for(0, len);
    int page = no_room || len > (long)(e->pool->pages * page_size) ? -1 : find_pages(e, pages), op = -1;
    if (page >= 0) op = moat_in(e->pool->index, (uint32_t)page, pages, 0, (double)len, NO_GUARD);
    if (op < 0 && page >= 0) memset(e->used + page, 0, pages);
    if (op >= 0) track[op] = (struct track){ PLACE, -1, e, (uint32_t)page, pages, 0, NULL, NULL };
    int r = moat_conn_land(e->conn, op);
    if (op < 0 || r == 0) continue;
    EQUAL(r, -EAGAIN);
    track[op].kind = NOTHING;
    EQUAL(moat_op_done(op, -ECANCELED), 0);
    EQUAL(moat_op_free(op), 0);
    memset(e->used + page, 0, pages);
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
static int last_status, status_of[1 << 14];
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
  last_status = status_of[op] = o->status;
  long got = (long)o->got;
  uint64_t hash = 0;
  if (t.kind == RECEIVE && o->status == 0) hash = hash_of(window(e, t.page, t.off), got);
  if (t.kind == PLACE) {  // nobody had the message, or it was copied out
    track[op].kind = NOTHING;
    EQUAL(moat_op_free(op), 0);
    memset(e->used + t.page, 0, t.pages);
    return op;
  }
  if (t.kind == TAKE && o->status == 0 && o->d.kind == LANDED) {
    hash = leave_place(e, (int)o->seq, got);
  } else if (t.kind == TAKE && o->status == 0) {
    EQUAL(o->d.kind, 1);
    uint8_t *exact = malloc((size_t)got + 1);
    EQUAL(moat_msg_copy(e->conn, op, exact), 0);
    hash = hash_of(exact, got);
    free(exact);
  }
  if ((t.kind == RECEIVE || t.kind == TAKE) && o->status == 0) hash ^= head_of(e, op, o);
  if (t.kind != SEND) e->result[t.order] = (struct result){ o->status, o->status == 0, got, hash };
  track[op].kind = NOTHING;  // its number may be another's as soon as it is free
  EQUAL(moat_op_free(op), 0);
  if (t.kind == TAKE) e->takes--;
  // An operation that the device is through with leaves no page that stays closed.
  if (t.kind == RECEIVE) EQUAL(moat_restore(e->pool->index, t.page, t.pages), 0);
  memset(e->used + t.page, 0, t.pages);
  free(t.staged);
  free(t.head);
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
    if (r->status == -EMSGSIZE || r->status == -ENOBUFS) continue;
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
  while (collect(e) >= 0) {}
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

// ---- messages

static const long SIZES[] = { 0, 1, 100, INLINE - HEADER, INLINE - HEADER + 1, EAGER - 1, EAGER, EAGER + 1,
                              4096, 4097, 8192, 65536, 65537, 200000, 409600 };
enum { SIZES_COUNT = sizeof SIZES / sizeof *SIZES };

static void case_sizes(void) {
  meet((struct options){ 0 });
  for (int i = 0; i < SIZES_COUNT; i++)
    for (int way = 0; way < 6; way++) {
      long len = SIZES[i];
      uint32_t off = way == 2 ? 1 : way == 3 ? 4095 : 0;
      struct end *from = i & 1 ? a : b, *to = from->qp.peer->end;
      if (way & 1) CHECK(receive_pages(to, off ? 0 : 3, len + i % 3) >= 0);
      if (way == 0 && len > EAGER)
        EQUAL(send_eager(from, len), -EINVAL);
      else if (way == 0)
        EQUAL(send_eager(from, len), 0);
      else if (way >= 4)
        CHECK(send_copy(from, len, way == 5) >= 0);
      else
        CHECK(send_pages(from, off, len, way) >= 0);
      if (!(way & 1) && from->sent > to->started && len <= EAGER) EQUAL(take(to), 1);
      if (!(way & 1) && from->sent > to->started) {
        EQUAL(take(to), 0);  // a large one needs a place first
        receive_any(to);
      }
      collect_all();
      settle(from);
      settle(to);
    }
  part(0);
  EQUAL(compare(a, b) + compare(b, a), a->sent + b->sent);
}

// Messages of every size with headers, received in every way; where there are no frames too.
static void headers(struct options o) {
  static const int HEADS[] = { 1, 24, 1023, HEAD_MAX };
  static const long LENGTHS[] = { 0, 1, EAGER - HEAD_MAX, EAGER - HEAD_MAX + 1, EAGER - 24, EAGER - 23, EAGER, EAGER + 1, 65537 };
  meet(o);
  for (size_t h = 0; h < sizeof HEADS / sizeof *HEADS; h++)
    for (size_t i = 0; i < sizeof LENGTHS / sizeof *LENGTHS; i++)
      for (int way = 0; way < 5; way++) {
        long len = LENGTHS[i];
        heads = HEADS[h];
        struct end *from = i & 1 ? a : b, *to = from->qp.peer->end;
        if (way == 0) CHECK(receive_pages(to, 3, len + 1) >= 0);
        if (way == 1) receive_any(to);
        if (way == 4 && o.reserve > 1)
          CHECK(send_copy(from, len, 1) >= 0);
        else
          CHECK(send_pages(from, way == 3 ? 4095 : 0, len, COW) >= 0);
        if (way == 2) CHECK(receive_pages(to, 3, len + 1) >= 0);
        if (way > 2 && len + HEADS[h] <= EAGER) EQUAL(take(to), 1);
        else if (way > 2) receive_any(to);
        settle(from);
        settle(to);
      }
  // Many on the way and received, one waiting for a place, some read ahead.
  for (int i = 0; i < 300; i++) {
    heads = 1 + i % HEAD_MAX;
    if (send_pages(a, 0, i % 3 ? 100 : 5000, COW) < 0) break;
  }
  for (int i = 0; b->started < a->sent; i++) {
    if (i % 2 || !take(b)) receive_any(b);
    if (i % 5 == 0) collect_all();
  }
  settle(a);
  settle(b);
  heads = 0;
  part(0);
  EQUAL(compare(a, b) + compare(b, a), a->sent + b->sent);
}
static void case_headers(void) {
  headers((struct options){ 0 });
}
static void case_headers_no_frames(void) {
  make_pools((struct options){ .reserve = 1 });
  int op = moat_out_copy(a->pool->index, "", 1), other = moat_out_copy(b->pool->index, "", 1);
  reserve = 0, ops_live += 2;
  headers((struct options){ .reserve = 1 });
  done(op);
  done(other);
}
// A page that is written to in flight is the program's own from then on; the device sends the old one.
static void case_overwritten(void) {
  meet((struct options){ 0 });
  for (int i = 0; i < 4; i++) {
    a->qp.paused = 1;
    long len = i & 1 ? 5 * 4096 + 17 : 1000;
    int op = send_pages(a, 100, len, COW);
    write_bytes(window(a, track[op].page, 100), i & 2 ? 10 : len);
    CHECK(receive_pages(b, 9, len) >= 0);
    a->qp.paused = 0;
    settle(a);
    settle(b);
  }
  CHECK(stat(a->pool, PRIVATE) > 0);
  part(0);
  EQUAL(compare(a, b), 4);
}

// Every second page goes to another frame.
static void scatter(struct end *e, uint32_t pages) {
  for (uint32_t i = 1; i < pages; i += 2) {
    int op = out(e->pool, i, 1, COW);
    e->pool->window[i * page_size] = 1;
    done(op);
  }
}
static void send_scattered(uint32_t pages) {
  memset(a->used, 0, sizeof a->used);
  int op = send_pages(a, 5, (long)(pages * page_size) - 9, COW);
  CHECK(op >= 0);
  EQUAL(op_at(op)->d.nruns, pages);
  CHECK(receive_pages(b, 0, (long)(pages * page_size)) >= 0);
  settle(a);
  settle(b);
}
static void case_chain(void) {
  make_pools((struct options){ .pages = 1600, .reserve = 1600 });
  meet((struct options){ 0 });
  scatter(a, 1600);
  static const uint32_t COUNTS[] = { 4, 5, RUNS - 1, RUNS, RUNS + 1, 2 * RUNS, 2 * RUNS + 1, 1600 };
  for (size_t i = 0; i < sizeof COUNTS / sizeof *COUNTS; i++) send_scattered(COUNTS[i]);
  EQUAL(stat(a->pool, MENDED), 0);
  part(0);
  EQUAL(compare(a, b), sizeof COUNTS / sizeof *COUNTS);
}
// The longest announcement that has one, and one that has to be copied together because of it.
static void case_header_chain(void) {
  make_pools((struct options){ .pages = 1600, .reserve = 1600 });
  meet((struct options){ 0 });
  scatter(a, 1600);
  static const uint32_t COUNTS[] = { 1, 4, RUNS - 128, RUNS - 127, RUNS, 2 * RUNS - 128, 2 * RUNS - 127, 1600 };
  for (size_t i = 0; i < sizeof COUNTS / sizeof *COUNTS; i++) {
    heads = i & 1 ? HEAD_MAX : HEAD_MAX - 7;
    send_scattered(COUNTS[i]);
  }
  heads = 0;
  EQUAL(stat(a->pool, MENDED), 0);
  part(0);
  EQUAL(compare(a, b), sizeof COUNTS / sizeof *COUNTS);
}
// A peer that is not ours gets header and data as one message.
static void case_raw_header(void) {
  meet((struct options){ .raw = 1, .max_sge = 4 });
  for (int way = 0; way < 4; way++) {
    uint8_t head[24];
    write_bytes(head, sizeof head);
    int in = receive_pages(b, 0, 20000), frame = way == 1 ? 0 : 1;
    long len = way == 2 ? 0 : 5000;
    if (way == 3) scatter(a, 5);
    int page = find_pages(a, 5);
    EQUAL(page, 0);
    write_bytes(window(a, 0, 0), 5 * 4096);
    int op = way == 2 ? moat_out_copy(a->pool->index, head, 0)
                      : moat_out(a->pool->index, 0, way == 3 ? 5 : 2, 7, way == 3 ? 20000 - 24 : (double)len, COW);
    if (way == 3) len = 20000 - 24;
    start_op(a, op, SEND, 0, 5, 0);
    EQUAL(frame ? moat_op_header(op, head, sizeof head)
                : moat_op_header_staged(op, (double)(uintptr_t)head, sizeof head), 0);
    EQUAL(moat_conn_send(a->conn, op), 0);
    EQUAL(moat_conn_next(b->conn), in);
    EQUAL(ended(b)->got, (uint64_t)len + sizeof head);
    EQUAL(ended(b)->head_len, 0);
    CHECK(!memcmp((void *)window(b, track[in].page, 0), head, sizeof head));
    CHECK(!memcmp((void *)window(b, track[in].page, sizeof head), (void *)window(a, 0, 7), (size_t)len));
    EQUAL(moat_op_free(in), 0);
    memset(b->used + track[in].page, 0, track[in].pages);
    track[in].kind = NOTHING;
    b->live = b->started = 0;
    settle(a);
  }
  CHECK(stat(a->pool, MENDED) > 0);
  part(0);
}

// The longest announcement, and what is too scattered for any.
static void long_chains(uint32_t pages, int mended) {
  make_pools((struct options){ .pages = pages, .reserve = 2 * pages });
  meet((struct options){ 0 });
  static int ops[CHAIN * RUNS + 2];
  for (uint32_t i = 1; i < pages; i += 2) {
    ops[i] = out(a->pool, i, 1, NO_GUARD);  // cheaper to move than by a fault
    int in = moat_in(a->pool->index, i, 1, 0, 1, NO_GUARD);
    done(ops[i]);
    done(in);
  }
  int op = moat_out(a->pool->index, 0, pages, 5, (double)(pages * page_size - 9), NO_GUARD);
  start_op(a, op, SEND, 0, 0, 0);
  EQUAL(op_at(op)->d.nruns, pages);
  for (uint32_t i = 0; i < pages; i++) a->pool->window[i * page_size + 7] = (uint8_t)(i % 249);
  a->message[a->sent].len = (long)(pages * page_size) - 9;
  EQUAL(moat_conn_send(a->conn, op), 0);
  if (mended) {
    EQUAL(stat(a->pool, MENDED) > 0, 1);
    a->pool->window[7] = 99;  // no guard, but it was copied
  }
  int in = moat_in(b->pool->index, 0, pages, 0, (double)(pages * page_size), WAIT);
  start_op(b, in, RECEIVE, 0, 0, 0);
  track[in].pages = pages;
  EQUAL(moat_conn_recv(b->conn, in), 0);
  a->message[a->sent++].hash = 0;
  while (b->live) {
    collect(a);
    if (moat_conn_next(b->conn) != in) continue;
    EQUAL(ended(b)->status, 0);
    EQUAL(ended(b)->got, pages * page_size - 9);
    EQUAL(moat_op_free(in), 0);
    track[in].kind = NOTHING;
    b->live = b->started = a->sent = 0;
  }
  for (uint32_t i = 0; i < pages; i++) EQUAL(b->pool->window[i * page_size + 2], i % 249);
  part(0);
}
static void case_longest_chain(void) {
  long_chains(CHAIN * RUNS, 0);
}
static void case_mended(void) { long_chains(CHAIN * RUNS + 1, 1); }
// Neither slots whose completions nobody asked for nor credits that have not been told of hold it up.
static void case_chain_after_eager(void) {
  const uint32_t pages = (CHAIN - 1) * RUNS + 1;
  make_pools((struct options){ .pages = pages, .reserve = pages });
  meet((struct options){ 0 });
  for (uint32_t i = 1; i < pages; i += 2) {
    int op = out(a->pool, i, 1, NO_GUARD), in = moat_in(a->pool->index, i, 1, 0, 1, NO_GUARD);
    done(op);
    done(in);
  }
  for (int before = 0; before <= DATA_SLOTS; before += before < 16 ? 1 : 5) {
    if (before) meet((struct options){ 0 });
    for (int i = 0; i < before; i++) {
      EQUAL(send_eager(a, 10), 0);
      EQUAL(take(b), 1);
      EQUAL(collect(a), -1);
    }
    int op = moat_out(a->pool->index, 0, pages, 0, (double)(pages * page_size), NO_GUARD);
    start_op(a, op, SEND, 0, 0, 0);
    EQUAL(moat_conn_send(a->conn, op), 0);
    for (int i = 0; i < 10; i++) collect_all();
    EQUAL(op_at(op)->state, 3);  // announced
    part(1);
  }
}

// ---- flow

static void case_credits(void) {
  meet((struct options){ 0 });
  int sent = 0, queued = 0;
  while (send_eager(a, 64) == 0) {
    sent++;
    EQUAL(moat_conn_next(a->conn), -1);
  }
  EQUAL(sent, DATA_SLOTS);  // nobody has received any
  for (; queued < 100; queued++) CHECK((queued % 3 == 0 ? send_pages(a, 1, 9000, COW) : send_copy(a, 500, queued & 1)) >= 0);
  EQUAL(send_eager(a, 1), -EAGAIN);  // it would overtake
  collect_all();
  EQUAL(a->live, queued);
  for (int got = 0; got < sent + queued;) {
    int r = take(b);
    CHECK(r >= 0);
    if (!r && b->live == 0) receive_any(b);
    collect_all();
    got = b->started - b->live;
  }
  EQUAL(send_eager(a, 1), 0);
  EQUAL(take(b), 1);
  part(0);
  EQUAL(compare(a, b), sent + queued + 1);
}

// More control messages than there are slots for them: the device tries again, and nothing else happens.
static void case_control_flood(void) {
  meet((struct options){ 0 });
  for (int i = 0; i < 100; i++) {  // a sends; its side does not poll, so the releases pile up in its slots
    CHECK(send_pages(a, 0, 5000, NO_GUARD) >= 0 || i > 40);
    a->cq.held = 1;
    if (receive_pages(b, 0, 5000) >= 0)
      while (collect(b) >= 0) {}
    run();
  }
  a->cq.held = 0;
  for (int i = 0; b->live && i < 1000; i++) {
    collect_all();
    if (b->live && !a->live) CHECK(send_pages(a, 0, 100, COW) >= 0);
  }
  part(0);
}

static void case_never_receives(void) {
  meet((struct options){ 0 });
  int ops[60];
  for (int i = 0; i < 60; i++) ops[i] = send_pages(a, 0, 8192, WAIT);
  collect_all();
  EQUAL(a->live, 60);
  EQUAL(moat_conn_busy(a->conn), DATA_SLOTS > SEND_SLOTS - CONTROL_SLOTS ? DATA_SLOTS + 1 : 0);
  EQUAL(moat_restore(a->pool->index, track[ops[0]].page, 2), 2);  // guarded: somebody may still read them
  EQUAL(moat_conn_remove(a->conn), -EBUSY);
  part(1);
}

// The releases of what is read while a control message is under way gather for the next.
static void case_batched(void) {
  meet((struct options){ 0 });
  for (int i = 0; i < 40; i++) CHECK(send_pages(a, 0, 5000, COW) >= 0);
  CHECK(receive_pages(b, 0, 5000) >= 0);
  while (collect(b) >= 0) {}
  b->qp.paused = 0;
  long before = b->qp.sends;
  for (int i = 0; i < 39; i++) CHECK(receive_pages(b, 0, 5000) >= 0);
  collect_all();
  settle(a);
  settle(b);
  CHECK(b->qp.sends - before < 39);
  part(0);
  EQUAL(compare(a, b), 40);
}

// Few requests ask for their completion, and still neither slots nor the send queue run out.
static void case_signalling(void) {
  meet((struct options){ 0 });
  long polled = 0;
  for (int i = 0; i < 3000; i++) {
    EQUAL(send_eager(a, i % 300), 0);
    if (i % 7 == 0) EQUAL(send_eager(b, 10), 0);
    EQUAL(take(b), 1);
    if (i % 7 == 0) EQUAL(take(a), 1);
    polled += moat_conn_next(a->conn) < 0;
  }
  EQUAL(polled, 3000);
  EQUAL(a->cq.tail > 0, 1);
  // Every data slot is there in one go.
  int n = 0;
  a->qp.paused = 1;
  while (send_eager(a, 9) == 0) n++;
  CHECK(n >= SEND_SLOTS - CONTROL_SLOTS - 8);
  a->qp.paused = 0;
  while (b->started < a->sent) {
    CHECK(take(b) >= 0);
    collect_all();
  }
  part(0);
}

static void case_cancelled(void) {
  meet((struct options){ 0 });
  int early = receive_pages(b, 0, 9000);
  EQUAL(moat_conn_cancel(early), 0);
  EQUAL(collect(b), early);
  EQUAL(last_status, -ECANCELED);
  b->qp.no_reads = 1;
  CHECK(send_pages(a, 0, 9000, COW) >= 0);
  int late = receive_pages(b, 0, 9000);
  EQUAL(op_at(late)->state, 3);  // being read
  EQUAL(moat_conn_cancel(late), 0);
  EQUAL(collect(b), -1);
  b->qp.no_reads = 0;
  EQUAL(collect(b), late);
  EQUAL(last_status, 0);
  settle(a);
  // One in the middle.
  int ops[3];
  for (int i = 0; i < 3; i++) ops[i] = receive_pages(b, 0, 100);
  EQUAL(moat_conn_cancel(ops[1]), 0);
  EQUAL(send_eager(a, 50), 0);
  EQUAL(send_eager(a, 60), 0);
  collect_all();
  EQUAL(b->live, 0);
  part(0);
  EQUAL(compare(a, b), 3);
}

// A receive that wants a place, taken back before JavaScript found one, leaves nothing to be done.
static void case_cancelled_want(void) {
  for (int raw = 0; raw < 2; raw++) {
    meet((struct options){ .raw = raw });
    if (!raw) CHECK(send_pages(a, 0, 9000, COW) >= 0);
    int op = receive_any(b);
    CHECK(moat_conn_wants(b->conn) > 0);
    EQUAL(moat_conn_cancel(op), 0);
    EQUAL(collect(b), op);
    EQUAL(collect(b), -1);
    EQUAL(moat_conn_arm(b->conn), 0);  // or it would be looked after for ever
    if (!raw) CHECK(receive_pages(b, 0, 9000) >= 0);
    collect_all();
    part(raw);
  }
}

static void case_too_large(void) {
  meet((struct options){ 0 });
  for (int i = 0; i < 2; i++) {
    long len = i ? 9000 : 900;
    CHECK(send_pages(a, 0, len, COW) >= 0);
    int small = receive_pages(b, 0, len - 1), other = receive_pages(b, 0, 10), enough = receive_pages(b, 0, len);
    EQUAL(collect(b), small);
    EQUAL(last_status, -EMSGSIZE);
    EQUAL(ended(b)->got, len);
    EQUAL(collect(b), other);
    EQUAL(last_status, -EMSGSIZE);
    settle(b);
    EQUAL(b->result[track[enough].order].len, len);
  }
  part(0);
  EQUAL(compare(a, b), 2);
}

static void case_order(void) {
  meet((struct options){ 0 });
  EQUAL(send_eager(a, 1), 0);
  CHECK(send_pages(a, 0, 9000, COW) >= 0);
  CHECK(send_pages(a, 0, 30, COW) >= 0);
  EQUAL(send_eager(a, 3), 0);
  EQUAL(take(b), 1);
  EQUAL(take(b), 0);
  receive_any(b);
  EQUAL(take(b), 0);  // another waits before it
  settle(b);
  EQUAL(take(b), 1);
  CHECK(receive_pages(b, 7, 10) >= 0);
  receive_any(b);
  EQUAL(take(b), 0);
  for (int i = 0; i < 4; i++) collect_all();
  EQUAL(b->live, 1);
  EQUAL(send_eager(a, 4), 0);
  settle(b);
  EQUAL(take(b), 0);
  part(0);
  EQUAL(compare(a, b), 5);
}

static void case_landing(void) {
  meet((struct options){ 0 });
  CHECK(send_pages(a, 0, 20000, COW) >= 0);
  no_room = 1;
  receive_any(b);
  receive_any(b);
  settle(b);
  EQUAL(b->result[0].status, -ENOBUFS);
  EQUAL(b->result[1].status, -ENOBUFS);
  no_room = 0;
  receive_any(b);
  settle(b);
  EQUAL(b->result[2].status, 0);
  // The place is found too late: nobody waits for it any more.
  CHECK(send_pages(a, 0, 20000, COW) >= 0);
  int op = receive_any(b);
  EQUAL(moat_conn_wants(b->conn), 20000);
  EQUAL(moat_conn_cancel(op), 0);
  CHECK(moat_conn_land(b->conn, -1) <= 0);
  EQUAL(collect(b), op);
  CHECK(receive_pages(b, 0, 20000) >= 0);
  part(0);
  EQUAL(compare(a, b), 2);
}

// A device that takes few pieces: a small message on two pages is copied together.
static void case_few_pieces(void) {
  for (uint32_t max_sge = 1; max_sge <= 3; max_sge++) {
    meet((struct options){ .max_sge = max_sge });
    if (max_sge == 1) scatter(a, 512);
    for (int i = 0; i < 40; i++) {
      CHECK(send_pages(a, 4000, 1000 + i * 300, COW) >= 0);
      CHECK(receive_pages(b, 4095, 13000) >= 0);
      for (int k = 0; k < 10; k++) collect_all();
      EQUAL(a->live + b->live, 0);
    }
    part(0);
    EQUAL(compare(a, b), 40);
  }
}

// Staged sends wait for frames.
static void case_staged(void) {
  make_pools((struct options){ .pages = 256, .reserve = 8 });
  meet((struct options){ 0 });
  for (int i = 0; i < 10; i++) CHECK(send_copy(a, 20000, 1) >= 0);
  for (int i = 0; i < 10; i++) CHECK(receive_pages(b, 0, 20000) >= 0);
  part(0);
  EQUAL(compare(a, b), 10);
}

// ---- ends

static void case_abort_while_read(void) {
  for (int side = 0; side < 2; side++) {
    meet((struct options){ 0 });
    b->qp.no_reads = 1;
    int out = send_pages(a, 0, 300000, WAIT), in = receive_pages(b, 0, 300000);
    collect_all();
    EQUAL(op_at(in)->state, 3);
    uint32_t page = track[in].page;
    struct end *e = side ? a : b;
    b->qp.paused = 1;
    EQUAL(moat_conn_end(e->conn, 1), 0);
    for (int i = 0; i < 20; i++) collect_all();
    EQUAL(moat_conn_state(e->conn), ABORTED);
    if (!side) {  // the device has the reads yet: what they write must not be the program's
      EQUAL(b->live, 1);
      EQUAL(moat_restore(b->pool->index, page, 1), 1);
      CHECK(op_at(out)->state != 4);
    }
    b->qp.paused = 0;  // the reads are not answered, so the goodbye does not get through either
    settle(b);
    EQUAL(b->result[0].status, side ? -EOWNERDEAD : -ECANCELED);
    if (side) EQUAL(moat_conn_state(b->conn), PEER_ABORTED);
    part(1);
  }
}

// What the peer said before everything came back outranks how it came back.
static void case_goodbye_then_flush(void) {
  for (int abort = 0; abort < 2; abort++) {
    meet((struct options){ 0 });
    EQUAL(send_eager(b, 10), 0);
    int op = receive_pages(b, 0, 10);
    int sent = send_pages(a, 0, 9000, COW);
    a->cq.held = 1;
    EQUAL(moat_conn_end(b->conn, abort), 0);
    run();
    lock_device();
    a->qp.error = 1;  // the connection manager was faster
    unlock_device();
    run();
    a->cq.held = 0;
    EQUAL(take(a), 1);  // what came before is there
    settle(a);
    EQUAL(moat_conn_state(a->conn), abort ? PEER_ABORTED : ENDED);
    EQUAL(status_of[sent], abort ? -EOWNERDEAD : -EPIPE);
    EQUAL(take(a), abort ? -EOWNERDEAD : -EPIPE);
    settle(b);
    EQUAL(b->result[track[op].order].status, -ECANCELED);
    part(1);
  }
}

static void case_hang_up(void) {
  meet((struct options){ 0 });
  EQUAL(send_eager(b, 10), 0);
  CHECK(send_pages(a, 0, 9000, WAIT) >= 0);
  CHECK(receive_pages(a, 0, 100) >= 0);
  CHECK(receive_pages(a, 0, 100) >= 0);
  EQUAL(moat_rdma_hangup(a->conn), 0);
  settle(a);
  EQUAL(moat_conn_state(a->conn), LOST);
  EQUAL(a->result[0].status, 0);
  EQUAL(a->result[1].status, -ECONNRESET);
  EQUAL(moat_rdma_query(a->conn, R_HAS_ERROR), 0);  // nothing but a flush
  part(1);
  meet((struct options){ 0 });
  EQUAL(moat_conn_end(b->conn, 0), 0);
  run();
  EQUAL(moat_rdma_hangup(a->conn), 0);
  EQUAL(moat_conn_state(a->conn), ENDED);
  part(1);
}

// Without a word, and without an event of the connection manager: the handler asks its device.
static void case_silent_death(void) {
  meet((struct options){ 0 });
  int op = send_pages(a, 0, 9000, WAIT);
  run();
  lock_device();
  b->qp.error = b->qp.paused = 1;
  unlock_device();
  double t0 = seconds();
  window(a, track[op].page, 0)[0]++;
  CHECK(seconds() - t0 > 0.9 && seconds() - t0 < 10);
  EQUAL(moat_conn_state(a->conn), LOST);
  EQUAL(stat(a->pool, TIMEOUTS), 0);
  settle(a);
  EQUAL(status_of[op], -ECONNRESET);
  EQUAL(moat_rdma_query(a->conn, R_HAS_ERROR), 1);
  part(1);
}

static void case_post_fails(void) {
  make_pools((struct options){ .pages = 1600, .reserve = 1600 });
  meet((struct options){ 0 });
  scatter(a, 1600);
  int in = receive_pages(b, 0, 1600 * 4096);
  a->qp.fail_post = 3;  // of four
  CHECK(send_pages(a, 0, 1600 * 4096, COW) >= 0);
  settle(a);
  EQUAL(last_status, -ECONNRESET);
  EQUAL(moat_conn_state(a->conn), LOST);
  EQUAL(b->result[track[in].order].status, -EINPROGRESS);
  part(1);
  EQUAL(b->result[0].consumed, 0);
  for (int n = 1; n < 8; n++) {  // wherever it is
    meet((struct options){ 0 });
    a->qp.fail_post = n;
    for (int i = 0; i < 4; i++) {
      send_eager(a, 5);
      send_pages(a, 1, i & 1 ? 500 : 9000, COW);
      receive_any(b);
      receive_any(b);
      send_pages(b, 1, 9000, COW);
      receive_pages(a, 1, 9000);
      collect_all();
    }
    EQUAL(moat_conn_state(a->conn), LOST);
    settle(a);
    part(1);
  }
}

static void case_request_fails(void) {
  for (int n = 1; n < 10; n++) {
    meet((struct options){ 0 });
    b->qp.fail_request = n;
    b->qp.status = n & 1 ? ACCESS_ERROR : RETRIED;
    for (int i = 0; i < 4; i++) {
      send_pages(a, 1, 200000, WAIT);
      receive_pages(b, 3, 200000);
      send_pages(b, 1, i & 1 ? 500 : 9000, COW);
      receive_any(a);
      send_eager(b, 5);
      receive_any(a);
      collect_all();
    }
    EQUAL(moat_conn_state(b->conn), LOST);
    EQUAL(moat_rdma_query(b->conn, R_HAS_ERROR), 1);
    struct wc *error = (struct wc *)(uintptr_t)moat_rdma_query(b->conn, R_ERROR);
    EQUAL(error->status, b->qp.status);
    settle(b);
    part(1);
  }
}

// A device that loses everything it has: without its queue pair it has nothing any more.
static void case_lost_flush(void) {
  meet((struct options){ 0 });
  b->qp.no_reads = 1;
  CHECK(send_pages(a, 0, 300000, WAIT) >= 0);
  int in = receive_pages(b, 0, 300000);
  uint32_t page = track[in].page;
  collect_all();
  b->qp.no_flush = 1;
  EQUAL(moat_conn_end(b->conn, 1), 0);
  b->qp.no_reads = 0;
  b->qp.paused = 1;
  double t0 = seconds();
  while (b->live) {
    EQUAL(moat_restore(b->pool->index, page, 1), 1);
    collect_all();
    usleep(10000);
  }
  CHECK(seconds() - t0 > 1 && seconds() - t0 < 10);
  EQUAL(b->result[0].status, -ECANCELED);
  part(1);
}

static void case_raw(void) {
  meet((struct options){ .raw = 1, .max_sge = 4 });
  // A message needs its receive before it.
  for (int i = 0; i < 20; i++) {
    long len = i * 700;
    if (i & 1) receive_any(b); else CHECK(receive_pages(b, 1, 20000) >= 0);
    collect_all();
    if (len <= 4096 && i % 3 == 0)
      EQUAL(send_eager(a, len), 0);
    else
      CHECK(send_pages(a, 2, len, COW) >= 0);
    settle(a);
    settle(b);
  }
  // More pieces than the device takes: a send is copied together, a receive refused.
  scatter(a, 12);
  scatter(b, 12);
  CHECK(receive_pages(b, 0, 12 * 4096) >= 0);
  settle(b);
  EQUAL(b->result[20].status, -ENOBUFS);
  memset(b->used, 1, 12);
  CHECK(receive_pages(b, 0, 12 * 4096) >= 0);
  memset(b->used, 0, 12);
  CHECK(send_pages(a, 0, 12 * 4096, COW) >= 0);
  settle(a);
  settle(b);
  CHECK(stat(a->pool, MENDED) > 0);
  EQUAL(compare(a, b), 21);
  // What is at the device cannot be taken back, but by the end.
  int op = receive_pages(b, 0, 100);
  EQUAL(moat_conn_cancel(op), 0);
  EQUAL(collect(b), -1);
  CHECK(send_pages(a, 0, 101, COW) >= 0);  // too large for it: the connection is over
  settle(b);
  EQUAL(moat_conn_state(b->conn), LOST);
  part(1);
}

static void case_end_before_it_begins(void) {
  meet((struct options){ 0 });
  part(1);
  struct options o = { 0 };
  for (int i = 0; i < 2; i++) plug(&ends[i], &o);
  EQUAL(moat_conn_arm(a->conn), 0);
  EQUAL(take(a), 0);
  part(1);
  for (int i = 0; i < 2; i++) plug(&ends[i], &o);
  begin(a, &o);
  EQUAL(send_eager(a, 5), 0);
  run();
  EQUAL(take(b), 0);  // it has come, but nothing is known of the peer yet
  begin(b, &o);
  EQUAL(take(b), 1);
  part(0);
}

// ---- waiting

static void *carry_on(void *arg) {
  struct end *e = arg;
  usleep(50000);
  for (int i = 0; i < 2000 && e->qp.error == 0 && !automatic; i++) {
    lock_device();
    step(&a->qp);
    step(&b->qp);
    unlock_device();
    usleep(100);
  }
  return NULL;
}
// The handler posts the reads, sees them done, and goes on; nobody else moves either end.
static void case_handler(void) {
  meet((struct options){ 0 });
  moat_buf_open(b->pool->index, 0, 512);
  for (int slow = 0; slow < 2; slow++) {
    automatic = !slow;
    int in = receive_pages(b, 11, 150000), sent = send_pages(a, 3, 150000, WAIT);
    pthread_t thread;
    if (slow) pthread_create(&thread, NULL, carry_on, b);
    uint8_t first = window(b, track[in].page, 11)[0];
    EQUAL(first, window(a, track[sent].page, 3)[0]);
    EQUAL(stat(b->pool, WAITS), slow + 1);
    window(a, track[sent].page, 3)[5]++;  // waits for the release
    CHECK(op_at(sent)->state == 4);
    if (slow) automatic = 1, pthread_join(thread, NULL);
    settle(a);
    settle(b);
  }
  part(0);
  EQUAL(compare(a, b), 2);
}
// A thread that is the only one to move either end does not wait for itself.
static void case_own_thread(void) {
  meet((struct options){ .local = 1 });
  int in = receive_pages(b, 0, 9000);
  double t0 = seconds();
  window(b, track[in].page, 0)[0] = 1;
  CHECK(seconds() - t0 < 1.9);
  EQUAL(collect(b), in);
  EQUAL(last_status, -EBUSY);
  part(0);
}

// The doorbell's thread moves a connection on whose program sleeps or computes, and rings when it is to look.
static void case_doorbell(void) {
  meet((struct options){ 0 });
  int pair[2], epoll = epoll_create1(0), event = eventfd(0, EFD_NONBLOCK);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
  int bell = moat_bell_new(epoll, event, pair[1]);
  CHECK(bell >= 0);
  EQUAL(moat_bell_watch(bell, b->channel, b->conn), 0);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, (void *(*)(void *))(uintptr_t)moat_bell_main_address(), (void *)(intptr_t)bell) == 0);
  for (int i = 0; i < 5; i++) {
    int in = receive_pages(b, 0, 30000);
    while (moat_conn_arm(b->conn)) collect(b);
    int op = send_pages(a, 0, 30000, COW);
    run();  // the announcement arrives; the thread posts the reads, and releases the message
    struct pollfd p = { pair[0], POLLIN, 0 };
    EQUAL(poll(&p, 1, 10000), 1);
    char byte;
    CHECK(read(pair[0], &byte, 1) == 1);
    moat_bell_answer(bell);
    for (int k = 0; k < 1000 && op_at(in)->state != 4; k++) usleep(1000);
    EQUAL(op_at(in)->state, 4);
    EQUAL(collect(b), in);
    while (collect(a) != op) usleep(1000);
    while (read(pair[0], &byte, 1) == 1) {}
    moat_bell_answer(bell);
  }
  CHECK(moat_rdma_query(b->conn, R_EVENTS) > 0);
  part(0);
  close(pair[0]);
  pthread_join(thread, NULL);
}

// A program on each side, in a thread of its own. One rewrites what it sends, and waits until it may; the other
// looks at what it receives before it has come.
enum { STREAM = 3000 };
static void *stream(void *arg) {
  struct end *e = arg;
  random_state = (uint64_t)(e == a) + 77;
  if (e == b) use_small_stack();
  for (int i = 0;; i++) {
    uint32_t what = below(12);
    int got = 0, open = 0, posted = -1;
    for (int k = 0; k < e->started; k++) got += e->result[k].consumed, open += e->result[k].status == -EINPROGRESS;
    if (e->sent == STREAM && got == STREAM && e->live == 0) return NULL;
    if (got + open == STREAM) what = what < 6 ? what : 11;
    long len = below(2) ? below(3000) : below(30000);
    int op = -1;
    if (e->sent < STREAM && e->live - open < 40) {
      if (what == 0) CHECK(send_eager(e, len % EAGER) <= 0);
      if (what == 1) op = send_pages(e, below(4096), len, COW);
      if (what == 2) op = send_pages(e, below(4096), len, e == a ? WAIT : COW);
      if (what == 3) op = send_copy(e, len % 9000, (int)below(2)), op = -1;
      if (op >= 0 && !below(4)) write_bytes(window(e, track[op].page, track[op].off), len);
    }
    if (open < 20) {
      if (what >= 6 && what <= 8) posted = receive_pages(e, below(4096), 30000);
      if (what == 9) receive_any(e);
    }
    if (what == 10) CHECK(take(e) >= 0);
    if (posted >= 0 && e == b && !e->takes && got + open + 1 < STREAM && !below(4))
      (void)*window(e, track[posted].page, track[posted].off);
    while (collect(e) >= 0) {}
    if (i % 64 == 0) sched_yield();
  }
}
static void case_two_threads(void) {
  meet((struct options){ 0 });
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, stream, b) == 0);
  stream(a);
  pthread_join(thread, NULL);
  for (int i = 0; i < 2; i++) EQUAL(stat(ends[i].pool, TIMEOUTS), 0);
  part(0);
  EQUAL(compare(a, b), STREAM);
  EQUAL(compare(b, a), STREAM);
}

// ---- anything

static void anything(int failures, int steps_count) {
  struct options o = { .max_sge = 2 + below(15) };
  meet(o);
  automatic = 0;
  int end_at = failures ? (int)below((uint32_t)steps_count) : steps_count;
  for (int i = 0; i < steps_count; i++) {
    struct end *e = &ends[below(2)];
    uint32_t what = below(110);
    long len = below(3) ? below(600) : below(3) ? below(40000) : SIZES[below(SIZES_COUNT - 1)];
    if (e->sent > 8000 || e->started > 8000) break;
    if (what < 15) {
      int r = send_eager(e, len > EAGER ? EAGER : len);
      CHECK(failures ? r <= 0 : r == 0 || r == -EAGAIN);
    } else if (what < 30 && e->live < 100) {
      int guard = (int)below(3), op = send_pages(e, below(4096), len, guard);
      if (op >= 0 && guard == COW && !below(3) && track[op].kind) write_bytes(window(e, track[op].page, track[op].off), (long)below((uint32_t)len + 1));
    } else if (what < 34 && e->live < 100) {
      send_copy(e, len, (int)below(2));
    } else if (what < 48 && e->live < 100) {
      receive_pages(e, below(4096), below(3) ? 50000 : len);
    } else if (what < 56 && e->live < 100) {
      receive_any(e);
    } else if (what < 66) {
      int r = take(e);
      CHECK(failures || r >= 0);
    } else if (what < 69) {
      int op = (int)below(200);
      if (track[op].kind == RECEIVE || track[op].kind == TAKE) moat_conn_cancel(op);
    } else if (what < 71) {
      e->cq.held = !below(4);
    } else if (what < 73) {
      e->qp.no_reads = !below(4);
    } else if (what < 75) {
      no_room = !below(4);
    } else if (what < 85) {
      steps((int)below(30));
    } else if (what < 88) {
      moat_conn_arm(e->conn);
    } else if (what >= 105) {
      steps(100);
    } else {
      for (int n = (int)below(10); n > 0 && collect(e) >= 0; n--) {}
    }
    if (i == end_at) {
      no_room = 0;
      switch (below(7)) {
        case 0: e->qp.fail_post = 1 + (int)below(10); break;
        case 1: e->qp.fail_request = 1 + (int)below(10), e->qp.status = RETRIED; break;
        case 2: moat_rdma_hangup(e->conn); break;
        case 3: moat_conn_end(e->conn, 1); break;
        case 4: moat_conn_end(e->conn, 0); break;
        case 5: lock_device(), e->qp.error = 1, unlock_device(); break;
        case 6: moat_rdma_kill(e->conn); break;
      }
    }
  }
  no_room = 0;
  if (failures) {
    part(1);
    return;
  }
  // Everything that was sent arrives.
  automatic = 1;
  for (int i = 0; i < 2; i++) ends[i].cq.held = ends[i].qp.no_reads = 0;
  for (int i = 0; i < 2; i++) {
    struct end *from = &ends[i], *to = &ends[!i];
    for (int k = 0; k < 20000; k++) {
      int r = take(to);
      CHECK(r >= 0);
      collect_all();
      int want = from->sent, got = 0, open = 0;
      for (int m = 0; m < to->started; m++) {
        got += to->result[m].consumed;
        open += to->result[m].status == -EINPROGRESS;
      }
      if (got == want) break;
      if (!r && !open) receive_any(to);
    }
    // Receives that wait for more than was sent.
    for (int op = 0; op < 1 << 14; op++)
      if (track[op].end == to && (track[op].kind == RECEIVE || track[op].kind == TAKE)) moat_conn_cancel(op);
    collect_all();
  }
  part(0);
  EQUAL(compare(a, b), a->sent);
  EQUAL(compare(b, a), b->sent);
}
static void case_random(void) {
  heads = -1;
  for (int i = 0; i < 12; i++) anything(0, 1500);
}
static void case_random_failures(void) {
  heads = -1;
  for (int i = 0; i < 60; i++) anything(1, 300);
}

// ---- a peer that keeps to no protocol

static uint8_t forged[SLOT + 64];
static int forge(uint8_t kind, uint32_t bytes) {
  struct header *h = (struct header *)forged;
  h->kind = kind;
  lock_device();
  int r = deliver(&a->qp, forged, bytes);
  unlock_device();
  return r;
}
// The peer's side has a queue pair and a pool, and no helper.
static void meet_hostile(void) {
  if (!a->pool) make_pools((struct options){ 0 });
  struct options o = { 0 };
  automatic = 1;
  plug(a, &o);
  memset(&b->qp, 0, sizeof b->qp);
  b->qp.end = b;
  b->qp.peer = &a->qp;
  b->qp.sink = 1;
  b->conn = -1;
  b->started = b->sent = b->live = 0;
  begin(a, &o);
  memset(forged, 0, sizeof forged);
}
static void leave_hostile(void) {
  a->qp.no_reads = a->cq.held = 0;
  moat_conn_end(a->conn, 1);
  unplug(a);
  nothing_lost();
}
static void breaks(int line, int state) {
  run();
  for (int i = 0; i < 5; i++)
    while (collect(a) >= 0) {}
  equal(line, "the state", moat_conn_state(a->conn), state);
  leave_hostile();
}
#define BREAKS(bytes_, ...) do { meet_hostile(); *(struct header *)forged = (struct header){ __VA_ARGS__ }; \
    CHECK(receive_pages(a, 0, 100000) >= 0); forge(((struct header *)forged)->kind, bytes_); breaks(__LINE__, BROKEN); } while (0)
static void case_malformed(void) {
  struct run *r = (struct run *)(forged + HEADER);
  for (uint32_t n = 0; n < HEADER; n++) BREAKS(n, .kind = M_EAGER);
  BREAKS(HEADER, .kind = 0);
  BREAKS(HEADER, .kind = 4);
  BREAKS(HEADER + 5, .kind = M_EAGER, .len = 6);
  BREAKS(HEADER + 5, .kind = M_EAGER, .len = ~0ul);
  BREAKS(HEADER, .kind = M_EAGER, .consumed = 1);
  BREAKS(HEADER, .kind = M_EAGER, .consumed = ~0u);
  BREAKS(HEADER, .kind = M_CONTROL, .flag = 3);
  BREAKS(HEADER, .kind = M_CONTROL, .count = 1);
  BREAKS(HEADER + 4, .kind = M_CONTROL, .count = 1);  // nothing was sent
  BREAKS(HEADER, .kind = M_PAGES, .len = 1);
  BREAKS(HEADER + 8, .kind = M_PAGES, .len = 0, .count = 1);
  BREAKS(HEADER + 8, .kind = M_PAGES, .len = 5000, .count = 1);  // a run of nothing
  BREAKS(HEADER + 1025, .kind = M_EAGER, .head = 1025);
  BREAKS(HEADER + 8, .kind = M_EAGER, .head = 9);
  BREAKS(HEADER + 8, .kind = M_EAGER, .head = 8, .len = 8);
  BREAKS(HEADER + 8, .kind = M_EAGER, .head = 0xffff, .len = 9);
  BREAKS(HEADER + 8, .kind = M_CONTROL, .head = 8);
  BREAKS(HEADER + 8, .kind = M_PAGES, .head = 8, .len = 1, .count = 1);
  BREAKS(HEADER + 16, .kind = M_PAGES, .head = 9, .len = 1, .count = 1);
  BREAKS(HEADER + 1032 + 8, .kind = M_PAGES, .head = 1025, .len = 1, .count = 1);
  static const struct run RUNS_[] = { { 0, 1 }, { 0, 3 }, { ~0u, 2 }, { 2, ~0u }, { 1024, 2 }, { 1023, 2 }, { ~0u, 1 } };
  for (size_t i = 0; i < sizeof RUNS_ / sizeof *RUNS_; i++) {
    meet_hostile();
    *(struct header *)forged = (struct header){ .kind = M_PAGES, .count = 1, .len = 5000 };
    r[0] = RUNS_[i];
    CHECK(receive_pages(a, 0, 100000) >= 0);
    forge(M_PAGES, HEADER + 8);
    breaks(__LINE__, BROKEN);
  }
  for (int i = 0; i < 7; i++) {  // parts that are no whole
    meet_hostile();
    struct header h = { .kind = M_PAGES, .flag = 1, .count = 1, .len = 3 * page_size, .id = 5 };
    CHECK(receive_pages(a, 0, 100000) >= 0);
    *(struct header *)forged = h;
    r[0] = (struct run){ 0, 1 };
    forge(M_PAGES, HEADER + 8);
    while (collect(a) >= 0) {}
    EQUAL(moat_conn_state(a->conn), OPEN);
    h.flag = 0;
    r[0] = (struct run){ 9, 2 };
    if (i == 0) r[0].count = 1;
    if (i == 1) r[0].count = 3;
    if (i == 2) h.id++;
    if (i == 3) h.off++;
    if (i == 4) h.len--;
    if (i == 5) h = (struct header){ .kind = M_EAGER, .len = 8 };
    if (i == 6) h.head = 8, r[1] = r[0];
    *(struct header *)forged = h;
    forge(h.kind, HEADER + (i == 6 ? 16 : 8));
    breaks(__LINE__, BROKEN);
  }
  // More than it was given credit for.
  meet_hostile();
  for (int i = 0; i <= DATA_SLOTS; i++) {
    *(struct header *)forged = (struct header){ .kind = M_EAGER };
    EQUAL(forge(M_EAGER, HEADER), 1);
  }
  EQUAL(moat_conn_next(a->conn), -1);
  breaks(__LINE__, BROKEN);
  // An announcement without an end, and one that goes round and round.
  meet_hostile();
  for (int i = 0; i < DATA_SLOTS; i++) {
    *(struct header *)forged = (struct header){ .kind = M_PAGES, .flag = 1, .count = 1, .len = 5000 };
    r[0] = (struct run){ 0, 1 };
    EQUAL(forge(M_PAGES, HEADER + 8), 1);
  }
  receive_any(a);
  CHECK(collect(a) < 0);
  leave_hostile();
}

// A peer may let go of what was announced to it; of nothing else, and of that once.
static void case_false_release(void) {
  uint32_t *id = (uint32_t *)(forged + HEADER);
  for (int i = 0; i < 5; i++) {
    meet_hostile();
    a->qp.paused = i != 0;
    int small = send_pages(a, 0, 1000, COW), large = send_pages(a, 0, 9000, COW), in = receive_pages(a, 0, 100);
    a->qp.paused = 0;
    uint32_t ids[] = { (uint32_t)large, (uint32_t)large, (uint32_t)in, 1u << 20, (uint32_t)small };
    if (i == 4) a->qp.paused = 1;  // the device still has it
    *(struct header *)forged = (struct header){ .kind = M_CONTROL, .count = (uint16_t)(i == 1 ? 2 : 1) };
    id[0] = id[1] = ids[i];
    CHECK(forge(M_CONTROL, HEADER + 4 * ((struct header *)forged)->count));
    while (collect(a) >= 0) {}
    EQUAL(moat_conn_state(a->conn), i == 0 ? OPEN : BROKEN);
    a->qp.paused = 0;
    leave_hostile();
  }
  meet_hostile();  // a queued one
  a->qp.paused = 1;
  int op = -1;
  for (int i = 0; i < DATA_SLOTS + 2; i++) op = send_pages(a, 0, 5000, COW);
  EQUAL(op_at(op)->state, 2);
  *(struct header *)forged = (struct header){ .kind = M_CONTROL, .count = 1 };
  id[0] = (uint32_t)op;
  forge(M_CONTROL, HEADER + 4);
  moat_conn_next(a->conn);
  EQUAL(moat_conn_state(a->conn), BROKEN);
  a->qp.paused = 0;
  leave_hostile();
}

static void case_flood(void) {
  meet_hostile();
  int in = receive_pages(a, 0, 100);
  a->qp.flood = 1;
  EQUAL(moat_conn_next(a->conn), -1);
  EQUAL(moat_conn_arm(a->conn), 1);  // nothing will ring for what is there already
  a->qp.flood = 0;
  for (int i = 0; i < 3; i++) EQUAL(moat_conn_next(a->conn), -1);
  EQUAL(moat_conn_arm(a->conn), 0);
  EQUAL(moat_conn_cancel(in), 0);
  EQUAL(collect(a), in);
  EQUAL(moat_conn_state(a->conn), OPEN);
  leave_hostile();
}

static void fuzz(int messages) {
  meet_hostile();
  struct header *h = (struct header *)forged;
  struct run *r = (struct run *)(forged + HEADER);
  uint32_t *id = (uint32_t *)(forged + HEADER), said = 0;
  struct header first = { 0 };
  uint64_t rest = 0;  // pages that the announcement lacks
  for (int i = 0; i < messages; i++) {
    automatic = below(4) != 0;
    if (a->live < 40) {
      switch (below(6)) {
        case 0: send_pages(a, below(4096), below(30000), (int)below(3)); break;
        case 1: send_eager(a, below(EAGER)); break;
        case 2: receive_pages(a, below(4096), below(60000)); break;
        case 3: receive_any(a); break;
        case 4: take(a); break;
        case 5: a->qp.no_reads = !below(4); break;
      }
    }
    for (uint32_t k = 0; k < SLOT; k += 8) *(uint64_t *)(forged + k) = below(4) ? 0 : next_random();
    uint32_t kind = rest ? 1 : below(3), bytes = HEADER;
    said += !below(20);
    *h = (struct header){ (uint8_t)(1 + kind), 0, 0, said, 0, below(3), (uint16_t)(below(4) ? 0 : below(4096)), 0 };
    if (kind < 2 && !rest && !below(3)) h->head = (uint16_t)below(HEAD_MAX + 1);
    r = (struct run *)(forged + HEADER) + (h->head + 7) / 8;
    if (kind == 0) {
      h->len = below(EAGER + 1 - h->head);
      bytes += (uint32_t)h->len + h->head;
    } else if (kind == 1) {
      h->count = (uint16_t)(1 + below(below(4) ? 5 : RUNS - 128));
      uint64_t pages = 0;
      for (int k = 0; k < h->count; k++) {
        r[k].frame = below(1000);
        r[k].count = 1 + below(below(8) ? 3 : 24);
        if (rest && (pages + r[k].count >= rest || k == h->count - 1)) {  // the list ends here
          r[k].count = (uint32_t)(rest - pages);
          h->count = (uint16_t)(k + 1);
          if (rest - pages > 24) r[k].frame = 0;
        }
        pages += r[k].count;
      }
      if (rest) {
        h->len = first.len, h->id = first.id, h->off = first.off;
        rest = 0;
      } else {
        rest = below(5) ? 0 : 1 + below(100);
        h->flag = rest != 0;
        h->len = (pages + rest) * page_size - h->off - below(4096 - h->off);
        first = *h;
      }
      bytes += (h->head + 7) / 8 * 8u + h->count * 8u;
    } else {
      for (int k = 0; k < 200 && h->count < 3; k++)  // often true ones
        if (track[k].kind == SEND && op_at(k)->state == 3 && op_at(k)->d.len > EAGER && !below(2)) id[h->count++] = (uint32_t)k;
      if (!below(30)) id[h->count++] = below(60);
      bytes += h->count * 4u;
    }
    for (uint32_t n = below(15) ? 0 : 1 + below(3); n; n--) switch (below(4)) {  // what makes it no message, or another
        case 0: forged[below(HEADER)] ^= (uint8_t)(1u << below(8)); break;
        case 1: forged[below(HEADER + 16)] = (uint8_t)next_random(); break;
        case 2: bytes = below(8) ? bytes + below(3) * 8 - 8 : below(SLOT + 1); break;
        case 3: *(uint32_t *)(forged + 4 * below(16)) = below(2) ? ~0u : (uint32_t)next_random(); break;
      }
    if (bytes > SLOT) bytes = SLOT;
    if (!forge(h->kind, bytes)) rest = 0;
    for (uint32_t n = below(6); n && collect(a) >= 0; n--) {}
    if (moat_conn_state(a->conn) != OPEN) break;
  }
  automatic = 1;
  leave_hostile();
}
static void case_fuzz(void) {
  for (int i = 0; i < 400; i++) fuzz(60);
}

// ----

#define CASE(name) { #name, case_##name }
static const struct { const char *name; void (*run)(void); } cases[] = {
  CASE(sizes), CASE(headers), CASE(headers_no_frames), CASE(header_chain), CASE(raw_header), CASE(overwritten), CASE(chain), CASE(longest_chain), CASE(mended), CASE(chain_after_eager),
  CASE(credits), CASE(control_flood), CASE(never_receives), CASE(batched), CASE(signalling), CASE(cancelled),
  CASE(cancelled_want), CASE(too_large), CASE(order), CASE(landing), CASE(few_pieces), CASE(staged),
  CASE(abort_while_read), CASE(goodbye_then_flush), CASE(hang_up), CASE(silent_death), CASE(post_fails), CASE(request_fails),
  CASE(lost_flush), CASE(raw), CASE(end_before_it_begins), CASE(handler), CASE(own_thread), CASE(doorbell), CASE(two_threads),
  CASE(random), CASE(random_failures), CASE(malformed), CASE(false_release), CASE(flood), CASE(fuzz),
};

int main(int argc, char **argv) {
  CHECK(argc == 3 || argc == 4);
  alarm(30);
  if (argc == 4) random_state = (uint64_t)atol(argv[3]) * 0x9e3779b97f4a7c15;
  page_size = (size_t)sysconf(_SC_PAGESIZE);
  load(argv[1]);
  probe();
  sanitized = __asan_poison_memory_region != NULL;
  use_small_stack();
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    if (strcmp(argv[2], cases[i].name) != 0) continue;
    install();
    cases[i].run();
    printf("ok\n");
    return 0;
  }
  fail(__LINE__, "no such case");
}
