// Sending over verbs: small messages in slots or from their pages, large ones announced.
#include "conn.h"

static int rdma_poll(struct conn *c, s32 me);  // rdma.c

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
static int mend_send(s32 i) {
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
  return 0;
}

// Writes a message's header behind that of the protocol. Returns where the next bytes go.
static u8 *put_head(struct header *h, struct pool *p, struct op *o) {
  h->head = (u16)o->head_len;
  if (o->head_len) {
    memcpy(h + 1, head_bytes(p, o), o->head_len);
    head_sent(p, o);
  }
  return (u8 *)(h + 1) + o->head_len;
}
static int fits_slot(const struct op *o) { return o->d.len + o->head_len <= EAGER_BYTES_RDMA; }

// Sends a small message from its pages: it ends when the device has sent them.
static int send_small(struct conn *c, struct pool *p, s32 i) {
  struct op *o = &G.op[i];
  struct ibv_sge sge[MAX_SGE];
  u8 slot = slot_take(c, CONTROL_SLOTS);
  struct header *h = head_of(c, slot, M_EAGER);
  h->len = o->d.len;
  u8 *to = put_head(h, p, o);
  u32 len = (u32)sizeof *h + h->head;
  s32 n = frames_to_sges(c, p, &o->d, sge, c->max_sge - 1);
  c->data_sent++;
  if (n >= 0) return post_slot(c, slot, len, W_OP, i, sge, (u32)n);
  copy_out(p, &o->d, o->d.len, to);  // in more pieces than the device takes
  return post_slot(c, slot, len + (u32)o->d.len, W_OP, i, 0, 0);
}

// Announces a large one, in as many slots as its list of frames needs.
static int announce(struct conn *c, struct pool *p, s32 i) {
  struct op *o = &G.op[i];
  struct runs it = runs_of(p->dev, p->frames, &o->d);
  int bad = 0;
  for (u32 left = o->d.nruns; left && !bad;) {
    u8 slot = slot_take(c, CONTROL_SLOTS);
    struct header *h = head_of(c, slot, M_PAGES);
    u32 most = RUNS_IN_SLOT, first = left == o->d.nruns;
    if (first) put_head(h, p, o);
    most -= HEAD_RUNS(h->head);
    struct run *r = runs_in(h);
    while (h->count < most && runs_next(&it, &r[h->count]) == 1) h->count++;
    left -= h->count;
    h->flag = left != 0;
    h->len = o->d.len;
    h->id = (u32)i;
    h->off = o->d.off;
    c->data_sent++;
    bad = post_slot(c, slot, (u32)((u8 *)(r + h->count) - (u8 *)h), W_SLOT, i, 0, 0);
  }
  return bad;
}

// Sends what is queued, as far as credits, slots, the send queue and frames go.
static void rdma_flush(struct conn *c) {
  while (c->sq.head >= 0 && !c->dead && sq_space(c) > 8) {
    s32 i = c->sq.head;
    struct op *o = &G.op[i];
    struct pool *p = &G.pool[o->pool];
    if (unstage(c, i, c->raw)) break;
    u32 most = c->raw ? c->max_sge - (o->head_len != 0) : MAX_CHAIN * RUNS_IN_SLOT - HEAD_RUNS(o->head_len);
    if (o->d.nruns > most) {
      int r = mend_send(i);
      if (!r && o->d.nruns > most) r = -E_NOBUFS;
      if (r) {
        pop(&c->sq);
        complete(c, i, r);
        continue;
      }
    }
    struct ibv_sge sge[MAX_SGE];
    int bad, small = 0;
    if (c->raw) {
      struct ibv_send_wr wr = { 0 };
      u32 head = o->head_len != 0;  // before the data, as one message: such a peer takes it for that
      if (head) sge[0] = (struct ibv_sge){ (u64)head_bytes(p, o), o->head_len, c->pool_lkey };
      wr.sg_list = sge;
      wr.num_sge = (s32)head + frames_to_sges(c, p, &o->d, sge + head, c->max_sge - head);
      wr.opcode = WR_SEND;
      bad = post(c, &wr, W_OP, NO_SLOT, i, 1);
    } else {
      small = fits_slot(o);
      u32 need = small ? 1 : (o->d.nruns + HEAD_RUNS(o->head_len) + RUNS_IN_SLOT - 1) / RUNS_IN_SLOT;
      if (c->data_sent - c->data_seen + need > DATA_SLOTS || c->nsend_free < need + CONTROL_SLOTS) break;
      bad = small ? send_small(c, p, i) : announce(c, p, i);
    }
    if (bad) break;  // dead: everything queued ends with the connection
    pop(&c->sq);
    if (c->raw || small) __atomic_or_fetch(&o->flags, OP_AT_DEVICE, __ATOMIC_RELAXED);
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
