// The shared-memory transport (shm.h). Every function here may run in the fault handler of any thread.
// Locks: a connection's before a pool's.
#include "shm.h"

static struct conn *conns[MAX_CONNS];
static u32 conns_lock, conns_high;

static inline struct conn *conn_at(s32 i) {
  struct conn *c = i >= 0 && (u32)i < MAX_CONNS ? load_acq(&conns[i]) : 0;
  return c && load_acq(&c->live) ? c : 0;
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

// ---- waking the peer

static void wake(struct conn *c, u32 why) {
  fence_full();  // what was published comes before the look at whether the peer sleeps
  if (!(load_rlx(&c->theirs->want) & why)) return;
  u32 seq = load_rlx(&c->theirs->want_seq);
  if (seq == c->woke_seq) return;
  c->woke_seq = seq;
  sys6(NR_sendto, c->fd, (s64) "w", 1, 0x4040 /* MSG_DONTWAIT | MSG_NOSIGNAL */, 0, 0);
}

// ---- sending

static void publish(struct conn *c, const struct desc *d) {
  c->mine->desc[c->tx_tail % RING_SLOTS] = *d;
  c->eager_end[c->tx_tail % RING_SLOTS] = c->eager_tail;
  store_rel(&c->mine->tx_tail, ++c->tx_tail);
}

// Learns what the peer has consumed. -1 if it claims what cannot be.
static int see_space(struct conn *c) {
  u64 seen = load_acq(&c->theirs->rx_head);
  if (seen == c->tx_seen) return 0;
  if (seen - c->tx_seen > c->tx_tail - c->tx_seen) return -1;
  c->tx_seen = seen;
  c->eager_freed = c->eager_end[(seen - 1) % RING_SLOTS];
  return 0;
}

// Publishes what is queued, as far as the ring, the peer's holdings and the frames go.
static int send_queued(struct conn *c) {
  int n = 0;
  while (c->sq.head >= 0 && c->tx_tail - c->tx_seen < RING_SLOTS && c->inflight < RELEASE_SLOTS) {
    struct op *o = &G.op[c->sq.head];
    if (o->flags & OP_STAGED) {
      struct pool *p = &G.pool[o->pool];
      lock(&p->lock);
      int r = frames_for(p, o, c->sq.head, o->len);
      if (r) p->starved = c->bell + 1;
      unlock(&p->lock);
      if (r) break;
      o->flags &= (u16)~OP_STAGED;
      fill_frames(p, o, (const u8 *)o->src);  // a copy only this operation knows: it cannot fault
    }
    pop(&c->sq);
    store_rel(&o->state, OP_POSTED);
    c->inflight++;
    publish(c, &o->d);
    n++;
  }
  return n;
}

// ---- receiving

static int desc_ok(const struct conn *c, const struct desc *d) {
  if (d->kind == D_EAGER) return d->len <= EAGER_MAX && d->off <= EAGER_BYTES - d->len;
  if (d->kind != D_PAGES && d->kind != D_TABLE) return 0;
  // A message of nothing, for which the sender's ring had no room.
  if (!d->len) return d->kind == D_PAGES && !d->nruns && !d->off;
  if (d->off >= G.page_size || d->len > (u64)c->peer_frames << G.page_shift) return 0;
  u64 pages = 0, want = (d->off + d->len + G.page_size - 1) >> G.page_shift;
  if (!d->nruns || d->nruns > want || d->nruns > MAX_RUNS) return 0;
  struct runs it = runs_of(c->peer_dev, c->peer_frames, d);
  struct run r;
  int more;
  while ((more = runs_next(&it, &r)) == 1)
    if ((pages += r.count) > want) return 0;
  return more == 0 && pages == want;
}

// Copies a message's bytes. The list is checked again as it is read; -1 if it changed under us.
static int desc_copy(const struct conn *c, const struct desc *d, u8 *to) {
  if (d->kind == D_EAGER) {
    memcpy(to, c->theirs->eager + d->off, d->len);
    return 0;
  }
  struct runs it = runs_of(c->peer_dev, c->peer_frames, d);
  struct run r;
  u64 left = d->len, off = d->off;
  while (left) {
    if (runs_next(&it, &r) != 1) return -1;
    u64 n = ((u64)r.count << G.page_shift) - off;
    if (n > left) n = left;
    memcpy(to, (u8 *)c->peer_dev + ((u64)r.frame << G.page_shift) + off, n);
    to += n;
    left -= n;
    off = 0;
  }
  return 0;
}

// Copies a message into the frames of a posted receive. Input and output runs are walked side by side.
static int desc_deliver(const struct conn *c, const struct desc *d, struct op *o) {
  struct pool *p = &G.pool[o->pool];
  u64 at = o->off, left = d->len, off = d->off;
  struct runs it = runs_of(c->peer_dev, c->peer_frames, d);
  struct run r = { 0, 0 };
  const u8 *from = 0;
  u64 have = 0;
  if (d->kind == D_EAGER) {
    from = c->theirs->eager + d->off;
    have = left;
  }
  while (left) {
    if (!have) {
      if (runs_next(&it, &r) != 1) return -1;
      have = ((u64)r.count << G.page_shift) - off;
      from = (u8 *)c->peer_dev + ((u64)r.frame << G.page_shift) + off;
      off = 0;
    }
    // A page with a receive pending is never remapped, so the frame can be read without the pool's lock.
    // Neighbouring frames take one copy.
    u32 page = o->page + (u32)(at >> G.page_shift), f = p->frame[page], in = (u32)(at & (G.page_size - 1)), more = 1;
    u64 n = G.page_size - in;
    while (n < have && n < left && page + more < o->page + o->pages && p->frame[page + more] == f + more) {
      n += G.page_size;
      more++;
    }
    if (n > have) n = have;
    if (n > left) n = left;
    memcpy(frame_at(p, f) + in, from, n);
    from += n;
    have -= n;
    left -= n;
    at += n;
  }
  return 0;
}

static void release(struct conn *c, u32 id) {
  u64 t = c->mine->rel_tail;
  c->mine->rel[t % RELEASE_SLOTS] = id;
  store_rel(&c->mine->rel_tail, t + 1);
}

// Takes the next descriptor, if there is one, as a private copy. 1, 0, or -1 for nonsense.
static int next_desc(struct conn *c, struct desc *d) {
  u64 tail = load_acq(&c->theirs->tx_tail);
  if (tail == c->rx_next) return 0;
  if (tail - c->rx_next > RING_SLOTS) return -1;
  const struct desc *s = &c->theirs->desc[c->rx_next % RING_SLOTS];
  for (u32 i = 0; i < 8; i++) ((u64 *)d)[i] = load_rlx((const u64 *)s + i);  // read once
  return desc_ok(c, d) ? 1 : -1;
}
static void consumed(struct conn *c) { store_rel(&c->mine->rx_head, ++c->rx_next); }

// Is the message in `parking` still to be collected? Once it is, its operation is free or another.
static int parking_taken(const struct conn *c, s32 me) {
  if (c->parked < 0) return 0;
  const struct op *o = &G.op[c->parked];
  return load_acq(&o->state) == OP_DONE && o->conn == me && o->kind == OP_TAKE && o->d.kind == D_EAGER;
}

// Gives messages to the receives that wait for them, in order. -1 for nonsense from the peer.
static int receive_posted(struct conn *c) {
  int n = 0;
  while (c->rq.head >= 0) {
    s32 i = c->rq.head;
    struct op *o = &G.op[i];
    struct desc d;
    int r = next_desc(c, &d);
    if (r <= 0) return r < 0 ? -1 : n;
    s32 status = 0;
    o->got = d.len;
    if (o->kind == OP_IN && d.len > o->len) {
      status = -E_MSGSIZE;  // the message stays for a receive it fits
    } else if (o->kind == OP_IN) {
      if (desc_deliver(c, &d, o)) return -1;
      consumed(c);
      if (d.kind != D_EAGER) release(c, d.id);
    } else if (d.kind == D_EAGER) {
      // Small messages are parked in frames of ours: the ring moves on though JavaScript has not looked yet.
      // Without a free frame they go one at a time, because what frees the frames may be what a message says.
      struct pool *p = &G.pool[o->pool];
      o->len = d.len;
      lock(&p->lock);
      int short_ = frames_for(p, o, i, d.len);
      unlock(&p->lock);
      if (!short_) {
        o->flags |= OP_PARKED;
        fill_frames(p, o, c->theirs->eager + d.off);
      } else if (!parking_taken(c, o->conn)) {
        c->parked = i;
        o->d = d;
        memcpy(c->parking, c->theirs->eager + d.off, d.len);
      } else {
        return n;  // tried again when JavaScript has collected the one before
      }
      consumed(c);
    } else {
      o->d = d;
      consumed(c);
    }
    o->seq = (u32)(c->rx_next - 1);
    pop(&c->rq);
    complete(c, i, status);
    n++;
  }
  return n;
}

// ---- the state of a connection

static void fail_queue(struct conn *c, struct queue *q, s32 status) {
  for (s32 i; (i = pop(q)) >= 0;) complete(c, i, status);
}
static void fail_inflight(struct conn *c, s32 me, s32 status) {
  for (u32 i = 0; c->inflight && i < G.op_high; i++) {
    struct op *o = &G.op[i];
    if (o->conn == me && o->kind == OP_OUT && load_acq(&o->state) == OP_POSTED) {
      c->inflight--;
      complete(c, (s32)i, status);
    }
  }
}

// The peer sends what is not the protocol: everything ends here, and the peer hears no more of it.
static void cut_off(struct conn *c, s32 me) {
  c->state = CONN_BROKEN;
  fail_queue(c, &c->sq, -E_PROTO);
  fail_queue(c, &c->rq, -E_PROTO);
  fail_inflight(c, me, -E_PROTO);
  sys2(NR_shutdown, c->fd, 2 /* SHUT_RDWR */);
}

// Moves a connection on. Called with its lock held. Returns how many operations ended.
static int poll_locked(struct conn *c, s32 me) {
  int ended = 0, freed = 0;
  if (c->state == CONN_BROKEN) return 0;
  // The order matters at the end of a connection: first look whether it has ended, then take what is there.
  u32 hup = load_acq(&c->hup), their_state = load_acq(&c->theirs->state);

  u64 tail = load_acq(&c->theirs->rel_tail);
  if (tail - c->rel_seen > RELEASE_SLOTS) goto broken;
  for (; c->rel_seen != tail; c->rel_seen++) {
    u32 id = load_rlx(&c->theirs->rel[c->rel_seen % RELEASE_SLOTS]);
    if (id >= G.op_high) goto broken;
    struct op *o = &G.op[id];
    if (o->conn != me || o->kind != OP_OUT || load_acq(&o->state) != OP_POSTED) goto broken;
    c->inflight--;
    complete(c, (s32)id, 0);
    ended++;
  }
  if (see_space(c)) goto broken;
  if (c->state == CONN_OPEN) {
    if (c->sq.head >= 0 && send_queued(c)) wake(c, WANT_MESSAGE);
    if (c->rq.head >= 0) {
      int n = receive_posted(c);
      if (n < 0) goto broken;
      ended += n;
      freed = n;
    }
    if (freed) wake(c, WANT_SPACE | WANT_RELEASE);
    if (their_state == RING_ABORTED)
      c->state = CONN_PEER_ABORTED;
    else if (hup)
      c->state = their_state == RING_FINISHED ? CONN_ENDED : CONN_LOST;
  }
  if (c->state != CONN_OPEN && c->state != CONN_ABORTED) {
    // Nobody reads our frames any more, or wants them. What arrived before the end can still be received.
    s32 status = c->state == CONN_ENDED ? -E_PIPE : c->state == CONN_LOST ? -E_CONNRESET : -E_OWNERDEAD;
    fail_queue(c, &c->sq, status);
    fail_inflight(c, me, status);
    if (c->rq.head >= 0 && receive_posted(c) < 0) goto broken;
    if (load_acq(&c->theirs->tx_tail) == c->rx_next) fail_queue(c, &c->rq, status);
  } else if (c->state == CONN_ABORTED && (hup || their_state != RING_OPEN)) {
    fail_inflight(c, me, -E_CANCELED);
  }
  return ended;

broken:
  cut_off(c, me);
  return 1;
}

static void check_hangup(struct conn *c) {
  struct { s32 fd; u16 events, revents; } p = { c->fd, 0, 0 };
  struct timespec none = { 0, 0 };
  if (sys5(NR_ppoll, &p, 1, &none, 0, 8) > 0 && (p.revents & 0x18 /* POLLERR | POLLHUP */)) store_rel(&c->hup, 1);
}

// For a handler that waits: everything this process can bring forward, on any thread.
static void progress_all(void) {
  for (u32 i = 0, n = load_acq(&conns_high); i < n; i++) {
    struct conn *c = conn_at((s32)i);
    if (!c || !trylock(&c->lock)) continue;
    if (c->live) {
      if (c->checks++ % 64 == 0) check_hangup(c);
      poll_locked(c, (s32)i);
    }
    unlock(&c->lock);
  }
}

static int only_self_can(s32 i) {
  struct conn *c = conn_at(i);
  return c && c->local_tid && c->local_tid == thread_id();
}

// Of a pool's page, or (NONE) of any: by the time the lock is held the number may be another receive's.
static void revoke_receive(s32 i, s32 pool, u32 page, s32 status) {
  struct op *o = &G.op[i];
  struct conn *c = conn_at(o->conn);
  if (!c) {
    o->flags |= OP_VIOLATED;
    return;
  }
  lock(&c->lock);
  int same = page == NONE || (o->pool == pool && page - o->page < o->pages);
  if (same && unlink_op(&c->rq, i)) {
    complete(c, i, status);
    bell_ring(c->bell);  // this may be another thread than the one that waits for the receive
  }
  unlock(&c->lock);
}

// ---- messages read in place

static int map_peer(struct conn *c, u32 page, u32 n, u32 frame, int prot, int flags) {
  u64 to = c->view + ((u64)page << G.page_shift);
  s64 r = sys6(NR_mmap, (s64)to, (s64)((u64)n << G.page_shift), prot, flags | MAP_FIXED, c->peer_fd,
               (s64)((u64)frame << G.page_shift));
  return r == (s64)to ? 0 : r < 0 ? (int)r : -E_NOMEM;
}

// The mappings that writes to [page, page+n) were accounted for.
static s64 private_maps(struct conn *c, u32 page, u32 n) {
  s64 maps = 0;
  for (u32 i = page; i < page + n; i++) maps += c->flags[i] & FIRST ? 2 : 0;
  return maps;
}

// Lets go of a message read in place, and puts back the peer's own pages where the program had written. The
// lock is held.
static void let_go(struct conn *c, u32 page, u32 n) {
  for (u32 i = page, j; i < page + n; i = j) {
    j = i + 1;
    if (c->flags[i] & PRIVATE) {
      while (j < page + n && (c->flags[j] & PRIVATE)) j++;
      if (map_peer(c, i, j - i, i, PROT_READ, MAP_SHARED)) {
        // No mapping left. What the program wrote stays there, so nothing is read in place there any more.
        for (u32 k = i; k < j; k++) c->flags[k] &= (u8)~HELD;
        continue;
      }
      account(-private_maps(c, i, j - i));
    }
    memset(c->flags + i, 0, j - i);
  }
}

// Takes a place of the arena back.
static void close_alias(struct conn *c, u32 page, u32 n) {
  account(-private_maps(c, page, n));
  memset(c->flags + page, 0, n);
  sys6(NR_mmap, (s64)(c->view + ((u64)page << G.page_shift)), (s64)((u64)n << G.page_shift), PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

// A write to a message read in place gets a private page, by the kernel's own copy-on-write, until the
// message is released.
static int peer_fault(u64 address) {
  for (u32 i = 0, n = load_acq(&conns_high); i < n; i++) {
    struct conn *c = conn_at((s32)i);
    if (!c || address - c->view >= (u64)(c->peer_frames + c->arena) << G.page_shift) continue;
    lock(&c->lock);
    if (!c->live || address - c->view >= (u64)(c->peer_frames + c->arena) << G.page_shift) {
      unlock(&c->lock);
      continue;
    }
    u32 page = (u32)((address - c->view) >> G.page_shift), m = 1, all = c->peer_frames + c->arena;
    int r = 0, in_place = page < c->peer_frames;
    if (c->flags[page] & HELD) {
      if (!(c->flags[page] & PRIVATE)) {
        u32 want = page == c->hint ? (c->chunk < 64 ? c->chunk * 4 : 256) : 1;
        u32 f = in_place ? page : c->alias[page - c->peer_frames];
        while (m < want && page + m < all && c->flags[page + m] == HELD && (page + m < c->peer_frames) == in_place &&
               (in_place || c->alias[page + m - c->peer_frames] == f + m))
          m++;
        r = map_peer(c, page, m, f, PROT_READ | PROT_WRITE, MAP_PRIVATE);
        if (r && m > 1) r = map_peer(c, page, m = 1, f, PROT_READ | PROT_WRITE, MAP_PRIVATE);
        if (!r) {
          for (u32 k = 0; k < m; k++) c->flags[page + k] |= PRIVATE;
          c->flags[page] |= FIRST;
          account(2);  // past the budget if need be: it must not fail
          struct pool *p = &G.pool[c->pool];
          lock(&p->lock);  // the program may have closed its pool before the channel
          if (p->live) p->stat[S_FOREIGN_PRIVATE] += m;
          unlock(&p->lock);
          c->hint = page + m;
          c->chunk = m;
        }
      }
      unlock(&c->lock);
      return r == 0;
    }
    unlock(&c->lock);
    return 0;  // a write through a view of a released message: a stray pointer like any other
  }
  return 0;
}

static struct op *message_of(struct conn *c, s32 i) {
  if (i < 0) return &c->taken;
  return (u32)i < G.op_high && G.op[i].state == OP_DONE && G.op[i].kind == OP_TAKE ? &G.op[i] : 0;
}

// The address of a message that is one run of frames nobody else is reading here; 0 if it is not.
EXPORT f64 moat_msg_in_place(s32 ci, s32 i) {
  struct conn *c = conn_at(ci);
  struct op *o = c ? message_of(c, i) : 0;
  if (!o || o->d.kind != D_PAGES || o->d.nruns != 1) return 0;
  u32 f = o->d.run[0].frame, n = o->d.run[0].count;
  lock(&c->lock);
  for (u32 k = f; k < f + n; k++)
    if (c->flags[k]) {
      unlock(&c->lock);
      return 0;
    }
  memset(c->flags + f, HELD, n);
  unlock(&c->lock);
  return (f64)(c->view + ((u64)f << G.page_shift) + o->d.off);
}

// Maps a message of any runs at a place of its own in the arena. Returns its address, or -errno.
EXPORT f64 moat_msg_alias(s32 ci, s32 i, u32 at) {
  struct conn *c = conn_at(ci);
  struct op *o = c ? message_of(c, i) : 0;
  if (!o || at >= c->arena) return -E_INVAL;
  u32 pages = (u32)((o->d.off + o->d.len + G.page_size - 1) >> G.page_shift);
  if (pages > c->arena - at) return -E_INVAL;
  if (budget(o->d.nruns + 1)) return -E_NOMEM;
  struct runs it = runs_of(c->peer_dev, c->peer_frames, &o->d);
  struct run r;
  u32 k = 0;
  int e = 0, more;
  lock(&c->lock);
  while ((more = runs_next(&it, &r)) == 1 && !e) {
    if (r.count > pages - k) {
      more = -1;
      break;
    }
    e = map_peer(c, c->peer_frames + at + k, r.count, r.frame, PROT_READ, MAP_SHARED);
    for (u32 j = 0; j < r.count && !e; j++, k++) {
      c->alias[at + k] = r.frame + j;
      c->flags[c->peer_frames + at + k] = HELD;
    }
  }
  if (more < 0 || k != pages) e = e ? e : -E_PROTO;
  if (e) {
    close_alias(c, c->peer_frames + at, k);
    account(-(s64)(o->d.nruns + 1));
  }
  unlock(&c->lock);
  if (e) return e;
  return (f64)(c->view + ((u64)(c->peer_frames + at) << G.page_shift) + o->d.off);
}

// Copies a message out. 0, or -EPROTO if its list of runs does not hold.
EXPORT s32 moat_msg_copy(s32 ci, s32 i, u8 *to) {
  struct conn *c = conn_at(ci);
  struct op *o = c ? message_of(c, i) : 0;
  if (!o) return -E_INVAL;
  if (o->d.kind == D_EAGER) {
    if (i >= 0 && i != c->parked) return -E_INVAL;
    memcpy(to, i < 0 ? c->scratch : c->parking, o->d.len);
    return 0;
  }
  if (!desc_copy(c, &o->d, to)) return 0;
  lock(&c->lock);
  if (c->state != CONN_BROKEN) cut_off(c, ci);
  unlock(&c->lock);
  return -E_PROTO;
}

// Copies a small message out of the frames it was parked in; moat_op_free gives them back.
EXPORT s32 moat_msg_unpark(s32 i, u8 *to) {
  if (i < 0 || (u32)i >= G.op_high || G.op[i].state != OP_DONE || !(G.op[i].flags & OP_PARKED)) return -E_INVAL;
  struct op *o = &G.op[i];
  struct pool *p = &G.pool[o->pool];
  struct runs it = runs_of(p->dev, p->frames, &o->d);
  struct run r;
  u64 left = o->len;
  while (left && runs_next(&it, &r) == 1) {
    u64 n = (u64)r.count << G.page_shift;
    if (n > left) n = left;
    memcpy(to, frame_at(p, r.frame), n);
    to += n;
    left -= n;
  }
  return 0;
}

// Ends the reading of a message: its pages are the peer's again. `page` is its place among the pages of the
// view, or -1 if it was copied; runs is what its alias cost.
EXPORT s32 moat_msg_release(s32 ci, u32 id, s32 page, u32 n, u32 runs) {
  struct conn *c = conn_at(ci);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  if (page >= 0 && (u32)page < c->peer_frames) {
    let_go(c, (u32)page, n);
  } else if (page >= 0) {
    close_alias(c, (u32)page, n);
    account(-(s64)(runs + 1));
  }
  if (c->state == CONN_OPEN || c->state == CONN_PEER_ABORTED) {
    release(c, id);
    wake(c, WANT_RELEASE);
  }
  unlock(&c->lock);
  return 0;
}

// ---- what JavaScript calls

EXPORT s32 moat_conn_add(s32 pool, s32 fd, s32 peer_fd, f64 mine, f64 theirs, f64 peer_dev, f64 view, u32 peer_frames,
                         u32 arena, s32 local_tid) {
  if (!pool_of(pool)) return -E_INVAL;
  u32 *marks = map_anonymous(peer_frames + (u64)arena * 5);
  if (!marks) return -E_NOMEM;
  lock(&conns_lock);
  s32 i = 0;
  while (i < MAX_CONNS && conns[i] && load_acq(&conns[i]->live)) i++;
  struct conn *c = i == MAX_CONNS ? 0 : conns[i] ? conns[i] : map_anonymous(sizeof *c);
  if (!c) {
    unlock(&conns_lock);
    sys2(NR_munmap, marks, peer_frames + (u64)arena * 5);
    return i == MAX_CONNS ? -E_NFILE : -E_NOMEM;
  }
  lock(&c->lock);
  memset((u8 *)c + 8, 0, sizeof *c - 8);  // all but live and lock
  c->bell = -1;
  c->pool = pool;
  c->fd = fd;
  c->peer_fd = peer_fd;
  c->mine = (struct ring *)(u64)mine;
  c->theirs = (const struct ring *)(u64)theirs;
  c->peer_dev = (u64)peer_dev;
  c->view = (u64)view;
  c->peer_frames = peer_frames;
  c->arena = arena;
  c->local_tid = local_tid;
  c->alias = marks;
  c->flags = (u8 *)(marks + arena);
  c->sq = c->rq = c->cq = (struct queue){ -1, -1 };
  c->parked = -1;
  store_rel(&c->live, 1);
  unlock(&c->lock);
  store_rel(&conns[i], c);
  if ((u32)i == conns_high) store_rel(&conns_high, (u32)i + 1);
  unlock(&conns_lock);
  return i;
}

// Forgets a connection. JavaScript unmaps the rings and the peer's memory afterwards. Everything still in
// flight must have ended: -EBUSY if not.
EXPORT s32 moat_conn_remove(s32 i) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  int busy = c->inflight || c->sq.head >= 0 || c->rq.head >= 0 || c->cq.head >= 0;
  if (!busy) {
    store_rel(&c->live, 0);
    sys2(NR_munmap, c->alias, c->peer_frames + (u64)c->arena * 5);
  }
  unlock(&c->lock);
  return busy ? -E_BUSY : 0;
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

// A small message, through the ring. -EAGAIN: no room now, or others queue before it.
EXPORT s32 moat_conn_eager(s32 i, const u8 *src, u32 len) {
  struct conn *c = conn_at(i);
  if (!c || len > EAGER_MAX) return -E_INVAL;
  lock(&c->lock);
  s32 r = state_error(c->state);
  if (!r && see_space(c)) r = -E_AGAIN;
  if (!r && (c->sq.head >= 0 || c->tx_tail - c->tx_seen >= RING_SLOTS)) r = -E_AGAIN;
  u64 at = c->eager_tail, off = at % EAGER_BYTES;
  if (off + len > EAGER_BYTES) {
    at += EAGER_BYTES - off;
    off = 0;
  }
  if (!r && at + len - c->eager_freed > EAGER_BYTES) r = -E_AGAIN;
  unlock(&c->lock);
  if (r) return r;
  // Only the thread that owns the channel sends, so nobody else moves eager_tail; and the bytes may be
  // guarded memory, whose fault must find the lock free.
  memcpy(c->mine->eager + off, src, len);
  lock(&c->lock);
  c->eager_tail = at + len;
  struct desc d = { 0, D_EAGER, len, (u32)off, 0, { { 0, 0 }, { 0, 0 }, { 0, 0 }, { 0, 0 } }, 0, 0 };
  publish(c, &d);
  wake(c, WANT_MESSAGE);
  unlock(&c->lock);
  return 0;
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
    if (see_space(c) == 0 && send_queued(c)) wake(c, WANT_MESSAGE);
  }
  unlock(&c->lock);
  return 0;
}

EXPORT s32 moat_take_new(s32 pool) { return pool_of(pool) ? op_new(OP_TAKE, pool) : -E_INVAL; }

// Hands a receive to the transport. It may have ended when this returns.
EXPORT s32 moat_conn_recv(s32 i, s32 op) {
  struct conn *c = conn_at(i);
  if (!c || op < 0 || (u32)op >= G.op_high || G.op[op].state != OP_HELD) return -E_INVAL;
  lock(&c->lock);
  G.op[op].conn = i;
  store_rel(&G.op[op].state, OP_QUEUED);
  push(&c->rq, op);
  if (c->state == CONN_BROKEN || c->state == CONN_ABORTED)
    fail_queue(c, &c->rq, state_error(c->state));
  else
    poll_locked(c, i);
  unlock(&c->lock);
  return 0;
}

// Takes a message that is there now, or comes within `spin` ns, if nobody waits for it before. 1, 0 or -errno.
EXPORT s32 moat_conn_take(s32 i, f64 spin) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  u64 until = 0;
  for (u32 turn = 1;; turn++) {
    lock(&c->lock);
    s32 r = 0;
    if (c->state == CONN_BROKEN || c->state == CONN_ABORTED)
      r = state_error(c->state);
    else if (c->rq.head >= 0)
      r = 0;
    else {
      struct op *o = &c->taken;
      r = next_desc(c, &o->d);
      if (r < 0) {
        cut_off(c, i);
        r = -E_PROTO;
      } else if (r > 0) {
        o->kind = OP_TAKE;
        o->len = o->got = o->d.len;
        if (o->d.kind == D_EAGER) memcpy(c->scratch, c->theirs->eager + o->d.off, o->d.len);
        consumed(c);
        wake(c, WANT_SPACE);
      } else if (c->state != CONN_OPEN)
        r = state_error(c->state);
    }
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
  lock(&c->lock);
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
// Operations under way: sends queued or unreleased, receives waiting, results not collected.
EXPORT s32 moat_conn_busy(s32 i) {
  struct conn *c = conn_at(i);
  return c ? (s32)c->inflight + (c->sq.head >= 0) + (c->rq.head >= 0) + (c->cq.head >= 0) : 0;
}
EXPORT s32 moat_conn_check(s32 i) {
  struct conn *c = conn_at(i);
  if (c) check_hangup(c);
  return 0;
}

// Takes a receive back: it ends with -ECANCELED unless its message was there first. The guard opens.
EXPORT s32 moat_conn_cancel(s32 op) {
  if (op < 0 || (u32)op >= G.op_high || G.op[op].conn < 0) return -E_INVAL;
  revoke_receive(op, 0, NONE, -E_CANCELED);
  return 0;
}

// Goes to sleep: the peer will send a byte when something happens. 1 if something already has.
EXPORT s32 moat_conn_arm(s32 i) {
  struct conn *c = conn_at(i);
  if (!c) return 0;
  lock(&c->lock);
  u32 want = (c->rq.head >= 0 ? WANT_MESSAGE : 0) | (c->inflight ? WANT_RELEASE : 0) |
             (c->sq.head >= 0 ? WANT_SPACE | WANT_RELEASE : 0);
  store_rlx(&c->mine->want_seq, c->mine->want_seq + 1);
  store_rlx(&c->mine->want, want);
  fence_full();
  int ended = poll_locked(c, i);
  int work = ended || c->cq.head >= 0;
  unlock(&c->lock);
  return work;
}
EXPORT s32 moat_conn_disarm(s32 i) {
  struct conn *c = conn_at(i);
  if (c) store_rlx(&c->mine->want, 0);
  return 0;
}

// Says goodbye: finished (everything has been drained) or aborted. Receives and unpublished sends end; what
// the peer still reads stays guarded until it lets go or goes away.
EXPORT s32 moat_conn_end(s32 i, s32 abort) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  store_rel(&c->mine->state, abort ? RING_ABORTED : RING_FINISHED);
  if (c->state == CONN_OPEN) c->state = CONN_ABORTED;
  fail_queue(c, &c->sq, -E_CANCELED);
  fail_queue(c, &c->rq, -E_CANCELED);
  sys6(NR_sendto, c->fd, (s64) "w", 1, 0x4040, 0, 0);
  poll_locked(c, i);
  unlock(&c->lock);
  return 0;
}

// Where JavaScript reads what take() and next() hand over: two operations, one behind the other.
EXPORT f64 moat_conn_report(s32 i) {
  struct conn *c = conn_at(i);
  return c ? (f64)(u64)&c->taken : 0;
}
EXPORT f64 moat_op_address(s32 i) { return i >= 0 && (u32)i < G.op_high ? (f64)(u64)&G.op[i] : 0; }
EXPORT s32 moat_thread_id(void) { return thread_id(); }
