// Messages of shm:// read where they lie, in the sender's pages: in place, through an alias, or copied out.
#include "conn.h"

// A write to a message read in place.
static int peer_fault(u64 address) {
  for (u32 i = 0, n = load_acq(&conns_high); i < n; i++) {
    struct conn *c = conn_at((s32)i);
    if (!c || c->kind != CONN_SHM || !arena_has(&c->views, address)) continue;
    lock(&c->lock);
    int r = c->live && c->kind == CONN_SHM && arena_has(&c->views, address) ? arena_write(&c->views, address) : 0;
    if (r > 0) {
      struct pool *p = &G.pool[c->pool];
      lock(&p->lock);  // the program may have closed its pool before the channel
      if (p->live) p->stat[S_FOREIGN_PRIVATE] += (u64)r;
      unlock(&p->lock);
    }
    unlock(&c->lock);
    if (r) return r > 0;
  }
  return 0;
}

// The address of a message that is one run of frames nobody else is reading here; 0 if it is not.
EXPORT f64 moat_msg_in_place(s32 ci, s32 i) {
  struct conn *c = conn_at(ci);
  struct op *o = c ? message_of(c, i) : 0;
  if (!o) return 0;
  lock(&c->lock);
  u64 address = arena_in_place(&c->views, &o->d);
  unlock(&c->lock);
  return (f64)address;
}

// Maps a message of any runs at a place of its own among the aliases. Returns its address, or -errno.
EXPORT f64 moat_msg_alias(s32 ci, s32 i, u32 at) {
  struct conn *c = conn_at(ci);
  struct op *o = c ? message_of(c, i) : 0;
  if (!o) return -E_INVAL;
  lock(&c->lock);
  s64 address = arena_alias(&c->views, c->peer_dev, &o->d, at);
  unlock(&c->lock);
  return (f64)address;
}

// Copies a message out. 0, or -EPROTO if its list of runs does not hold.
static s32 shm_collect(struct conn *c, s32 me, s32 i, struct op *o, u8 *to) {
  if (o->d.kind == D_EAGER) {
    if (i >= 0 && i != c->parked) return -E_INVAL;
    memcpy(to, i < 0 ? c->scratch : c->parking, o->d.len);
    return 0;
  }
  if (!desc_copy(c, &o->d, to)) return 0;
  lock(&c->lock);
  if (c->state != CONN_BROKEN) cut_off(c, me);
  unlock(&c->lock);
  return -E_PROTO;
}

// Ends the reading of a message: its pages are the peer's again. `page` is its place among the pages of the
// view, or -1 if it was copied; runs is what its alias cost.
EXPORT s32 moat_msg_release(s32 ci, u32 id, s32 page, u32 n, u32 runs) {
  struct conn *c = conn_at(ci);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  if (page >= 0) arena_release(&c->views, (u32)page, n, runs);
  if (c->state == CONN_OPEN || c->state == CONN_PEER_ABORTED) {
    release(c, id);
    wake(c, WANT_RELEASE);
  }
  unlock(&c->lock);
  return 0;
}

static const struct transport shm_transport = {
  .poll = shm_poll, .check = shm_check, .eager = shm_eager, .flush = shm_flush, .take = shm_take, .arm = shm_arm,
  .end = shm_end, .hang_up = shm_hang_up, .collect = shm_collect,
  .remove = shm_remove, .event = shm_event, .background = BACKGROUND, .wakes = 1,
};
