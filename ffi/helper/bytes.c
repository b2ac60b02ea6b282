// The bytes of messages and of their headers, on their way between frames and where a transport has them.
// Transports call with the connection locked.
#include "conn.h"

// The first `len` bytes of what a send's list of frames holds, or of a receive's pages.
static void copy_out(struct pool *p, const struct desc *d, u64 len, u8 *to) {
  struct runs it = runs_of(p->dev, p->frames, d);
  struct run r;
  u64 off = d->off;
  while (len && runs_next(&it, &r) == 1) {
    u64 n = ((u64)r.count << G.page_shift) - off;
    if (n > len) n = len;
    memcpy(to, frame_at(p, r.frame) + off, n);
    to += n;
    len -= n;
    off = 0;
  }
}
// The neighbouring bytes of a posted receive from `at` on: their address, and how many there are, at most
// `most`. A page with a receive pending is never remapped, so this needs no lock.
static u64 place_of(const struct pool *p, const struct op *o, u64 at, u64 most, u8 **address) {
  at += o->off;
  u32 page = o->page + (u32)(at >> G.page_shift), f = p->frame[page], in = (u32)(at & (G.page_size - 1)), more = 1;
  u64 n = G.page_size - in;
  while (n < most && page + more < o->page + o->pages && p->frame[page + more] == f + more) {
    n += G.page_size;
    more++;
  }
  *address = (u8 *)(p->dev + ((u64)f << G.page_shift)) + in;
  return n < most ? n : most;
}
static void copy_in(const struct pool *p, const struct op *o, u64 at, const u8 *from, u64 len) {
  while (len) {
    u8 *to;
    u64 n = place_of(p, o, at, len, &to);
    memcpy(to, from, n);
    from += n;
    at += n;
    len -= n;
  }
}

// ---- frames for what is sent

// There is no frame for what a connection has to do: its bell rings when there is.
static void starve(const struct conn *c, struct pool *p) {
  p->starved = c->bell + 1;
  fence_full();
  if (p->nfree || p->nkept) feed(p);  // since it was looked for
}

// Brings the copy that a send at the head of the queue has elsewhere into frames, and its header if that has to
// be `registered` memory. -ENOBUFS: there are none yet, and the bell will ring.
static int unstage(struct conn *c, s32 i, u32 registered) {
  struct op *o = &G.op[i];
  struct pool *p = &G.pool[o->pool];
  if (o->flags & OP_STAGED) {
    lock(&p->lock);
    int r = frames_for(p, o, i, o->len);
    if (r) p->starved = c->bell + 1;
    unlock(&p->lock);
    if (r) return r;
    o->flags &= (u16)~OP_STAGED;
    fill_frames(p, o, (const u8 *)o->src);  // a copy only this operation knows: it cannot fault
  }
  if (o->head_src && registered) {
    if (head_park(p, o, (const u8 *)o->head_src, o->head_len)) {
      starve(c, p);
      return -E_NOBUFS;
    }
    o->head_src = 0;
  }
  return 0;
}

// ---- headers

// A send's header, or that of a message that has a frame for it.
static const u8 *head_bytes(struct pool *p, const struct op *o) {
  return o->head_frame ? frame_at(p, o->head_frame - 1) : (const u8 *)o->head_src;
}
// It has been copied to the wire: its frame is not needed any more.
static void head_sent(struct pool *p, struct op *o) {
  lock(&p->lock);
  head_unref(p, o);
  unlock(&p->lock);
  if (unlikely(p->starved)) feed(p);
}

// Is the header in `parked_head` still to be collected? Once it is, its operation is free or another.
static int head_waits(const struct conn *c) {
  if (c->head_parked < 0) return 0;
  const struct op *o = &G.op[c->head_parked];
  u32 state = load_acq(&o->state);
  return (state == OP_DONE || state == OP_POSTED) && conn_at(o->conn) == c && o->kind != OP_OUT && o->head_len &&
         !o->head_frame;
}
// Is there room for the header of a received message?
static int head_room(struct conn *c, u32 len) {
  struct pool *p = &G.pool[c->pool];
  if (!len || p->nfree || p->nkept || !head_waits(c)) return 1;
  starve(c, p);
  return 0;
}
// Keeps a received message's header until JavaScript collects it. Without a free frame they go one at a time,
// because what frees the frames may be what a message says. -ENOBUFS: not now; the bell will ring.
static int head_keep(struct conn *c, s32 i, const u8 *from, u32 len) {
  struct op *o = &G.op[i];
  struct pool *p = &G.pool[o->pool];
  if (!len || !head_park(p, o, from, len)) return 0;
  if (head_waits(c)) {
    starve(c, p);
    return -E_NOBUFS;
  }
  memcpy(c->parked_head, from, len);
  c->head_parked = i;
  o->head_len = len;
  return 0;
}
// The message is not taken yet after all.
static void head_drop(struct op *o) {
  if (o->head_frame) head_sent(&G.pool[o->pool], o);
  o->head_len = 0;
}
// A received message goes from one operation to another.
static void head_move(struct conn *c, struct op *to, s32 i, struct op *from, s32 was) {
  to->head_len = from->head_len;
  to->head_frame = from->head_frame;
  if (from->head_len && !from->head_frame && c->head_parked == was) c->head_parked = i;
  from->head_len = from->head_frame = 0;
}

// ---- what JavaScript calls

// Copies a small message out of the frames it was parked in; moat_op_free gives them back.
EXPORT s32 moat_msg_unpark(s32 i, u8 *to) {
  if (i < 0 || (u32)i >= G.op_high || G.op[i].state != OP_DONE || !(G.op[i].flags & OP_PARKED)) return -E_INVAL;
  copy_out(&G.pool[G.op[i].pool], &G.op[i].d, G.op[i].len, to);
  return 0;
}
// Copies the header of a message out, or (-1) of the message taken.
EXPORT s32 moat_msg_header(s32 ci, s32 i, u8 *to) {
  struct conn *c = conn_at(ci);
  if (!c) return -E_INVAL;
  if (i < 0) {
    memcpy(to, c->head, c->taken.head_len);
    return 0;
  }
  struct op *o = &G.op[i];
  if ((u32)i >= G.op_high || load_acq(&o->state) != OP_DONE || o->conn != ci || o->kind == OP_OUT) return -E_INVAL;
  memcpy(to, o->head_frame ? head_bytes(&G.pool[o->pool], o) : c->parked_head, o->head_len);
  return 0;
}
