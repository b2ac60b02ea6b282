// The shared-memory transport (shm.h): rings, sending, receiving. Every function here may run in the fault
// handler of any thread.
#include "conn.h"

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

// Where the next `len` bytes go in the eager ring, in one piece. -EAGAIN: the peer has not consumed enough.
static s32 eager_place(const struct conn *c, u32 len, u64 *at) {
  u64 off = c->eager_tail % EAGER_BYTES;
  *at = off + len > EAGER_BYTES ? c->eager_tail + EAGER_BYTES - off : c->eager_tail;
  return *at + len - c->eager_freed > EAGER_BYTES ? -E_AGAIN : 0;
}

// Is a send's data a copy that goes through the eager ring, as it would have gone had it not had to queue?
static int goes_eager(const struct op *o) {
  return o->guard == GUARD_COPY && o->len && o->len <= (o->head_len ? EAGER_MAX : EAGER_QUEUED);
}

// Puts into the eager ring what of a message goes through it: its header, and behind it the data if that is a small
// copy: then the send is done. The data of others stays where it is, aligned to its pages.
static int send_eager(struct conn *c, struct op *o, struct desc *d, int small) {
  struct pool *p = &G.pool[o->pool];
  u32 len = o->head_len + (small ? (u32)o->len : 0);
  u64 at;
  if (eager_place(c, len, &at)) return -E_AGAIN;
  u32 off = (u32)(at % EAGER_BYTES), data = off + o->head_len;
  if (o->head_len) {
    memcpy(c->mine->eager + off, head_bytes(p, o), o->head_len);
    d->head = o->head_len << HEAD_SHIFT | off;
  }
  if (small) {
    if (o->flags & OP_STAGED)
      memcpy(c->mine->eager + data, (const u8 *)o->src, o->len);  // it never needed a frame
    else
      copy_out(p, d, o->len, c->mine->eager + data);
    *d = (struct desc){ d->id, D_EAGER, o->len, data, 0, { { 0, 0 } }, 0, d->head };
  }
  c->eager_tail = at + len;
  if (o->head_len) head_sent(p, o);
  return 0;
}

// Publishes what is queued, as far as the ring, the peer's holdings and the frames go.
static int send_queued(struct conn *c) {
  int n = 0;
  while (c->sq.head >= 0 && c->tx_tail - c->tx_seen < RING_SLOTS && c->inflight < RELEASE_SLOTS) {
    struct op *o = &G.op[c->sq.head];
    int small = goes_eager(o);
    if (!small && unstage(c, c->sq.head, 0)) break;
    struct desc d = o->d;
    if ((small || o->head_len) && send_eager(c, o, &d, small)) break;
    s32 i = pop(&c->sq);
    publish(c, &d);
    if (small) {
      complete(c, i, 0);
    } else {
      store_rel(&o->state, OP_POSTED);
      c->inflight++;
    }
    n++;
  }
  return n;
}

// ---- receiving

static inline u32 head_length(const struct desc *d) { return d->head >> HEAD_SHIFT; }
static inline const u8 *head_place(const struct conn *c, const struct desc *d) {
  return c->theirs->eager + (d->head & ((1u << HEAD_SHIFT) - 1));
}

static int desc_ok(const struct conn *c, const struct desc *d) {
  u32 head = head_length(d), at = d->head & ((1u << HEAD_SHIFT) - 1);
  if (head > HEADER_MAX || at > EAGER_BYTES - head || (!head && at)) return 0;
  if (d->kind == D_EAGER) return d->len <= EAGER_MAX && d->off <= EAGER_BYTES - d->len;
  if (d->kind != D_PAGES && d->kind != D_TABLE) return 0;
  // A message of nothing, for which the sender's ring had no room.
  if (!d->len) return d->kind == D_PAGES && !d->nruns && !d->off;
  if (d->off >= G.page_size || d->len > (u64)c->views.frames << G.page_shift) return 0;
  u64 pages = 0, want = (d->off + d->len + G.page_size - 1) >> G.page_shift;
  if (!d->nruns || d->nruns > want || d->nruns > MAX_RUNS) return 0;
  struct runs it = runs_of(c->peer_dev, c->views.frames, d);
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
  struct runs it = runs_of(c->peer_dev, c->views.frames, d);
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
  u64 at = 0, left = d->len, off = d->off;
  struct runs it = runs_of(c->peer_dev, c->views.frames, d);
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
    u8 *to;
    u64 n = place_of(p, o, at, have < left ? have : left, &to);
    memcpy(to, from, n);
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
  while (c->rq.head >= 0 && !c->carrying) {
    s32 i = c->rq.head;
    struct op *o = &G.op[i];
    struct desc d;
    int r = next_desc(c, &d);
    if (r <= 0) return r < 0 ? -1 : n;
    s32 status = 0;
    o->got = d.len;
    if (o->kind == OP_IN && d.len > o->len) {
      status = -E_MSGSIZE;  // the message stays for a receive it fits
    } else if (head_keep(c, i, head_place(c, &d), head_length(&d))) {
      return n;
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
        head_drop(o);
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

static void cut_off(struct conn *c, s32 me);
static int waits_large(const struct conn *c) {
  s32 i = c->rq.head;
  return i >= 0 && G.op[i].kind == OP_IN && G.op[i].len >= BACKGROUND;
}

// For the doorbell's thread: brings messages into large buffers without the connection's lock, so that the program can
// go on sending and receiving meanwhile. Nobody else takes a message until it has its place. Returns how many bytes.
static u64 carry(struct conn *c, s32 me) {
  u64 all = 0;
  while (all < TURN && waits_large(c) && !c->carrying && c->state == CONN_OPEN) {
    s32 i = c->rq.head;
    struct op *o = &G.op[i];
    struct desc d;
    if (next_desc(c, &d) <= 0 || d.len > o->len) break;  // see receive_posted()
    if (head_keep(c, i, head_place(c, &d), head_length(&d))) break;
    o->got = d.len;
    pop(&c->rq);
    c->carrying = (u32)i + 1;
    unlock(&c->lock);
    int r = desc_deliver(c, &d, o);
    lock(&c->lock);
    c->carrying = 0;
    // Not before: until then the receives behind it do not know the end of the connection for theirs.
    consumed(c);
    o->seq = (u32)(c->rx_next - 1);
    complete(c, i, r ? -E_PROTO : 0);
    if (r) {
      cut_off(c, me);
      break;
    }
    if (d.kind != D_EAGER) release(c, d.id);
    wake(c, WANT_SPACE | WANT_RELEASE);
    if (c->asleep) {  // it shall have this one while the next is brought in
      c->asleep = 0;
      bell_tell(c->bell);
    }
    all += d.len;
  }
  return all;
}

// ---- the state of a connection

// The peer sends what is not the protocol: everything ends here, and the peer hears no more of it.
static void cut_off(struct conn *c, s32 me) {
  c->state = CONN_BROKEN;
  fail_queue(c, &c->sq, -E_PROTO);
  fail_queue(c, &c->rq, -E_PROTO);
  fail_inflight(c, me, -E_PROTO);
  sys2(NR_shutdown, c->fd, 2 /* SHUT_RDWR */);
}

// Moves a connection on. Called with its lock held. Returns how many operations ended.
static int shm_poll(struct conn *c, s32 me) {
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

static void shm_check(struct conn *c, s32 me) {
  (void)me;
  struct { s32 fd; u16 events, revents; } p = { c->fd, 0, 0 };
  struct timespec none = { 0, 0 };
  if (sys5(NR_ppoll, &p, 1, &none, 0, 8) > 0 && (p.revents & 0x18 /* POLLERR | POLLHUP */)) store_rel(&c->hup, 1);
}

static s32 shm_eager(struct conn *c, s32 me, const u8 *src, u32 len) {
  (void)me;
  if (len > EAGER_MAX) return -E_INVAL;
  lock(&c->lock);
  s32 r = state_error(c->state);
  if (!r && see_space(c)) r = -E_AGAIN;
  if (!r && (c->sq.head >= 0 || c->tx_tail - c->tx_seen >= RING_SLOTS)) r = -E_AGAIN;
  u64 at = 0;
  if (!r) r = eager_place(c, len, &at);
  unlock(&c->lock);
  if (r) return r;
  u32 off = (u32)(at % EAGER_BYTES);
  // Only the thread that owns the channel sends, so nobody else moves eager_tail; and the bytes may be
  // guarded memory, whose fault must find the lock free.
  memcpy(c->mine->eager + off, src, len);
  lock(&c->lock);
  c->eager_tail = at + len;
  struct desc d = { 0, D_EAGER, len, off, 0, { { 0, 0 }, { 0, 0 }, { 0, 0 }, { 0, 0 } }, 0, 0 };
  publish(c, &d);
  wake(c, WANT_MESSAGE);
  unlock(&c->lock);
  return 0;
}

static void shm_flush(struct conn *c) {
  if (see_space(c) == 0 && send_queued(c)) wake(c, WANT_MESSAGE);
}

static s32 shm_take(struct conn *c, s32 me) {
  struct op *o = &c->taken;
  if (c->carrying) return 0;  // it comes after that message, however the connection has ended
  s32 r = next_desc(c, &o->d);
  if (r < 0) {
    cut_off(c, me);
    return -E_PROTO;
  }
  if (!r) return state_error(c->state);
  o->kind = OP_TAKE;
  o->len = o->got = o->d.len;
  o->head_len = head_length(&o->d);
  memcpy(c->head, head_place(c, &o->d), o->head_len);
  if (o->d.kind == D_EAGER) memcpy(c->scratch, c->theirs->eager + o->d.off, o->d.len);
  consumed(c);
  wake(c, WANT_SPACE);
  return 1;
}

// The peer will send a byte when what we want happens.
static int shm_arm(struct conn *c, s32 me) {
  u32 want = (c->rq.head >= 0 ? WANT_MESSAGE : 0) | (c->inflight ? WANT_RELEASE : 0) |
             (c->sq.head >= 0 ? WANT_SPACE | WANT_RELEASE : 0);
  store_rlx(&c->mine->want_seq, c->mine->want_seq + 1);
  store_rlx(&c->mine->want, want);
  fence_full();
  return shm_poll(c, me);
}

// The doorbell's thread was woken. It sees to large messages, because the program may compute until it touches them;
// the rest waits for JavaScript.
static int shm_event(struct conn *c, s32 me) {
  u64 all = 0;
  do all += carry(c, me);
  while (all < TURN && waits_large(c) && shm_arm(c, me));
  if (all >= TURN) {  // the others first
    c->kicked = 1;
    bell_kick(c->bell);
  }
  return 1;
}

static void shm_end(struct conn *c, s32 abort) {
  store_rel(&c->mine->state, abort ? RING_ABORTED : RING_FINISHED);
  sys6(NR_sendto, c->fd, (s64) "w", 1, 0x4040, 0, 0);
}

EXPORT s32 moat_shm_add(s32 pool, s32 fd, s32 peer_fd, f64 mine, f64 theirs, f64 peer_dev, f64 view, u32 peer_frames,
                        u32 arena, s32 local_tid) {
  if (!pool_of(pool)) return -E_INVAL;
  u32 *marks = map_anonymous(peer_frames + (u64)arena * 5);
  if (!marks) return -E_NOMEM;
  struct conn *c;
  s32 i = conn_new(pool, CONN_SHM, fd, local_tid, &c);
  if (i < 0) {
    sys2(NR_munmap, marks, peer_frames + (u64)arena * 5);
    return i;
  }
  c->mine = (struct ring *)(u64)mine;
  c->theirs = (const struct ring *)(u64)theirs;
  c->peer_dev = (u64)peer_dev;
  c->views = (struct arena){ (u64)view, peer_frames, arena, peer_fd, (u8 *)(marks + arena), marks, 0, 0, 0 };
  c->parked = -1;
  conn_begin(c);
  return i;
}
static void shm_hang_up(struct conn *c) { sys2(NR_shutdown, c->fd, 2 /* SHUT_RDWR */); }
static void shm_remove(struct conn *c) { sys2(NR_munmap, c->views.alias, c->views.frames + (u64)c->views.aliases * 5); }
