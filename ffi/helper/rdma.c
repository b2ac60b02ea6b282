// The transport over verbs (rdma.h). Every function here may run in the fault handler of any thread, or in
// the doorbell's: it posts and polls through the context's table and calls nothing that allocates.
#include "conn.h"

static inline u64 recv_slot(struct conn *c, u32 i) { return c->slots + (u64)i * SLOT_BYTES; }
static inline u64 send_slot(struct conn *c, u32 i) { return c->slots + (u64)(RECV_SLOTS + i) * SLOT_BYTES; }

// ---- the end of a connection

// Brings the queue pair to error: from here on the device takes nothing up, and gives back what it has.
static void rdma_die(struct conn *c, u32 state) {
  // A goodbye that came before tells more than how it ended.
  if (c->state == CONN_OPEN && c->their_bye) state = c->their_bye == BYE_FINISHED ? CONN_ENDED : CONN_PEER_ABORTED;
  if (c->state == CONN_OPEN) c->state = state;
  if (c->dead) return;
  u64 attr[24] = { 6 /* IBV_QPS_ERR */ };
  c->dead = 1;
  c->dead_since = now_ns();
  c->modify_qp(c->qp, attr, 1 /* IBV_QP_STATE */);
  // What was done without asking for a completion never gives one: a last request, flushed behind all others,
  // says that the send queue is empty. There is always room for it.
  struct ibv_send_wr wr = { 0 }, *bad;
  wr.opcode = WR_SEND;
  wr.send_flags = SEND_SIGNALED;
  wr.wr_id = c->sq_head;
  c->sent[c->sq_head % SQ_DEPTH] = (struct sent){ W_DRAIN, NO_SLOT, 0, -1 };
  if (!c->qp->context->post_send(c->qp, &wr, &bad)) c->sq_head++;
}

// The first completion that failed explains all that follow.
static void note_error(struct conn *c, const struct ibv_wc *wc, u32 kind) {
  if (c->has_error || (c->dead && wc->status == WC_WR_FLUSH_ERR)) return;
  c->error = *wc;
  c->error.opcode = kind;
  c->has_error = 1;
}

// ---- posting

// Posts one request. `signal` asks for its completion; without one it is done when a later one is.
static int post(struct conn *c, struct ibv_send_wr *wr, u8 kind, u8 slot, s32 op, int signal) {
  struct ibv_send_wr *bad;
  u64 i = c->sq_head;
  if (c->dead) return -1;
  c->sent[i % SQ_DEPTH] = (struct sent){ kind, slot, 0, op };
  wr->wr_id = i;
  if (signal) wr->send_flags |= SEND_SIGNALED;
  if (c->qp->context->post_send(c->qp, wr, &bad)) {
    rdma_die(c, CONN_LOST);
    return -1;
  }
  c->sq_head++;
  return 0;
}
static inline u32 sq_space(struct conn *c) { return SQ_DEPTH - 1 - (u32)(c->sq_head - c->sq_done); }

static u8 slot_take(struct conn *c, u32 leave) {
  if (c->nsend_free <= leave) return NO_SLOT;
  u8 s = (u8)__builtin_ctzl(c->send_free);
  c->send_free &= ~(1ul << s);
  c->nsend_free--;
  return s;
}
static void slot_give(struct conn *c, u8 s) {
  c->send_free |= 1ul << s;
  c->nsend_free++;
}

// Sends a slot, of which `len` bytes are the message, and behind it what the sges say.
static int post_slot(struct conn *c, u8 slot, u32 len, u8 kind, s32 op, const struct ibv_sge *more, u32 nmore) {
  struct ibv_sge sge[MAX_SGE];
  struct ibv_send_wr wr = { 0 };
  sge[0] = (struct ibv_sge){ send_slot(c, slot), len, c->slot_lkey };
  for (u32 i = 0; i < nmore; i++) sge[1 + i] = more[i];
  wr.sg_list = sge;
  wr.num_sge = (s32)(1 + nmore);
  wr.opcode = WR_SEND;
  if (!nmore && len <= c->max_inline) wr.send_flags = SEND_INLINE;
  int signal = kind != W_SLOT || (c->sq_head & 7) == 7 || c->nsend_free < 12;
  return post(c, &wr, kind, slot, op, signal);
}

static struct header *head_of(struct conn *c, u8 slot, u8 kind) {
  struct header *h = (struct header *)send_slot(c, slot);
  *h = (struct header){ kind, 0, 0, c->consumed, 0, 0, 0 };
  c->told = c->consumed;
  return h;
}

static int post_recv_slot(struct conn *c, u32 slot) {
  struct ibv_sge sge = { recv_slot(c, slot), SLOT_BYTES, c->slot_lkey };
  struct ibv_recv_wr wr = { RECEIVE | slot, 0, &sge, 1 }, *bad;
  if (c->dead) return 0;
  if (c->qp->context->post_recv(c->qp, &wr, &bad)) {
    rdma_die(c, CONN_LOST);
    return -1;
  }
  c->posted++;
  return 0;
}
// The slot of a data message is free again, and the peer may send another.
static void consume(struct conn *c, u32 slot) {
  c->consumed++;
  post_recv_slot(c, slot);
}

// Releases, credits, goodbye: at most one message of them at a time, so they gather while one is under way.
static void send_control(struct conn *c) {
  int due = c->nreleases || c->consumed - c->told >= DATA_SLOTS / 3 || (c->bye && !c->bye_sent);
  if (c->raw || c->dead || c->control || !due || !sq_space(c)) return;
  u8 slot = slot_take(c, 0);
  if (slot == NO_SLOT) return;
  struct header *h = head_of(c, slot, M_CONTROL);
  h->count = (u16)c->nreleases;
  memcpy(h + 1, c->release_id, c->nreleases * 4);
  u32 len = (u32)sizeof *h + c->nreleases * 4;
  c->nreleases = 0;
  if (c->bye && !c->bye_sent) {
    h->flag = (u8)c->bye;
    c->bye_sent = 1;
  }
  c->control = 1;
  post_slot(c, slot, len, W_CONTROL, -1, 0, 0);
}

// Asks the peer's device for a sign of life: a read of its first bytes. Its program has no part in that.
static void send_beat(struct conn *c) {
  struct ibv_sge sge = { c->slots + (RECV_SLOTS + SEND_SLOTS) * SLOT_BYTES, 8, c->slot_lkey };
  struct ibv_send_wr wr = { 0 };
  wr.sg_list = &sge;
  wr.num_sge = 1;
  wr.opcode = WR_READ;
  wr.remote_addr = c->remote_base;
  wr.rkey = c->rkey;
  if (!sq_space(c)) return;
  c->beating = 1;
  post(c, &wr, W_BEAT, NO_SLOT, -1, 1);
}

// ---- sending

static s32 frames_to_sges(struct conn *c, struct pool *p, const struct desc *d, struct ibv_sge *sge, u32 most) {
  struct runs it = runs_of(p->dev, p->frames, d);
  struct run r;
  u64 left = d->len, off = d->off;
  u32 n = 0;
  while (left && runs_next(&it, &r) == 1) {
    if (n == most) return -1;
    u64 b = ((u64)r.count << G.page_shift) - off;
    if (b > left) b = left;
    sge[n++] = (struct ibv_sge){ p->dev + ((u64)r.frame << G.page_shift) + off, (u32)b, c->pool_lkey };
    left -= b;
    off = 0;
  }
  return (s32)n;
}

// Brings a send that is too scattered for its message to neighbouring frames, by copying it. Its guard ends.
static int mend_send(struct conn *c, s32 i) {
  struct op *o = &G.op[i], copy;
  struct pool *p = &G.pool[o->pool];
  memset(&copy, 0, sizeof copy);
  copy.d = (struct desc){ o->d.id, D_PAGES, o->d.len, 0, 0, { { 0, 0 } }, 0, 0 };
  lock(&p->lock);
  int r = frames_for(p, &copy, i, o->d.len);
  unlock(&p->lock);
  if (r) return r;
  struct runs it = runs_of(p->dev, p->frames, &copy.d);
  struct run to;
  // Both lists are walked side by side, through a page's worth at a time.
  struct desc from = o->d;
  struct runs in = runs_of(p->dev, p->frames, &from);
  struct run src = { 0, 0 };
  u64 left = o->d.len, have = 0, off = o->d.off;
  const u8 *at = 0;
  while (left && runs_next(&it, &to) == 1) {
    u8 *dst = frame_at(p, to.frame);
    u64 room = (u64)to.count << G.page_shift;
    while (room && left) {
      if (!have) {
        if (runs_next(&in, &src) != 1) break;
        at = frame_at(p, src.frame) + off;
        have = ((u64)src.count << G.page_shift) - off;
        off = 0;
      }
      u64 n = have < room ? have : room;
      if (n > left) n = left;
      memcpy(dst, at, n);
      dst += n, at += n, room -= n, have -= n, left -= n;
    }
  }
  lock(&p->lock);
  out_unref(p, o);
  p->stat[S_MENDED] += copy.d.nruns;
  unlock(&p->lock);
  o->guard = GUARD_COPY;
  o->page = NONE;
  o->d = copy.d;
  o->last_table = copy.last_table;
  (void)c;
  return 0;
}

// Sends a small message from its pages: it ends when the device has sent them.
static int send_small(struct conn *c, struct pool *p, s32 i) {
  struct op *o = &G.op[i];
  struct ibv_sge sge[MAX_SGE];
  u8 slot = slot_take(c, CONTROL_SLOTS);
  struct header *h = head_of(c, slot, M_EAGER);
  h->len = o->d.len;
  s32 n = frames_to_sges(c, p, &o->d, sge, c->max_sge - 1);
  c->data_sent++;
  if (n >= 0) return post_slot(c, slot, sizeof *h, W_OP, i, sge, (u32)n);
  copy_out(p, &o->d, o->d.len, (u8 *)(h + 1));  // in more pieces than the device takes
  return post_slot(c, slot, (u32)sizeof *h + (u32)o->d.len, W_OP, i, 0, 0);
}

// Announces a large one, in as many slots as its list of frames needs.
static int announce(struct conn *c, struct pool *p, s32 i) {
  struct op *o = &G.op[i];
  struct runs it = runs_of(p->dev, p->frames, &o->d);
  int bad = 0;
  for (u32 left = o->d.nruns; left && !bad;) {
    u8 slot = slot_take(c, CONTROL_SLOTS);
    struct header *h = head_of(c, slot, M_PAGES);
    struct run *r = (struct run *)(h + 1);
    while (h->count < RUNS_IN_SLOT && runs_next(&it, &r[h->count]) == 1) h->count++;
    left -= h->count;
    h->flag = left != 0;
    h->len = o->d.len;
    h->id = (u32)i;
    h->off = o->d.off;
    c->data_sent++;
    bad = post_slot(c, slot, (u32)sizeof *h + h->count * 8u, W_SLOT, i, 0, 0);
  }
  return bad;
}

// Sends what is queued, as far as credits, slots, the send queue and frames go.
static void rdma_flush(struct conn *c, s32 me) {
  (void)me;
  while (c->sq.head >= 0 && !c->dead && sq_space(c) > 8) {
    s32 i = c->sq.head;
    struct op *o = &G.op[i];
    struct pool *p = &G.pool[o->pool];
    if (o->flags & OP_STAGED) {
      lock(&p->lock);
      int r = frames_for(p, o, i, o->len);
      if (r) p->starved = c->bell + 1;
      unlock(&p->lock);
      if (r) break;
      o->flags &= (u16)~OP_STAGED;
      fill_frames(p, o, (const u8 *)o->src);  // a copy only this operation knows: it cannot fault
    }
    u32 most = c->raw ? c->max_sge : MAX_CHAIN * RUNS_IN_SLOT;
    if (o->d.nruns > most) {
      int r = mend_send(c, i);
      if (!r && o->d.nruns > most) r = -E_NOBUFS;
      if (r) {
        pop(&c->sq);
        complete(c, i, r);
        continue;
      }
    }
    struct ibv_sge sge[MAX_SGE];
    int bad;
    if (c->raw) {
      struct ibv_send_wr wr = { 0 };
      s32 n = frames_to_sges(c, p, &o->d, sge, c->max_sge);
      wr.sg_list = sge;
      wr.num_sge = n;
      wr.opcode = WR_SEND;
      bad = post(c, &wr, W_OP, NO_SLOT, i, 1);
    } else {
      int small = o->d.len <= EAGER_BYTES_RDMA;
      u32 need = small ? 1 : (o->d.nruns + RUNS_IN_SLOT - 1) / RUNS_IN_SLOT;
      if (c->data_sent - c->data_seen + need > DATA_SLOTS || c->nsend_free < need + CONTROL_SLOTS) break;
      bad = small ? send_small(c, p, i) : announce(c, p, i);
    }
    if (bad) break;  // dead: everything queued ends with the connection
    pop(&c->sq);
    if (c->raw || o->d.len <= EAGER_BYTES_RDMA) __atomic_or_fetch(&o->flags, OP_AT_DEVICE, __ATOMIC_RELAXED);
    store_rel(&o->state, OP_POSTED);
    c->inflight++;
  }
  send_control(c);
}

static s32 rdma_eager(struct conn *c, s32 me, const u8 *src, u32 len) {
  if (len > (c->raw ? SLOT_BYTES : EAGER_BYTES_RDMA)) return -E_INVAL;
  lock(&c->lock);
  s32 r = state_error(c->state);
  u8 slot = NO_SLOT;
  if (!r && !c->raw && c->data_sent - c->data_seen >= DATA_SLOTS) rdma_poll(c, me);
  if (!r && (c->sq.head >= 0 || (!c->raw && c->data_sent - c->data_seen >= DATA_SLOTS) || sq_space(c) <= 8 ||
             (slot = slot_take(c, CONTROL_SLOTS)) == NO_SLOT))
    r = -E_AGAIN;
  unlock(&c->lock);
  if (r) return r;
  // Outside the lock: the bytes may be guarded memory, and their fault must find it free.
  memcpy((u8 *)send_slot(c, slot) + (c->raw ? 0 : sizeof(struct header)), src, len);
  lock(&c->lock);
  r = state_error(c->state);
  if (r || c->dead) {
    slot_give(c, slot);
    r = r ? r : -E_CONNRESET;
  } else if (c->raw) {
    post_slot(c, slot, len, W_SLOT, -1, 0, 0);
  } else {
    struct header *h = head_of(c, slot, M_EAGER);
    h->len = len;
    post_slot(c, slot, (u32)sizeof *h + len, W_SLOT, -1, 0, 0);
    c->data_sent++;
  }
  unlock(&c->lock);
  return r;
}

// ---- receiving

static inline struct header *arrived_head(struct conn *c) {
  return (struct header *)recv_slot(c, c->arrived[c->arr_head % RECV_SLOTS]);
}

// Posts reads of the message being pulled, from the peer's runs of frames to ours.
static void post_reads(struct conn *c) {
  while (c->pulling >= 0 && !c->dead) {
    struct op *o = &G.op[c->pulling];
    const struct pool *p = &G.pool[o->pool];
    const struct header *h = (const struct header *)recv_slot(c, c->pull_slot);
    const struct run *runs = (const struct run *)(h + 1);
    if (c->reads >= c->max_reads || sq_space(c) <= 8) return;
    struct run r = runs[c->pull_run];
    u64 n = ((u64)r.count << G.page_shift) - c->pull_off;
    if (n > h->len - c->pull_at) n = h->len - c->pull_at;
    if (n > c->read_bytes) n = c->read_bytes;
    struct ibv_sge sge[MAX_SGE];
    struct ibv_send_wr wr = { 0 };
    u64 got = 0;
    u32 k = 0;
    while (got < n && k < c->max_sge) {
      u8 *to;
      u64 b = place_of(p, o, c->pull_at + got, n - got, &to);
      sge[k++] = (struct ibv_sge){ (u64)to, (u32)b, c->pool_lkey };
      got += b;
    }
    wr.sg_list = sge;
    wr.num_sge = (s32)k;
    wr.opcode = WR_READ;
    wr.remote_addr = c->remote_base + ((u64)r.frame << G.page_shift) + c->pull_off;
    wr.rkey = c->rkey;
    o->reads++;
    c->reads++;
    if (post(c, &wr, W_READ, NO_SLOT, c->pulling, 1)) {
      o->reads--;
      c->reads--;
      return;
    }
    c->pull_at += got;
    c->pull_off += got;
    if (c->pull_off == (u64)r.count << G.page_shift) {
      c->pull_run++;
      c->pull_off = 0;
    }
    int all = c->pull_at == h->len;
    if (all) {
      o->flags |= OP_PULLED;
      c->pulling = -1;
    }
    if (all || c->pull_run == h->count) {  // this part of the list is not needed any more
      consume(c, c->pull_slot);
      c->pull_run = 0;
      if (!all) c->pull_slot = c->arrived[c->arr_head++ % RECV_SLOTS];
    }
  }
}

// Is the announcement at the head here as a whole? 1, 0, or -1 if its parts are not one message.
static int announced(struct conn *c) {
  struct header *h = arrived_head(c);
  u64 pages = 0, want = (h->off + h->len + G.page_size - 1) >> G.page_shift;
  for (u32 k = c->arr_head; k != c->arr_tail; k++) {
    struct header *n = (struct header *)recv_slot(c, c->arrived[k % RECV_SLOTS]);
    if (n->kind != M_PAGES || n->id != h->id || n->len != h->len || n->off != h->off) return -1;
    const struct run *r = (const struct run *)(n + 1);
    for (u32 i = 0; i < n->count; i++) pages += r[i].count;
    if (!n->flag) return pages == want ? 1 : -1;
  }
  return 0;
}

// Begins to read the announced message at the head into a receive.
static void pull(struct conn *c, s32 i) {
  struct op *o = &G.op[i];
  struct header *h = arrived_head(c);
  o->got = h->len;
  o->seq = h->id;
  o->reads = 0;
  store_rel(&o->state, OP_POSTED);
  c->pulls++;
  c->pulling = i;
  c->pull_slot = c->arrived[c->arr_head++ % RECV_SLOTS];
  c->pull_run = 0;
  c->pull_at = 0;
  c->pull_off = h->off;
  post_reads(c);
}

// Can the message at the head be read now? It is then whole, and nothing else is being posted.
static int can_pull(struct conn *c) {
  if (c->arr_head == c->arr_tail || arrived_head(c)->kind != M_PAGES || c->dead || c->pulling >= 0) return 0;
  int whole = announced(c);
  if (whole < 0) rdma_die(c, CONN_BROKEN);
  return whole > 0 && c->nreleases + c->pulls < RELEASES;
}

// Copies a message that was read ahead of its receive.
static void copy_landed(const struct op *from, const struct op *to) {
  u64 at = 0;
  while (at < from->got) {
    u8 *bytes;
    u64 n = place_of(&G.pool[from->pool], from, at, from->got - at, &bytes);
    copy_in(&G.pool[to->pool], to, at, bytes, n);
    at += n;
  }
}

// Hands what landed at `r` over as the message of `o`.
static void claim(struct conn *c, struct op *o, s32 r) {
  pop(&c->ahead);
  c->nahead--;
  c->no_room = 0;
  o->kind = OP_TAKE;
  o->flags = 0;
  o->d.kind = D_LANDED;
  o->seq = (u32)r;
  o->len = o->got = G.op[r].got;
}

// Gives messages to the receives that wait for them, in order. Returns how many ended.
static int receive_posted_rdma(struct conn *c) {
  int ended = 0;
  while (c->rq.head >= 0) {
    s32 i = c->rq.head, r = c->ahead.head;
    struct op *o = &G.op[i];
    c->streaming = o->kind == OP_TAKE;
    if (r >= 0) {
      if (load_acq(&G.op[r].state) != OP_DONE) break;
      o->got = G.op[r].got;
      if (o->kind == OP_IN && o->got > o->len) {  // the message stays for a receive it fits
        pop(&c->rq);
        complete(c, i, -E_MSGSIZE);
      } else if (o->kind == OP_IN) {
        copy_landed(&G.op[r], o);
        pop(&c->ahead);
        c->nahead--;
        push(&c->cq, r);  // JavaScript has its pages back
        pop(&c->rq);
        complete(c, i, 0);
      } else {
        pop(&c->rq);
        claim(c, o, r);
        complete(c, i, 0);
      }
      ended++;
      continue;
    }
    if (c->arr_head == c->arr_tail || c->pulling >= 0) break;
    struct header *h = arrived_head(c);
    o->got = h->len;
    if (o->kind == OP_IN && h->len > o->len) {
      pop(&c->rq);
      complete(c, i, -E_MSGSIZE);
      ended++;
      continue;
    }
    if (h->kind == M_PAGES) {
      if (!can_pull(c)) break;
      if (o->kind == OP_TAKE) {
        c->wants = 1;
        break;
      }
      pop(&c->rq);
      pull(c, i);
      continue;
    }
    u32 slot = c->arrived[c->arr_head++ % RECV_SLOTS];
    pop(&c->rq);
    if (o->kind == OP_IN) {
      copy_in(&G.pool[o->pool], o, 0, (const u8 *)(h + 1), h->len);
      consume(c, slot);
    } else {  // collected by JavaScript, which frees the slot
      o->d.kind = D_EAGER;
      o->d.off = slot;
      o->len = h->len;
    }
    complete(c, i, 0);
    ended++;
  }
  // A program that takes message after message gets some ahead: so many reads are under way at once.
  if (c->streaming && (c->rq.head < 0 || c->ahead.head >= 0) && c->nahead < MAX_AHEAD && !c->no_room &&
      c->state == CONN_OPEN && can_pull(c))
    c->wants = 1;
  return ended;
}

// Copies a small message out of its slot, for JavaScript.
static s32 rdma_collect(struct conn *c, struct op *o, u8 *to) {
  if (o->d.kind != D_EAGER || o->d.off >= RECV_SLOTS) return -E_INVAL;
  memcpy(to, (u8 *)recv_slot(c, o->d.off) + sizeof(struct header), o->got);
  lock(&c->lock);
  consume(c, o->d.off);
  o->d.off = NONE;
  send_control(c);
  unlock(&c->lock);
  return 0;
}

static s32 rdma_take(struct conn *c, s32 me) {
  rdma_poll(c, me);
  struct op *o = &c->taken;
  s32 r = c->ahead.head;
  c->streaming = 1;
  if (r >= 0) {
    if (load_acq(&G.op[r].state) != OP_DONE) return 0;
    claim(c, o, r);
    return 1;
  }
  if (c->arr_head == c->arr_tail) return state_error(c->state);
  struct header *h = arrived_head(c);
  if (h->kind == M_PAGES) return c->dead ? state_error(c->state) : 0;  // as an operation, which JavaScript gives a place
  o->kind = OP_TAKE;
  o->flags = 0;
  o->d.kind = D_EAGER;
  o->d.off = c->arrived[c->arr_head++ % RECV_SLOTS];
  o->len = o->got = h->len;
  return 1;
}

// Is what arrived a message of this protocol? The slot is ours: nobody changes it any more.
static int header_ok(const struct conn *c, const struct header *h, u32 bytes) {
  if (bytes < sizeof *h) return 0;
  if (h->kind == M_EAGER) return h->len == bytes - sizeof *h;
  if (h->kind == M_CONTROL) return bytes == sizeof *h + h->count * 4u && h->flag <= BYE_ABORTED;
  if (h->kind != M_PAGES || bytes != sizeof *h + h->count * 8u || !h->len || h->off >= G.page_size) return 0;
  if (h->len > (u64)c->remote_frames << G.page_shift) return 0;
  const struct run *r = (const struct run *)(h + 1);
  for (u32 i = 0; i < h->count; i++)
    if (!r[i].count || r[i].frame >= c->remote_frames || r[i].count > c->remote_frames - r[i].frame) return 0;
  return h->count && h->flag <= 1;  // whether the list has the right length is seen when all of it is here
}

// A message has come. -1 if it is none of the protocol.
static int on_message(struct conn *c, s32 me, u32 slot, u32 bytes) {
  struct header *h = (struct header *)recv_slot(c, slot);
  if (!header_ok(c, h, bytes)) return -1;
  if (h->consumed - c->data_seen > c->data_sent - c->data_seen) return -1;
  c->data_seen = h->consumed;
  if (h->kind != M_CONTROL) {
    if (c->arr_tail - c->arr_head >= DATA_SLOTS) return -1;
    c->arrived[c->arr_tail++ % RECV_SLOTS] = (u8)slot;
    return 0;
  }
  const u32 *id = (const u32 *)(h + 1);
  for (u32 i = 0; i < h->count; i++) {
    if (id[i] >= G.op_high) return -1;
    struct op *o = &G.op[id[i]];
    if (o->conn != me || o->kind != OP_OUT || load_acq(&o->state) != OP_POSTED || (o->flags & OP_AT_DEVICE)) return -1;
    c->inflight--;
    complete(c, (s32)id[i], 0);
  }
  if (h->flag) c->their_bye = h->flag;
  return post_recv_slot(c, slot);
}

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

static int rdma_poll(struct conn *c, s32 me) {
  if (!c->begun) return 0;
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
    rdma_flush(c, me);
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
  if (!c->begun || c->raw || c->dead || c->beating || c->state != CONN_OPEN) return;
  if (!c->inflight && c->sq.head < 0 && c->rq.head < 0 && !c->pulls) return;
  if (now_ns() - c->heard > BEAT_NS) send_beat(c);
}

// Asks for an event at the next completion. 1 if there is work already.
static int rdma_arm(struct conn *c, s32 me) {
  if (!c->begun) return 0;
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
  if (c->gone) return 1;
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
// The bytes of the announced message for which JavaScript has to find a place; less than 0 if nobody waits for
// it yet; 0 if there is none. In raw mode 1: the size is not known.
EXPORT f64 moat_rdma_wants(s32 i) {
  struct conn *c = conn_at(i);
  if (!c || !c->wants) return 0;
  lock(&c->lock);
  f64 n = 0;
  if (c->wants && c->raw)
    n = 1;
  else if (c->wants && c->arr_head != c->arr_tail)
    n = needed(c) ? (f64)arrived_head(c)->len : -(f64)arrived_head(c)->len;
  unlock(&c->lock);
  return n;
}
// Gives that message a place: a receive of our own, which comes back by moat_conn_next() unless it is named in
// the `seq` of a message. -1: there is none; the receive that waits fails with -ENOBUFS. -EAGAIN: not wanted
// any more.
EXPORT s32 moat_rdma_land(s32 i, s32 op) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  s32 r = -E_AGAIN, waits = needed(c);
  if (c->wants && op < 0) {
    if (waits)
      complete(c, pop(&c->rq), -E_NOBUFS);
    else
      c->no_room = 1;
    r = 0;
  } else if (c->wants && c->raw && waits) {
    G.op[op].conn = i;
    G.op[op].flags |= OP_AHEAD;
    G.op[op].seq = (u32)pop(&c->rq);
    store_rel(&G.op[op].state, OP_QUEUED);
    push_front(&c->rq, op);
    r = 0;
  } else if (c->wants && !c->raw && (waits || c->rq.head < 0 || c->ahead.head >= 0) && can_pull(c) &&
             arrived_head(c)->len <= G.op[op].len) {
    G.op[op].conn = i;
    G.op[op].flags |= OP_AHEAD;
    push(&c->ahead, op);
    c->nahead++;
    pull(c, op);
    r = 0;
  }
  c->wants = 0;
  rdma_poll(c, i);
  unlock(&c->lock);
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
