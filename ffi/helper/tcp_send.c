// Sending over TCP: from the pages of a send into the socket, in as many steps as the socket wants.
#include "conn.h"

static struct walk walk_of(const struct op *o) {
  struct pool *p = &G.pool[o->pool];
  struct walk w = { runs_of(p->dev, p->frames, &o->d), 0, { 0, 0 }, 0 };
  if (o->flags & OP_STAGED) {  // a copy that JavaScript keeps: as good as frames
    w.flat = (const u8 *)o->src;
  } else if (runs_next(&w.it, &w.run) == 1) {
    w.off = o->d.off;
  }
  return w;
}
// Steps over neighbouring bytes, at most `most`; returns how many. 0 at the end of the list.
static u64 walk_on(struct walk *w, u64 most, u8 **at) {
  if (w->flat) {
    *at = (u8 *)w->flat + w->off;
    w->off += most;
    return most;
  }
  if (w->off == (u64)w->run.count << G.page_shift) {
    if (runs_next(&w->it, &w->run) != 1) return 0;
    w->off = 0;
  }
  u64 n = ((u64)w->run.count << G.page_shift) - w->off;
  if (n > most) n = most;
  *at = (u8 *)(w->it.base + ((u64)w->run.frame << G.page_shift)) + w->off;
  w->off += n;
  return n;
}
static void walk_over(struct walk *w, u64 n) {
  u8 *at;
  for (u64 k; n && (k = walk_on(w, n, &at)); n -= k)
    ;
}

#define MSG_MORE 0x8000
static s64 send_iov(struct conn *c, struct iovec *iov, u32 n, s32 more) {
  struct msghdr m = { 0, 0, 0, iov, n, 0, 0, 0, 0 };
  c->tx_unsure = 1;
  return sys3(NR_sendmsg, c->fd, &m, 0x4040 /* MSG_DONTWAIT | MSG_NOSIGNAL */ | more);
}

// ---- large messages

// A part of a message. One from a mapped file that has been cut off goes on with zeros: its send fails at the end,
// the connection does not.
static s64 send_part(struct conn *c, const struct op *o, struct iovec *iov, u32 n, s32 more) {
  s64 r = send_iov(c, iov, n, more);
  return r == -E_FAULT && map_touch(&G.pool[o->pool], iov, n, 0) ? send_iov(c, iov, n, more) : r;
}

// The parts of a send's bytes on the wire: frame, own header, data from `flip` on, the data before that.
struct parts { u64 head, data, tail, end, flip; };
static struct parts parts_of(const struct frame *f) {
  u64 flip = f->head <= f->len ? f->head : 0, data = FRAME + (u64)f->head, tail = data + f->len - flip;
  return (struct parts){ FRAME, data, tail, tail + flip, flip };
}
static u32 gather(struct walk *w, u64 n, struct iovec *iov, u32 k) {
  u8 *at;
  for (u64 got; n && k < TCP_IOVS && (got = walk_on(w, n, &at)); n -= got) iov[k++] = (struct iovec){ (u64)at, got };
  return k;
}

static void tx_begin(struct conn *c, s32 i) {
  struct op *o = &G.op[i];
  store_rel(&o->state, OP_POSTED);
  c->inflight++;
  c->tx_op = i;
  c->tx_at = 0;
  c->tx = (struct frame){ T_MESSAGE, 0, (u16)o->head_len, 0, o->len };
  c->tx_walk = walk_of(o);
  walk_over(&c->tx_walk, parts_of(&c->tx).flip);
  c->tx_zc = c->zc_from && o->len >= c->zc_from && !(o->flags & OP_STAGED) && (!c->zc_rest || !--c->zc_rest);
}
static void tx_end(struct conn *c, s32 status) {
  s32 i = c->tx_op;
  c->tx_op = -1;
  if (G.op[i].reads) {  // the kernel still has pages of it: its last notification ends it
    G.op[i].seq = (u32)-status;
    __atomic_or_fetch(&G.op[i].flags, OP_AT_DEVICE, __ATOMIC_RELAXED);
    return;
  }
  c->inflight--;
  complete(c, i, status);
}
static void tx_moved(struct conn *c, const struct parts *p, u64 n) {
  u64 from = c->tx_at < p->data ? p->data : c->tx_at, to = c->tx_at += n;
  if (to > p->tail) to = p->tail;
  if (to > from) walk_over(&c->tx_walk, to - from);
  if (c->tx_at == p->end) tx_end(c, 0);
}

// ---- without a copy

static void count(const struct conn *c, u32 what) {
  __atomic_add_fetch(&G.pool[c->pool].stat[what], 1, __ATOMIC_RELAXED);
}

// Hands the data of the send under way to the ring. 0, or -errno: to be copied into the socket after all.
static s32 tx_submit(struct conn *c, const struct parts *p) {
  struct uring *u = uring_of(c->pool);
  if (!u || !uring_may_submit(u)) return -E_AGAIN;
  struct iovec iov[TCP_IOVS];
  struct walk w = c->tx_walk;
  u32 k = gather(&w, p->tail - c->tx_at, iov, 0);
  struct msghdr m = { 0, 0, 0, iov, k, 0, 0, 0, 0 };  // read before the call is back (IORING_FEAT_SUBMIT_STABLE)
  struct sqe e;
  memset(&e, 0, sizeof e);
  e.fd = c->fd;
  e.op_flags = 0x4100;  // MSG_NOSIGNAL | MSG_WAITALL
  e.ioprio = IORING_SEND_ZC_REPORT_USAGE;
  e.user_data = (u64)(u32)c->number << 32 | (u32)c->tx_op;
  // Not as a fixed buffer: the kernel charges the socket for a piece of one from the start of its huge page on, so
  // that 64 KiB may count for 2 MiB of the send buffer, and of the receiver's where that is on this host (Linux 6.18:
  // io_sg_from_iter adds bv_offset to the true size; 98 KiB in flight were seen to count for 1.1 MiB).
  e.opcode = k == 1 ? IORING_OP_SEND_ZC : IORING_OP_SENDMSG_ZC;
  e.addr = k == 1 ? iov[0].base : (u64)&m;
  e.len = k == 1 ? (u32)iov[0].len : 1;
  G.op[c->tx_op].reads++;
  c->tx_wait = 1;
  c->tx_unsure = 1;
  s32 r = uring_submit(u, &e);
  if (r) {
    G.op[c->tx_op].reads--;
    c->tx_wait = 0;
  }
  return r;
}

// A completion: the result of a request, and then, if it says so, the notification that the pages are free.
static void tx_cqe(struct conn *c, u32 tag, s32 res, u32 flags) {
  struct op *o = &G.op[tag];
  int last = !(flags & IORING_CQE_F_MORE);
  if (flags & IORING_CQE_F_NOTIF) {
    int copied = ((u32)res & IORING_NOTIF_USAGE_ZC_COPIED) != 0;
    count(c, copied ? S_RING_COPIED : S_ZERO_COPIED);
    if (copied) c->zc_rest = ZC_AGAIN;
  } else {
    c->tx_wait = 0;
    if (!last) count(c, S_RING_SENDS);  // a notification will follow
    if (res < 0) {
      // Not for this socket, or not now: the rest is copied. What is wrong with the connection will be said again.
      c->tx_zc = 0;
      c->zc_rest = ZC_AGAIN;
      if (res == -E_INVAL || res == -E_OPNOTSUPP) c->zc_from = 0;
    }
  }
  if (last) o->reads--;
  if (!(flags & IORING_CQE_F_NOTIF) && c->tx_op == (s32)tag && res > 0) {
    struct parts p = parts_of(&c->tx);
    tx_moved(c, &p, (u64)res);
  }
  if (!o->reads && load_acq(&o->state) == OP_POSTED && o->flags & OP_AT_DEVICE) {
    __atomic_and_fetch(&o->flags, (u16)~OP_AT_DEVICE, __ATOMIC_RELAXED);
    c->inflight--;
    complete(c, (s32)tag, -(s32)o->seq);
  }
}

// ---- by copying into the socket

// Sends what the socket takes of the send under way.
static s64 tx_some(struct conn *c) {
  struct op *o = &G.op[c->tx_op];
  struct parts p = parts_of(&c->tx);
  struct iovec iov[TCP_IOVS];
  struct walk w = c->tx_walk;
  u64 at = c->tx_at;
  u32 k = 0;
  if (c->tx_zc && at >= p.data && at < p.tail && !tx_submit(c, &p)) return 1;
  if (at < p.head) {
    iov[k++] = (struct iovec){ (u64)&c->tx + at, p.head - at };
    at = p.head;
  }
  if (at < p.data) {
    iov[k++] = (struct iovec){ (u64)(u8 *)head_bytes(&G.pool[o->pool], o) + (at - p.head), p.data - at };
    at = p.data;
  }
  if (c->tx_zc && c->tx_at < p.data) {  // the data follows by itself
    s64 n = send_part(c, o, iov, k, MSG_MORE);
    if (n > 0) tx_moved(c, &p, (u64)n);
    return n;
  }
  if (at < p.tail) k = gather(&w, p.tail - at, iov, k);
  if (p.flip && k < TCP_IOVS) {  // else the rest comes another time
    struct walk first = walk_of(o);
    u64 done = at > p.tail ? at - p.tail : 0;
    walk_over(&first, done);
    k = gather(&first, p.flip - done, iov, k);
  }
  s64 n = send_part(c, o, iov, k, 0);
  if (n > 0) tx_moved(c, &p, (u64)n);
  return n;
}

// ---- all that is to be sent

static void fail_sends(struct conn *c, s32 status) {
  if (c->tx_op >= 0) {
    if (c->tx_at) c->tx_torn = 1;
    tx_end(c, status);
  }
  fail_queue(c, &c->sq, status);
}

static int out_room(struct conn *c) { return c->out || (c->out = map_anonymous(OUT_BYTES)); }

// The socket said no for good.
static void tx_failed(struct conn *c) {
  c->tx_dead = 1;
  if (c->state == CONN_OPEN) c->state = CONN_LOST;  // what the peer sent before can still be received
}

// What is left of a small message, or the goodbye.
static s64 out_some(struct conn *c) {
  struct iovec iov = { (u64)c->out + c->out_head, c->out_tail - c->out_head };
  s64 n = send_iov(c, &iov, 1, 0);
  if (n > 0) c->out_head += (u32)n;
  if (c->out_head == c->out_tail) c->out_head = c->out_tail = 0;
  return n;
}
static void out_put(struct conn *c, const void *from, u32 len) {
  memcpy(c->out + c->out_tail, from, len);
  c->out_tail += len;
}

// The goodbye, once all before it is sent, and the end of the stream behind it.
static int bye_some(struct conn *c) {
  if (!c->tx_bye || c->tx_shut || c->tx_torn) return 0;
  if (c->tx_bye < 0x100) {
    struct frame f = { T_BYE, (u8)c->tx_bye, 0, 0, 0 };
    if (!out_room(c)) return 0;
    out_put(c, &f, sizeof f);
    c->tx_bye |= 0x100;
    return 1;
  }
  c->tx_shut = 1;
  sys2(NR_shutdown, c->fd, 1 /* SHUT_WR */);
  return 0;
}

// Sends what there is to send, as far as the socket takes it.
static void tcp_flush(struct conn *c) {
  while (!c->tx_dead && !c->tx_wait) {
    s64 n;
    if (c->out_head != c->out_tail)
      n = out_some(c);
    else if (c->tx_op >= 0)
      n = tx_some(c);
    else if (c->sq.head >= 0) {
      tx_begin(c, pop(&c->sq));
      continue;
    } else if (bye_some(c))
      continue;
    else
      return;
    if (n == -E_AGAIN) return;
    if (n <= 0 && n != -E_INTR) tx_failed(c);
  }
}
static int tx_waits(const struct conn *c) {
  return !c->tx_dead && !c->tx_wait && (c->out_head != c->out_tail || c->tx_op >= 0 || c->sq.head >= 0);
}

static void tcp_ask(struct conn *c, s32 me);

static s32 tcp_eager(struct conn *c, s32 me, const u8 *src, u32 len) {
  if (len > TCP_EAGER_MAX) return -E_INVAL;
  lock(&c->lock);
  s32 r = state_error(c->state);
  if (!r && tx_waits(c)) tcp_flush(c);
  if (!r && (tx_waits(c) || c->tx_wait)) r = -E_AGAIN;
  if (!r && !out_room(c)) r = -E_AGAIN;
  struct frame f = { T_MESSAGE, 0, 0, 0, len };
  s64 n = 0;
  if (!r) {
    struct iovec iov[2] = { { (u64)&f, FRAME }, { (u64)src, len } };
    n = send_iov(c, iov, len ? 2 : 1, 0);
    if (n == -E_AGAIN || n == -E_INTR || n == -E_FAULT) n = 0;
    if (n < 0) {
      tx_failed(c);
      r = state_error(c->state);
    }
  }
  unlock(&c->lock);
  if (r || n == FRAME + len) return r;
  // Only the thread that owns the channel sends, so nobody comes between; and the bytes may be guarded memory
  // (that is an EFAULT), whose fault must find the lock free.
  u32 at = 0;
  if (n < FRAME) {
    at = FRAME - (u32)n;
    memcpy(c->out, (u8 *)&f + n, at);
    n = FRAME;
  }
  memcpy(c->out + at, src + (n - FRAME), len - (u32)(n - FRAME));
  lock(&c->lock);
  c->out_tail = at + len - (u32)(n - FRAME);
  tcp_flush(c);
  if (tx_waits(c)) tcp_ask(c, me);  // JavaScript may go to sleep without being asked to look again
  unlock(&c->lock);
  return 0;
}
