// Messages of shm:// read where they lie, in the sender's pages: in place, through an alias, or copied out.
#include "conn.h"

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
    if (!c || c->kind != CONN_SHM || address - c->view >= (u64)(c->peer_frames + c->arena) << G.page_shift) continue;
    lock(&c->lock);
    if (!c->live || c->kind != CONN_SHM || address - c->view >= (u64)(c->peer_frames + c->arena) << G.page_shift) {
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

static const struct transport shm_transport = {
  .poll = shm_poll, .check = shm_check, .eager = shm_eager, .flush = shm_flush, .take = shm_take, .arm = shm_arm,
  .end = shm_end, .hang_up = shm_hang_up, .collect = shm_collect, .remove = shm_remove,
};
