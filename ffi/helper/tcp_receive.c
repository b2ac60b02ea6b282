// Receiving over TCP: from the socket into the pages of a receive; small messages through the stage.
#include "conn.h"

static inline u32 staged(const struct conn *c) { return c->in_tail - c->in_head; }
static inline u64 rx_size(const struct conn *c) { return c->rx.len + c->rx.head; }
static inline int rx_small(const struct conn *c) { return rx_size(c) <= TCP_SMALL; }
static inline int rx_whole(const struct conn *c) { return c->rx_has && staged(c) >= rx_size(c); }

static int frame_ok(const struct conn *c, const struct frame *f) {
  if (f->zero) return 0;
  if (f->kind == T_BYE) return (f->flag == T_FINISHED || f->flag == T_ABORTED) && !f->head && !f->len;
  return f->kind == T_MESSAGE && !f->flag && f->head <= HEADER_MAX &&
         f->len <= (u64)G.pool[c->pool].pages << G.page_shift;
}
// Is there a frame at the head, as far as its 16 bytes? 1, 0, or -1 for nonsense.
static int next_frame(struct conn *c) {
  if (c->rx_has) return 1;
  if (c->rx_bye && c->rx_bye < 0x100) return staged(c) ? -1 : 0;
  if (staged(c) < FRAME) return 0;
  memcpy(&c->rx, c->stage + c->in_head, FRAME);
  if (!frame_ok(c, &c->rx)) return -1;
  c->in_head += FRAME;
  if (c->rx.kind == T_BYE) {
    c->rx_bye = c->rx.flag;
    return staged(c) ? -1 : 0;
  }
  c->rx_at = 0;
  c->rx_has = 1;
  return 1;
}
// The message at the head has been consumed.
static void rx_next(struct conn *c, u32 chunk) {
  c->rx_has = 0;
  c->rx_chunk = chunk;
}

// ---- small messages

// Brings the data of the whole small message at the head into one piece; its own header has been saved.
static u8 *rx_settle(struct conn *c) {
  u8 *s = c->stage + c->in_head;
  u64 h = c->rx.head, len = c->rx.len;
  if (h > len) return s + h;
  memcpy(s, s + len, h);
  if (h) __atomic_add_fetch(&G.pool[c->pool].stat[S_PATCHED], h, __ATOMIC_RELAXED);
  return s;
}
static const u8 *rx_data(const struct conn *c) {
  return c->stage + c->in_head + (c->rx.head > c->rx.len ? c->rx.head : 0);
}
static void rx_consume(struct conn *c) {
  c->in_head += (u32)rx_size(c);
  c->rx_taken = 0;
  c->rx_parked = -1;
  rx_next(c, c->rx_chunk < 4096 ? 4096 : c->rx_chunk);
}
// Is the message at the head handed over, and still to be collected? Once it is, its operation is free or another.
static int rx_lent(const struct conn *c, s32 me) {
  if (c->rx_parked < 0) return 0;
  const struct op *o = &G.op[c->rx_parked];
  return load_acq(&o->state) == OP_DONE && o->conn == me && o->kind == OP_TAKE && o->d.kind == D_EAGER;
}

// Gives the whole small message at the head to a receive. 1, or -errno with the message left where it is.
static s32 rx_give(struct conn *c, s32 i) {
  struct op *o = &G.op[i];
  struct pool *p = &G.pool[o->pool];
  if (head_keep(c, i, c->stage + c->in_head, c->rx.head)) return -E_NOBUFS;
  if (o->kind == OP_IN) {
    copy_in(p, o, 0, rx_settle(c), c->rx.len);
    rx_consume(c);
    return 1;
  }
  o->len = c->rx.len;
  lock(&p->lock);
  int short_ = frames_for(p, o, i, o->len);
  unlock(&p->lock);
  if (!short_) {  // the stage moves on though JavaScript has not looked yet
    o->flags |= OP_PARKED;
    fill_frames(p, o, rx_settle(c));
    rx_consume(c);
    return 1;
  }
  // Without a frame they go one at a time, because what frees the frames may be what a message says.
  rx_settle(c);
  o->d.kind = D_EAGER;
  c->rx_parked = i;
  return 1;
}

// ---- large messages

// A receive into a place that JavaScript found (OP_AHEAD) is not that of a message's receiver, which waits in
// the queue, or has not asked yet.
static void rx_free_place(struct conn *c, s32 i, s32 status) {
  c->rx_nplaces--;
  if (load_acq(&G.op[i].state) == OP_DONE)
    push(&c->cq, i);
  else
    complete(c, i, status);
}
static void rx_free_spares(struct conn *c) {
  for (s32 i; (i = pop(&c->rx_spare)) >= 0;) rx_free_place(c, i, -E_CANCELED);
  c->rx_stream = 0;
}
// All of them, those that hold a message too: nobody will ask for it.
static void rx_free_places(struct conn *c) {
  rx_free_spares(c);
  for (s32 i; (i = pop(&c->rx_ahead)) >= 0;) rx_free_place(c, i, 0);
}
static void rx_fail(struct conn *c, s32 i, s32 status) {
  if (G.op[i].flags & OP_AHEAD)
    rx_free_place(c, i, status);
  else
    complete(c, i, status);
}

// Begins to receive the message at the head into pages. What of it is in the stage is copied.
static void rx_begin(struct conn *c, s32 i) {
  struct op *o = &G.op[i];
  struct pool *p = &G.pool[o->pool];
  // The frame for its header is taken now: a message that is here cannot be left for the next receive.
  int parked = c->rx.head && !head_park(p, o, c->stage, 0);
  if (c->rx.head && !parked && head_waits(c)) {
    if (o->flags & OP_AHEAD && c->rq.head >= 0) complete(c, pop(&c->rq), -E_NOBUFS);
    rx_fail(c, i, -E_NOBUFS);
    return;
  }
  o->head_len = c->rx.head;
  if (c->rx.head && !parked) c->head_parked = i;
  u64 n = staged(c) < c->rx.len ? staged(c) : c->rx.len;
  store_rel(&o->state, OP_POSTED);
  o->got = c->rx.len;
  c->rx_op = i;
  copy_in(p, o, 0, c->stage + c->in_head, n);
  c->in_head += (u32)n;
  c->rx_at = n;
}

// The message in pages is whole: its header is taken out, and the bytes it displaced patched over it.
static void rx_patch(struct conn *c) {
  struct op *o = &G.op[c->rx_op];
  struct pool *p = &G.pool[o->pool];
  u32 h = c->rx.head;
  u8 *to = o->head_frame ? frame_at(p, o->head_frame - 1) : c->parked_head;
  for (u32 at = 0; at < h;) {
    u8 *from;
    u64 n = place_of(p, o, at, h - at, &from);
    memcpy(to + at, from, n);
    at += (u32)n;
  }
  copy_in(p, o, 0, c->stage + c->in_head, h);
  c->in_head += h;
  __atomic_add_fetch(&p->stat[S_PATCHED], h, __ATOMIC_RELAXED);
}
static int rx_landed(struct conn *c) {
  s32 i = c->rx_op;
  struct op *o = &G.op[i];
  if (c->rx_at < c->rx.len || staged(c) < c->rx.head) return 0;
  if (c->rx.head) rx_patch(c);
  c->rx_op = -1;
  rx_next(c, FRAME);  // the next one may be as large, and is not to be copied
  if (!(o->flags & OP_AHEAD)) {
    complete(c, i, 0);
    return 1;
  }
  op_finish(i, 0);
  push(&c->rx_ahead, i);
  return 1;
}

// Hands what landed first over as the message of `o`.
static void rx_claim(struct conn *c, struct op *o) {
  s32 i = pop(&c->rx_ahead);
  c->rx_nplaces--;
  c->rx_full = 0;
  c->rx_stream = G.op[i].len;
  o->d.kind = D_LANDED;
  o->seq = (u32)i;
  o->len = o->got = G.op[i].got;
}
// Gives what landed first to the receive that waits.
static void rx_hand(struct conn *c) {
  s32 i = c->rx_ahead.head, r = pop(&c->rq);
  struct op *from = &G.op[i], *o = &G.op[r];
  o->got = from->got;
  if (o->kind == OP_IN && from->got > o->len) {  // the message stays for a receive it fits
    complete(c, r, -E_MSGSIZE);
    return;
  }
  if (from->head_frame && o->pool != from->pool) {  // into a mapped file, which has frames of its own
    if (head_park(&G.pool[o->pool], o, head_bytes(&G.pool[from->pool], from), from->head_len)) {
      complete(c, r, -E_NOBUFS);
      return;
    }
  } else {
    head_move(c, o, r, from, i);
  }
  if (o->kind == OP_IN) {
    copy_landed(from, o);
    pop(&c->rx_ahead);
    rx_free_place(c, i, 0);
    rx_free_spares(c);
    complete(c, r, 0);
  } else {
    complete(c, r, 0);
    rx_claim(c, o);
  }
}

// ---- what has been read

// Nobody wants it: only the end matters.
static int rx_throw(struct conn *c) {
  for (;;) {
    int r = next_frame(c);
    if (r <= 0) return r;
    u64 left = rx_size(c) - c->rx_at, n = staged(c) < left ? staged(c) : left;
    c->in_head += (u32)n;
    c->rx_at += n;
    if (n < left) return 0;
    rx_next(c, STAGE_BYTES);
  }
}

// Gives what is there to the receives that wait for it, in order. Returns how many ended, or -1 for nonsense.
static int rx_deliver(struct conn *c, s32 me) {
  for (int ended = 0;; ended++) {
    if (c->rx_drop) return rx_throw(c);
    if (c->rx_ahead.head >= 0 && c->rq.head >= 0) {
      rx_hand(c);
      continue;
    }
    if (c->rx_op >= 0) {
      if (!rx_landed(c)) return ended;
      continue;
    }
    if (c->rx_taken && c->rq.head < 0) return ended;  // JavaScript is about to collect it
    if (c->rx_taken || (c->rx_parked >= 0 && !rx_lent(c, me))) rx_consume(c);
    if (c->rx_parked >= 0) return ended;
    int r = next_frame(c);
    if (r <= 0) return r < 0 ? -1 : ended;
    s32 i = c->rq.head;
    struct op *o = i < 0 ? 0 : &G.op[i];
    if (o) o->got = c->rx.len;
    if (rx_small(c)) {
      if (!o) return ended;
      if (o->kind == OP_IN && c->rx.len > o->len) {  // the message stays for a receive it fits
        complete(c, pop(&c->rq), -E_MSGSIZE);
        continue;
      }
      if (!rx_whole(c)) return ended;
      if (c->rx_stream) rx_free_spares(c);
      if (rx_give(c, i) < 0) return ended;  // tried again when there is a frame for its header
      pop(&c->rq);
      complete(c, i, 0);
    } else if (o && o->kind == OP_IN) {
      pop(&c->rq);
      if (c->rx.len > o->len)
        complete(c, i, -E_MSGSIZE);
      else
        rx_begin(c, i);
    } else if (c->rx_spare.head >= 0 && G.op[c->rx_spare.head].len >= c->rx.len) {
      rx_begin(c, pop(&c->rx_spare));
    } else {
      if (c->rx_spare.head >= 0) rx_free_spares(c);
      c->rx_wants = o != 0;
      return ended;
    }
  }
}

// The stream has ended. What came whole can still be received; is there a goodbye behind it?
static void rx_ended(struct conn *c) {
  c->rx_end = 1;
  if (c->rx_bye || c->rx_op >= 0) return;  // in the middle of a message
  u64 at = c->rx_has ? rx_size(c) - (c->rx_drop ? c->rx_at : 0) : 0;
  while (at + FRAME <= staged(c)) {
    struct frame f;
    memcpy(&f, c->stage + c->in_head + at, FRAME);
    if (!frame_ok(c, &f)) return;
    if (f.kind == T_BYE) c->rx_bye = at + FRAME == staged(c) ? f.flag | 0x100u : 0;
    at += FRAME + f.len + f.head;
  }
}

// ---- reading

static s64 rx_read(struct conn *c, s64 n) {
  if (n == 0 || (n < 0 && n != -E_AGAIN && n != -E_INTR)) rx_ended(c);
  return n > 0 ? n : 0;
}
// Reads at most `want` bytes into the stage; how many.
static s64 read_stage(struct conn *c, u32 want) {
  if (!c->stage && !(c->stage = map_anonymous(STAGE_BYTES))) return 0;
  if (!staged(c)) c->in_head = c->in_tail = 0;
  if (want > STAGE_BYTES - c->in_tail && c->in_head) {
    u32 n = staged(c);
    memcpy(c->stage, c->stage + c->in_head, n);  // to lower addresses, and upwards: it may overlap
    c->in_head = 0;
    c->in_tail = n;
  }
  if (want > STAGE_BYTES - c->in_tail) want = STAGE_BYTES - c->in_tail;
  s64 n = rx_read(c, sys6(NR_recvfrom, c->fd, (s64)(c->stage + c->in_tail), want, 0x40 /* MSG_DONTWAIT */, 0, 0));
  c->in_tail += (u32)n;
  if (n == want && want >= 4096 && c->rx_chunk < STAGE_BYTES) c->rx_chunk *= 2;
  return n;
}
// Reads into the pages of the receive under way, and what follows (displaced bytes, the next frame) behind.
static s64 read_pages(struct conn *c) {
  if (c->rx_at == c->rx.len) return read_stage(c, c->rx.head - staged(c) + FRAME);
  if (!c->stage && !(c->stage = map_anonymous(STAGE_BYTES))) return 0;
  struct iovec iov[TCP_IOVS];
  u64 at;
  u32 k = rx_places(c, c->rx.len - c->rx_at, iov, TCP_IOVS - 1, &at);
  c->in_head = c->in_tail = 0;
  if (at == c->rx.len) iov[k++] = (struct iovec){ (u64)c->stage, c->rx.head + FRAME };
  struct msghdr m = { 0, 0, 0, iov, k, 0, 0, 0, 0 };
  s64 n = sys3(NR_recvmsg, c->fd, &m, 0x40);
  if (n == -E_FAULT && map_touch(&G.pool[G.op[c->rx_op].pool], iov, k, 1)) n = sys3(NR_recvmsg, c->fd, &m, 0x40);  // as in sending
  n = rx_read(c, n);
  u64 data = (u64)n < at - c->rx_at ? (u64)n : at - c->rx_at;
  c->rx_at += data;
  c->in_tail = (u32)((u64)n - data);
  return n;
}

// How much to read into the stage; 0 if what is there has to be received first. `ahead`: though nobody waits.
static u32 rx_hunger(const struct conn *c, int ahead) {
  u32 have = staged(c), need = FRAME;
  if (c->rx_drop) return STAGE_BYTES;
  if (c->rx_bye) return 1;  // there is nothing to come but the end
  if (c->rx_has) {
    if (!rx_small(c) && have < rx_size(c)) return 0;
    need = (u32)rx_size(c);
  }
  if (have >= need) return ahead && have < STAGE_BYTES / 2 && !c->rx_taken && c->rx_parked < 0 ? c->rx_chunk : 0;
  if (!ahead && c->rq.head < 0) return 0;
  return need - have > c->rx_chunk ? need - have : c->rx_chunk;
}

// Receives what there is. -1 for nonsense from the peer. `lazy`: only if the doorbell's thread is not asked to.
static int tcp_receive(struct conn *c, s32 me, int ahead, int lazy) {
  c->rx_wants = 0;
  for (int turn = 0;; turn++) {
    if (rx_deliver(c, me) < 0) return -1;
    // A peer that sends without end gets no more than its turn.
    if (c->rx_ring || c->rx_end || (lazy && (c->asked & 1)) || turn == 256) return 0;
    u32 want = c->rx_op >= 0 ? 1 : rx_hunger(c, ahead);
    if (!want || (c->rx_op >= 0 && rx_submit(c))) return 0;
    if (!(c->rx_op >= 0 ? read_pages(c) : read_stage(c, want)) && !c->rx_end) return 0;
  }
}

static s32 tcp_collect(struct conn *c, s32 me, s32 i, struct op *o, u8 *to) {
  (void)me, (void)o;
  s32 r = -E_INVAL;
  lock(&c->lock);
  if (i < 0 ? c->rx_taken : (u32)i == (u32)c->rx_parked) {
    memcpy(to, rx_data(c), c->rx.len);
    rx_consume(c);
    r = 0;
  }
  unlock(&c->lock);
  return r;
}
