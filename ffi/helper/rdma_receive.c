// Receiving over verbs: messages in slots, announced ones that are read, and those that are read ahead.
#include "conn.h"

static inline struct header *arrived_head(struct conn *c) {
  return (struct header *)recv_slot(c, c->arrived[c->arr_head % RECV_SLOTS]);
}

// Posts reads of the message being pulled, from the peer's runs of frames to ours.
static void post_reads(struct conn *c) {
  while (c->pulling >= 0 && !c->dead) {
    struct op *o = &G.op[c->pulling];
    const struct pool *p = &G.pool[o->pool];
    struct header *h = (struct header *)recv_slot(c, c->pull_slot);
    const struct run *runs = runs_in(h);
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
    if (n != h && n->head) return -1;
    const struct run *r = runs_in(n);
    for (u32 i = 0; i < n->count; i++) pages += r[i].count;
    if (!n->flag) return pages == want ? 1 : -1;
  }
  return 0;
}

// Begins to read the announced message at the head into a receive. -ENOBUFS: there is no room for its header.
static int pull(struct conn *c, s32 i) {
  struct op *o = &G.op[i];
  struct header *h = arrived_head(c);
  int r = head_keep(c, i, (u8 *)(h + 1), h->head);
  if (r) return r;
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
  return 0;
}

// Can the message at the head be read now? It is then whole, and nothing else is being posted.
static int can_pull(struct conn *c) {
  if (c->arr_head == c->arr_tail || arrived_head(c)->kind != M_PAGES || c->dead || c->pulling >= 0) return 0;
  int whole = announced(c);
  if (whole < 0) rdma_die(c, CONN_BROKEN);
  return whole > 0 && c->nreleases + c->pulls < RELEASES && head_room(c, arrived_head(c)->head);
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

// Hands what landed at `r` over as the message of `o`, which is operation i, or (-1) the message taken.
static void claim(struct conn *c, struct op *o, s32 i, s32 r) {
  pop(&c->ahead);
  c->nahead--;
  c->no_room = 0;
  o->kind = OP_TAKE;
  o->flags = 0;
  o->d.kind = D_LANDED;
  o->seq = (u32)r;
  o->len = o->got = G.op[r].got;
  if (i >= 0) {
    head_move(c, o, i, &G.op[r], r);
  } else {
    moat_msg_header(G.op[r].conn, r, c->head);
    o->head_len = G.op[r].head_len;
  }
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
        head_move(c, o, i, &G.op[r], r);
        pop(&c->ahead);
        c->nahead--;
        push(&c->cq, r);  // JavaScript has its pages back
        pop(&c->rq);
        complete(c, i, 0);
      } else {
        pop(&c->rq);
        claim(c, o, i, r);
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
      if (pull(c, i)) break;
      pop(&c->rq);
      continue;
    }
    if (head_keep(c, i, (u8 *)(h + 1), h->head)) break;
    u32 slot = c->arrived[c->arr_head++ % RECV_SLOTS];
    pop(&c->rq);
    if (o->kind == OP_IN) {
      copy_in(&G.pool[o->pool], o, 0, (const u8 *)(h + 1) + h->head, h->len);
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
static s32 rdma_collect(struct conn *c, s32 me, s32 i, struct op *o, u8 *to) {
  (void)me, (void)i;
  if (o->d.kind != D_EAGER || o->d.off >= RECV_SLOTS) return -E_INVAL;
  struct header *h = (struct header *)recv_slot(c, o->d.off);
  memcpy(to, (u8 *)(h + 1) + h->head, o->got);
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
    claim(c, o, -1, r);
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
  o->head_len = h->head;
  memcpy(c->head, h + 1, h->head);
  return 1;
}

// Is what arrived a message of this protocol? The slot is ours: nobody changes it any more.
static int header_ok(const struct conn *c, struct header *h, u32 bytes) {
  if (bytes < sizeof *h || h->head > HEADER_MAX) return 0;
  if (h->kind == M_EAGER) return h->head <= bytes - sizeof *h && h->len == bytes - sizeof *h - h->head;
  if (h->kind == M_CONTROL) return bytes == sizeof *h + h->count * 4u && h->flag <= BYE_ABORTED && !h->head;
  if (h->kind != M_PAGES || bytes != sizeof *h + (HEAD_RUNS(h->head) + h->count) * 8u) return 0;
  if (!h->len || h->off >= G.page_size || h->len > (u64)c->remote_frames << G.page_shift) return 0;
  const struct run *r = runs_in(h);
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
