// What all transports share: the table of connections, their queues, and what JavaScript calls. Every
// function here may run in the fault handler of any thread. Locks: a connection's before a pool's.
#include "conn.h"

static struct conn *conns[MAX_CONNS];
static u32 conns_lock, conns_high;

static void uring_reap_all(void);  // uring.c
static void bell_kick(s32 bell);    // bell.c
static void bell_tell(s32 bell);

static inline struct conn *conn_at(s32 i) {
  struct conn *c = i >= 0 && (u32)i < MAX_CONNS ? load_acq(&conns[i]) : 0;
  return c && load_acq(&c->live) ? c : 0;
}

// Takes a place in the table. *out is locked and not yet live. Its number, or -errno.
static s32 conn_new(s32 pool, u32 kind, s32 fd, s32 local_tid, struct conn **out) {
  lock(&conns_lock);
  s32 i = 0;
  while (i < MAX_CONNS && conns[i] && load_acq(&conns[i]->live)) i++;
  struct conn *c = i == MAX_CONNS ? 0 : conns[i] ? conns[i] : map_anonymous(sizeof *c);
  int used = i < MAX_CONNS && conns[i];
  if (!c) {
    unlock(&conns_lock);
    return i == MAX_CONNS ? -E_NFILE : -E_NOMEM;
  }
  lock(&c->lock);
  if (used) memset((u8 *)c + 8, 0, sizeof *c - 8);  // all but live and lock
  c->kind = kind;
  c->pool = pool;
  c->fd = fd;
  c->bell = -1;
  c->local_tid = local_tid;
  c->head_parked = -1;
  c->sq = c->rq = c->cq = (struct queue){ -1, -1 };
  store_rel(&conns[i], c);
  if ((u32)i == conns_high) store_rel(&conns_high, (u32)i + 1);
  *out = c;
  return i;
}
// Opens what conn_new() made to the handlers.
static void conn_begin(struct conn *c) {
  store_rel(&c->live, 1);
  unlock(&c->lock);
  unlock(&conns_lock);
}

// ---- queues of operations

static void push(struct queue *q, s32 i) {
  G.op[i].next_free = NONE;
  if (q->tail < 0)
    q->head = i;
  else
    G.op[q->tail].next_free = (u32)i;
  q->tail = i;
}
static void push_front(struct queue *q, s32 i) {
  G.op[i].next_free = q->head < 0 ? NONE : (u32)q->head;
  q->head = i;
  if (q->tail < 0) q->tail = i;
}
static s32 pop(struct queue *q) {
  s32 i = q->head;
  if (i >= 0) {
    q->head = (s32)G.op[i].next_free;
    if (q->head < 0) q->tail = -1;
  }
  return i;
}
static int unlink_op(struct queue *q, s32 i) {
  for (s32 k = q->head, prev = -1; k >= 0; prev = k, k = (s32)G.op[k].next_free)
    if (k == i) {
      if (prev < 0)
        q->head = (s32)G.op[i].next_free;
      else
        G.op[prev].next_free = G.op[i].next_free;
      if (q->tail == i) q->tail = prev;
      return 1;
    }
  return 0;
}
static void complete(struct conn *c, s32 i, s32 status) {
  op_finish(i, status);
  push(&c->cq, i);
}
static void fail_queue(struct conn *c, struct queue *q, s32 status) {
  for (s32 i; (i = pop(q)) >= 0;) {
    if (G.op[i].flags & OP_AHEAD) complete(c, (s32)G.op[i].seq, status);  // the receive it stands for
    complete(c, i, status);
  }
}
// Ends the sends that are under way.
static void fail_inflight(struct conn *c, s32 me, s32 status) {
  for (u32 i = 0; c->inflight && i < G.op_high; i++) {
    struct op *o = &G.op[i];
    if (o->conn == me && o->kind == OP_OUT && load_acq(&o->state) == OP_POSTED) {
      c->inflight--;
      complete(c, (s32)i, status);
    }
  }
}
static s32 state_error(u32 state) {
  switch (state) {
    case CONN_OPEN: return 0;
    case CONN_ENDED: return -E_PIPE;
    case CONN_LOST: return -E_CONNRESET;
    case CONN_BROKEN: return -E_PROTO;
    case CONN_PEER_ABORTED: return -E_OWNERDEAD;
    default: return -E_CANCELED;
  }
}

// ---- for handlers

// Moves a connection on. Called with its lock held. Returns how many operations ended.
static int poll_locked(struct conn *c, s32 me) { return transport_of(c)->poll(c, me); }

// For a handler that waits: everything this process can bring forward, on any thread.
static void progress_all(void) {
  uring_reap_all();
  for (u32 i = 0, n = load_acq(&conns_high); i < n; i++) {
    struct conn *c = conn_at((s32)i);
    if (!c || !trylock(&c->lock)) continue;
    if (c->live) {
      if (c->checks++ % 64 == 0) transport_of(c)->check(c, (s32)i);
      poll_locked(c, (s32)i);
    }
    unlock(&c->lock);
  }
}

static int only_self_can(s32 i) {
  struct conn *c = conn_at(i);
  if (!c || !c->local_tid || c->local_tid != thread_id() || !trylock(&c->lock)) return 0;
  int r = !c->carrying;  // else the doorbell's thread can, too
  unlock(&c->lock);
  return r;
}
// Nanoseconds after which a message that only this thread could still send is not to be hoped for: it may
// be on the wire.
static u64 in_transit(s32 i) {
  struct conn *c = conn_at(i);
  return c ? transport_of(c)->transit_ns : 0;
}

// Of a pool's page, or (NONE) of any: by the time the lock is held the number may be another receive's.
static void revoke_receive(s32 i, s32 pool, u32 page, s32 status) {
  struct op *o = &G.op[i];
  struct conn *c = conn_at(o->conn);
  if (!c) {
    __atomic_or_fetch(&o->flags, OP_VIOLATED, __ATOMIC_RELAXED);
    return;
  }
  lock(&c->lock);
  // What is being brought in is there in a moment; given up now, the message would be lost.
  while (page != NONE && c->carrying == (u32)i + 1) {
    unlock(&c->lock);
    sys0(NR_sched_yield);
    lock(&c->lock);
  }
  int same = page == NONE || (o->pool == pool && page - o->page < o->pages);
  if (same && unlink_op(&c->rq, i)) {
    complete(c, i, status);
    bell_ring(c->bell);  // this may be another thread than the one that waits for the receive
  } else if (page != NONE && o->pool == pool && page - o->page < o->pages && load_acq(&o->state) != OP_DONE) {
    __atomic_or_fetch(&o->flags, OP_VIOLATED, __ATOMIC_RELAXED);  // the device is writing to it
  }
  unlock(&c->lock);
}

static struct op *message_of(struct conn *c, s32 i) {
  if (i < 0) return &c->taken;
  return (u32)i < G.op_high && G.op[i].state == OP_DONE && G.op[i].kind == OP_TAKE ? &G.op[i] : 0;
}

// ---- what JavaScript calls

// Sends a small message by copying it. -EAGAIN: no room now, or others queue before it.
EXPORT s32 moat_conn_eager(s32 i, const u8 *src, u32 len) {
  struct conn *c = conn_at(i);
  return c ? transport_of(c)->eager(c, i, src, len) : -E_INVAL;
}

// Hands a send to the transport. From here on it ends by itself; its frames are held until then.
EXPORT s32 moat_conn_send(s32 i, s32 op) {
  struct conn *c = conn_at(i);
  if (!c || op < 0 || (u32)op >= G.op_high || G.op[op].state != OP_HELD) return -E_INVAL;
  lock(&c->lock);
  s32 r = state_error(c->state);
  G.op[op].conn = i;
  if (r) {
    complete(c, op, r);
  } else {
    store_rel(&G.op[op].state, OP_QUEUED);
    push(&c->sq, op);
    transport_of(c)->flush(c);
  }
  unlock(&c->lock);
  return 0;
}

// Copying a large message takes time that the program can use otherwise.
static int left_to_bell(const struct conn *c, const struct op *o) {
  u64 least = transport_of(c)->background;
  return least && o->kind == OP_IN && o->len >= least && c->bell >= 0;
}

EXPORT s32 moat_take_new(s32 pool) { return pool_of(pool) ? op_new(OP_TAKE, pool) : -E_INVAL; }

// Hands a receive to the transport. It may have ended when this returns; 1 if the doorbell's thread sees to it.
EXPORT s32 moat_conn_recv(s32 i, s32 op) {
  struct conn *c = conn_at(i);
  if (!c || op < 0 || (u32)op >= G.op_high || G.op[op].state != OP_HELD) return -E_INVAL;
  s32 left = 0;
  uring_reap(c->pool);
  lock(&c->lock);
  G.op[op].conn = i;
  store_rel(&G.op[op].state, OP_QUEUED);
  push(&c->rq, op);
  if (c->state == CONN_BROKEN || c->state == CONN_ABORTED) {
    fail_queue(c, &c->rq, state_error(c->state));
  } else if (left_to_bell(c, &G.op[op])) {
    left = 1;
    if (!c->carrying) {  // else it looks for more anyway when it has done that one
      c->kicked = 1;
      bell_kick(c->bell);
    }
  } else {
    poll_locked(c, i);
    // The program may compute until it touches the buffer: the doorbell's thread shall move it on meanwhile.
    const struct transport *t = transport_of(c);
    if (t->event && !t->background && G.op[op].kind == OP_IN && G.op[op].state != OP_DONE) t->arm(c, i);
  }
  unlock(&c->lock);
  return left;
}

// Takes a message that is there now, or comes within `spin` ns, if nobody waits for it before. 1, 0 or -errno.
EXPORT s32 moat_conn_take(s32 i, f64 spin) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  u64 until = 0;
  for (u32 turn = 1;; turn++) {
    uring_reap(c->pool);
    lock(&c->lock);
    s32 r = 0;
    if (c->state == CONN_BROKEN || c->state == CONN_ABORTED)
      r = state_error(c->state);
    else if (c->rq.head < 0)
      r = transport_of(c)->take(c, i);
    unlock(&c->lock);
    if (r || spin <= 0) return r;
    if (turn % 32 == 0) {
      u64 now = now_ns();
      if (!until) until = now + (u64)spin;
      if (now >= until) return 0;
    }
    cpu_relax();
  }
}

// Moves the connection on and returns the next operation that ended, or -1.
EXPORT s32 moat_conn_next(s32 i) {
  struct conn *c = conn_at(i);
  if (!c) return -1;
  uring_reap(c->pool);
  lock(&c->lock);
  c->asleep = 0;
  if (c->cq.head < 0) poll_locked(c, i);
  s32 op = pop(&c->cq);
  if (op >= 0) c->done = G.op[op];
  unlock(&c->lock);
  return op;
}
EXPORT s32 moat_conn_state(s32 i) {
  struct conn *c = conn_at(i);
  return c ? (s32)c->state : -E_INVAL;
}

static u32 busy(struct conn *c) {
  u32 n = c->inflight + (c->carrying != 0) + load_rlx(&c->in_ring) + (c->sq.head >= 0) + (c->rq.head >= 0) + (c->cq.head >= 0);
  return transport_of(c)->held ? n + transport_of(c)->held(c) : n;
}
// Operations under way: sends queued or unreleased, receives waiting, results not collected.
EXPORT s32 moat_conn_busy(s32 i) {
  struct conn *c = conn_at(i);
  return c ? (s32)busy(c) : 0;
}

// Takes a receive back: it ends with -ECANCELED unless its message was there first. The guard opens.
EXPORT s32 moat_conn_cancel(s32 op) {
  if (op < 0 || (u32)op >= G.op_high || G.op[op].conn < 0) return -E_INVAL;
  revoke_receive(op, 0, NONE, -E_CANCELED);
  return 0;
}

// Goes to sleep: the bell will ring when something happens. 1 if something already has.
EXPORT s32 moat_conn_arm(s32 i) {
  struct conn *c = conn_at(i);
  if (!c) return 0;
  uring_reap(c->pool);
  lock(&c->lock);
  int ended = transport_of(c)->arm(c, i);
  int work = ended || c->cq.head >= 0;
  c->asleep = !work;
  unlock(&c->lock);
  return work;
}

// Says goodbye: finished (everything has been drained) or aborted. Receives and sends that have not begun
// end; what the peer still reads stays guarded until it lets go or goes away.
EXPORT s32 moat_conn_end(s32 i, s32 abort) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  transport_of(c)->end(c, abort);
  if (c->state == CONN_OPEN) c->state = CONN_ABORTED;
  fail_queue(c, &c->sq, -E_CANCELED);
  fail_queue(c, &c->rq, -E_CANCELED);
  poll_locked(c, i);
  unlock(&c->lock);
  return 0;
}

// Forgets a connection. JavaScript gives back its memory, rings and queue pairs afterwards. Everything still
// in flight must have ended: -EBUSY if not.
EXPORT s32 moat_conn_remove(s32 i) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  u32 n = busy(c);
  if (!n) {
    store_rel(&c->live, 0);
    if (transport_of(c)->remove) transport_of(c)->remove(c);
  }
  unlock(&c->lock);
  return n ? -E_BUSY : 0;
}

// Copies a message that does not lie in pages of this side's out. 0, or -EPROTO.
EXPORT s32 moat_msg_copy(s32 ci, s32 i, u8 *to) {
  struct conn *c = conn_at(ci);
  struct op *o = c ? message_of(c, i) : 0;
  return o ? transport_of(c)->collect(c, ci, i, o, to) : -E_INVAL;
}
// The bytes of the announced message for which JavaScript has to find a place; less than 0 if nobody waits for
// it yet; 0 if there is none. 1 if the size is not known.
EXPORT f64 moat_conn_wants(s32 i) {
  struct conn *c = conn_at(i);
  if (!c || !transport_of(c)->wants) return 0;
  lock(&c->lock);
  f64 n = transport_of(c)->wants(c);
  unlock(&c->lock);
  return n;
}
// Gives that message a place: a receive of our own, which comes back by moat_conn_next() unless it is named in
// the `seq` of a message. -1: there is none; the receive that waits fails with -ENOBUFS. -EAGAIN: not wanted
// any more.
EXPORT s32 moat_conn_land(s32 i, s32 op) {
  struct conn *c = conn_at(i);
  if (!c || !transport_of(c)->land) return -E_INVAL;
  lock(&c->lock);
  s32 r = transport_of(c)->land(c, i, op);
  poll_locked(c, i);
  unlock(&c->lock);
  return r;
}

// Where JavaScript reads what take() and next() hand over: two operations, one behind the other.
EXPORT f64 moat_conn_report(s32 i) {
  struct conn *c = conn_at(i);
  return c ? (f64)(u64)&c->taken : 0;
}
EXPORT f64 moat_op_address(s32 i) { return i >= 0 && (u32)i < G.op_high ? (f64)(u64)&G.op[i] : 0; }
EXPORT s32 moat_thread_id(void) { return thread_id(); }
