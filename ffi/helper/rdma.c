// The transport over verbs (rdma.h): completions, plain SEND and RECV, the end, what JavaScript calls.
#include "conn.h"

// ---- completions

// Everything up to entry `upto` of the send queue is done, with a status for the last.
static void on_sent(struct conn *c, u64 upto, s32 status) {
  if (upto - c->sq_done >= SQ_DEPTH) return;
  while (c->sq_done <= upto) {
    struct sent *s = &c->sent[c->sq_done % SQ_DEPTH];
    // Only these ask for no completion: had they failed, there would have been one.
    int ok = !status || (s->kind == W_SLOT && c->sq_done < upto);
    if (s->slot != NO_SLOT) slot_give(c, s->slot);
    if (s->kind == W_OP) {
      __atomic_and_fetch(&G.op[s->op].flags, (u16)~OP_AT_DEVICE, __ATOMIC_RELAXED);
      if (ok) {
        c->inflight--;
        complete(c, s->op, 0);
      }
    }
    if (s->kind == W_READ) {
      struct op *o = &G.op[s->op];
      c->reads--;
      o->reads--;
      if (!ok) o->flags |= OP_BROKEN;
      if (!o->reads && (o->flags & OP_PULLED) && !(o->flags & OP_BROKEN)) {
        c->pulls--;
        c->release_id[c->nreleases++] = o->seq;
        if (o->flags & OP_AHEAD)
          op_finish(s->op, 0);  // waits for its receive
        else
          complete(c, s->op, 0);
      }
    }
    if (s->kind == W_CONTROL) {
      c->control = 0;
      if (c->bye_sent) c->bye_done = 1;
    }
    if (s->kind == W_BEAT) c->beating = 0;
    c->sq_done++;
  }
}

static void on_raw(struct conn *c, const struct ibv_wc *w);

static int reap(struct conn *c, s32 me) {
  struct ibv_wc wc[8];
  int n = 0, all = 0;
  // A peer that sends without end gets no more than its turn.
  while (all < (int)CQ_DEPTH && (n = c->rcq->context->poll_cq(c->rcq, 8, wc)) > 0) {
    for (int k = 0; k < n; k++) {
      struct ibv_wc *w = &wc[k];
      int bad = w->status != WC_SUCCESS;
      if (w->wr_id & RECEIVE) {
        c->posted--;
        if (bad) note_error(c, w, WC_RECV);
        if (c->raw)
          on_raw(c, w);
        else if (!bad && on_message(c, me, (u32)w->wr_id & 0xff, w->byte_len))
          rdma_die(c, CONN_BROKEN);
      } else {
        if (bad) note_error(c, w, c->sent[w->wr_id % SQ_DEPTH].kind);
        on_sent(c, w->wr_id, bad ? -E_IO : 0);
      }
      if (bad) rdma_die(c, CONN_LOST);
    }
    all += n;
  }
  if (all) c->heard = now_ns();
  c->behind = n > 0;
  return all;
}

// ---- plain SEND and RECV

// Posts the receives that wait, straight into their pages.
static void post_raw(struct conn *c) {
  while (c->rq.head >= 0 && !c->dead) {
    s32 i = c->rq.head;
    struct op *o = &G.op[i];
    if (o->kind == OP_TAKE) {
      c->wants = 1;
      return;
    }
    if (c->posted >= RAW_RECEIVES) return;
    struct ibv_sge sge[MAX_SGE];
    struct ibv_recv_wr wr = { RECEIVE | (u64)i, 0, sge, 0 }, *bad;
    u64 at = 0;
    for (u8 *to; at < o->len && wr.num_sge < (s32)c->max_sge; wr.num_sge++) {
      u64 n = place_of(&G.pool[o->pool], o, at, o->len - at, &to);
      sge[wr.num_sge] = (struct ibv_sge){ (u64)to, (u32)n, c->pool_lkey };
      at += n;
    }
    pop(&c->rq);
    if (at < o->len) {  // in more pieces than the device takes
      if (o->flags & OP_AHEAD) complete(c, (s32)o->seq, -E_NOBUFS);
      complete(c, i, -E_NOBUFS);
      continue;
    }
    store_rel(&o->state, OP_POSTED);
    c->pulls++;
    if (c->qp->context->post_recv(c->qp, &wr, &bad))
      rdma_die(c, CONN_LOST);
    else
      c->posted++;
  }
}
static void on_raw(struct conn *c, const struct ibv_wc *w) {
  s32 i = (s32)(w->wr_id & 0x7fffffff);
  struct op *o = &G.op[i];
  if (w->status != WC_SUCCESS) return;  // ends with the connection
  o->got = w->byte_len;
  c->pulls--;
  if (!(o->flags & OP_AHEAD)) {
    complete(c, i, 0);
    return;
  }
  struct op *take = &G.op[o->seq];
  op_finish(i, 0);
  take->d.kind = D_LANDED;
  take->len = take->got = o->got;
  complete(c, (s32)o->seq, 0);
  take->seq = (u32)i;
}

// ---- moving on

// Ends the sends and receives that are under way, but for those the device still has.
static void end_all(struct conn *c, s32 me, s32 status) {
  fail_queue(c, &c->sq, status);
  for (u32 i = 0; (c->inflight || c->pulls) && i < G.op_high; i++) {
    struct op *o = &G.op[i];
    if (o->conn != me || load_acq(&o->state) != OP_POSTED) continue;
    if (o->kind == OP_OUT && (c->drained || !(o->flags & OP_AT_DEVICE))) {
      c->inflight--;
      complete(c, (s32)i, status);
    } else if (o->kind == OP_IN && c->drained) {
      c->pulls--;
      if (c->raw && (o->flags & OP_AHEAD)) complete(c, (s32)o->seq, status);
      if (!c->raw && (o->flags & OP_AHEAD)) {
        unlink_op(&c->ahead, (s32)i);
        c->nahead--;
        c->arr_head = c->arr_tail;  // what came behind it would be taken for what comes next
      }
      complete(c, (s32)i, status);
    }
  }
  if (c->drained) c->pulling = -1;
}

// Gives JavaScript back what was read ahead and nobody will ask for.
static void drop_ahead(struct conn *c) {
  for (s32 r = c->ahead.head, next; r >= 0; r = next) {
    next = (s32)G.op[r].next_free;
    if (load_acq(&G.op[r].state) != OP_DONE) continue;
    unlink_op(&c->ahead, r);
    c->nahead--;
    push(&c->cq, r);
  }
}

// The process is ending, and the libraries may be gone.
static u32 leaving;

static int rdma_poll(struct conn *c, s32 me) {
  if (!c->begun || load_rlx(&leaving)) return 0;
  if (!c->gone) reap(c, me);
  if (c->dead && !c->drained && (c->gone || (c->sq_done == c->sq_head && !c->posted))) c->drained = 1;
  if (c->their_bye && c->state == CONN_OPEN)
    c->state = c->their_bye == BYE_FINISHED ? CONN_ENDED : CONN_PEER_ABORTED;
  if (load_acq(&c->hup)) rdma_die(c, CONN_LOST);
  if (c->state == CONN_ABORTED && c->bye == BYE_ABORTED && !c->dead &&
      (c->raw || c->bye_done || now_ns() - c->ended > FAREWELL_NS))
    rdma_die(c, CONN_ABORTED);
  if (c->state == CONN_PEER_ABORTED || c->state == CONN_BROKEN) rdma_die(c, c->state);

  if (c->pulling >= 0) post_reads(c);
  c->wants = 0;
  if (c->raw)
    post_raw(c);
  else if (!c->ended)
    receive_posted_rdma(c);
  if (c->state == CONN_OPEN && !c->dead) {
    rdma_flush(c);
  } else {
    send_control(c);
    s32 status = state_error(c->state);
    // Who said goodbye reads nothing of ours any more; else the device has to have let go.
    if (c->state == CONN_ENDED || c->drained) end_all(c, me, status);
    // What arrived before the end can still be received, unless it would have to be read from the peer.
    if (c->ended) drop_ahead(c);
    if (c->state != CONN_OPEN && c->rq.head >= 0 && c->pulling < 0 && c->ahead.head < 0 &&
        (c->arr_head == c->arr_tail || (c->dead && arrived_head(c)->kind == M_PAGES)))
      fail_queue(c, &c->rq, status);
  }
  return c->cq.head >= 0 || c->wants;
}

static void rdma_check(struct conn *c, s32 me) {
  (void)me;
  if (!c->begun || load_rlx(&leaving) || c->raw || c->dead || c->beating || c->state != CONN_OPEN) return;
  if (!c->inflight && c->sq.head < 0 && c->rq.head < 0 && !c->pulls) return;
  if (now_ns() - c->heard > BEAT_NS) send_beat(c);
}

// Asks for an event at the next completion. 1 if there is work already.
static int rdma_arm(struct conn *c, s32 me) {
  if (!c->begun || load_rlx(&leaving)) return 0;
  if (!c->gone && !c->armed) {
    c->armed = 1;
    c->rcq->context->req_notify_cq(c->rcq, 0);
  }
  if (rdma_poll(c, me) || c->behind) return 1;
  return c->dead && !c->drained && busy(c);  // for at most a second, then JavaScript ends it
}

static void rdma_end(struct conn *c, s32 abort) {
  c->bye = abort ? BYE_ABORTED : BYE_FINISHED;
  c->ended = now_ns();
  send_control(c);
}

// The doorbell's thread was woken by the completion channel: moves the connection on, and says whether
// JavaScript has to look too.
static int rdma_event(struct conn *c, s32 me) {
  struct ibv_cq *cq;
  void *context;
  if (c->gone || load_rlx(&leaving)) return 1;
  while (!c->get_cq_event(c->channel, &cq, &context)) c->events++;
  c->armed = 0;
  return rdma_arm(c, me) || c->state != CONN_OPEN;
}
// Now and then, for connections whose JavaScript sleeps.
static int rdma_tick(struct conn *c, s32 me) {
  if (c->state == CONN_OPEN) rdma_check(c, me);
  return rdma_arm(c, me) || (c->state != CONN_OPEN && busy(c));
}

// ---- what JavaScript calls

// Registers a connection whose queue pair can take receives but is not connected yet. cfg is an array of
// u64, in the order of lib/rdma/native.ts.
EXPORT s32 moat_rdma_add(s32 pool, s32 fd, const u64 *cfg) {
  if (!pool_of(pool)) return -E_INVAL;
  struct conn *c;
  s32 i = conn_new(pool, CONN_RDMA, fd, 0, &c);
  if (i < 0) return i;
  c->qp = (struct ibv_qp *)cfg[0];
  c->rcq = (struct ibv_cq *)cfg[1];
  c->modify_qp = (int (*)(struct ibv_qp *, void *, int))cfg[2];
  c->get_cq_event = (int (*)(void *, struct ibv_cq **, void **))cfg[3];
  c->channel = (void *)cfg[4];
  c->slots = cfg[5];
  c->slot_lkey = (u32)cfg[6];
  c->pool_lkey = (u32)cfg[7];
  c->max_inline = (u32)cfg[8];
  c->max_sge = cfg[9] < MAX_SGE ? (u32)cfg[9] : MAX_SGE;
  c->max_reads = (u32)cfg[10];
  c->read_bytes = (u32)cfg[11];
  c->raw = (u32)cfg[12];
  c->pulling = -1;
  c->ahead = (struct queue){ -1, -1 };
  c->send_free = (1ul << SEND_SLOTS) - 1;
  c->nsend_free = SEND_SLOTS;
  for (u32 k = 0; k < RECV_SLOTS && !c->raw; k++) post_recv_slot(c, k);
  int bad = c->dead;
  conn_begin(c);
  if (bad) store_rel(&c->live, 0);
  return bad ? -E_NOMEM : i;
}
// It is connected: this is the peer's pool.
EXPORT s32 moat_rdma_begin(s32 i, f64 remote_base, u32 remote_frames, u32 rkey, s32 local_tid) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  c->remote_base = (u64)remote_base;
  c->remote_frames = remote_frames;
  c->rkey = rkey;
  c->local_tid = local_tid;
  c->heard = now_ns();
  c->begun = 1;
  unlock(&c->lock);
  return 0;
}
// The connection manager says that the peer has gone.
EXPORT s32 moat_rdma_hangup(s32 i) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  if (c->begun && !c->gone) reap(c, i);  // its goodbye may be here
  if (c->their_bye == BYE_FINISHED && c->state == CONN_OPEN) c->state = CONN_ENDED;
  store_rel(&c->hup, 1);
  rdma_poll(c, i);
  unlock(&c->lock);
  return 0;
}
// Is it a receive that waits for a place, and not the next that may?
static int needed(struct conn *c) {
  return c->rq.head >= 0 && G.op[c->rq.head].kind == OP_TAKE && c->ahead.head < 0;
}
static f64 rdma_wants(struct conn *c) {
  if (!c->wants || c->raw) return c->wants;
  if (c->arr_head == c->arr_tail) return 0;
  f64 n = (f64)arrived_head(c)->len;
  return needed(c) ? n : -n;
}
static s32 rdma_land(struct conn *c, s32 me, s32 op) {
  s32 r = -E_AGAIN, waits = needed(c);
  if (c->wants && op < 0) {
    if (waits)
      complete(c, pop(&c->rq), -E_NOBUFS);
    else
      c->no_room = 1;
    r = 0;
  } else if (c->wants && c->raw && waits) {
    G.op[op].conn = me;
    G.op[op].flags |= OP_AHEAD;
    G.op[op].seq = (u32)pop(&c->rq);
    store_rel(&G.op[op].state, OP_QUEUED);
    push_front(&c->rq, op);
    r = 0;
  } else if (c->wants && !c->raw && (waits || c->rq.head < 0 || c->ahead.head >= 0) && can_pull(c) &&
             arrived_head(c)->len <= G.op[op].len) {
    G.op[op].conn = me;
    r = pull(c, op);
    if (!r) {
      G.op[op].flags |= OP_AHEAD;
      push(&c->ahead, op);
      c->nahead++;
    } else {
      G.op[op].conn = -1;
      r = -E_AGAIN;
    }
  }
  c->wants = 0;
  return r;
}

// What is known of a connection's end.
enum { R_BYE_DONE, R_DEAD, R_STUCK, R_EVENTS, R_ERROR, R_HAS_ERROR };
EXPORT f64 moat_rdma_query(s32 i, s32 what) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  switch (what) {
    case R_BYE_DONE: return c->raw || c->bye_done || c->dead;
    case R_DEAD: return c->dead;
    case R_STUCK: return c->dead && !c->drained && now_ns() - c->dead_since > 1000000000ul;
    case R_EVENTS: return c->events;
    case R_ERROR: return (f64)(u64)&c->error;
    case R_HAS_ERROR: return c->has_error;
  }
  return -E_INVAL;
}
// Brings the queue pair to error, so that the device gives everything back.
EXPORT s32 moat_rdma_kill(s32 i) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  c->begun = 1;
  rdma_die(c, CONN_ABORTED);
  rdma_poll(c, i);
  unlock(&c->lock);
  return 0;
}
// The process is about to end: librdmacm's destructor closes the devices, and the doorbell's thread shall not
// come across that.
EXPORT s32 moat_rdma_leave(void) {
  store_rel(&leaving, 1);
  return 0;
}
// JavaScript has destroyed the queue pair: nothing is the device's any more.
EXPORT s32 moat_rdma_gone(s32 i) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  c->begun = c->dead = c->gone = 1;
  if (c->state == CONN_OPEN) c->state = CONN_LOST;
  rdma_poll(c, i);
  unlock(&c->lock);
  return 0;
}

static u32 rdma_held(struct conn *c) { return c->pulls; }
static void rdma_hang_up(struct conn *c) {
  if (!c->gone) rdma_die(c, CONN_LOST);
}
static const struct transport rdma_transport = {
  .poll = rdma_poll, .check = rdma_check, .eager = rdma_eager, .flush = rdma_flush, .take = rdma_take,
  .arm = rdma_arm, .end = rdma_end, .hang_up = rdma_hang_up, .collect = rdma_collect, .held = rdma_held,
  .event = rdma_event, .tick = rdma_tick, .wants = rdma_wants, .land = rdma_land, .transit_ns = RDMA_TRANSIT_NS,
};
