// Buffers and pools: what JavaScript makes, and asks.
#include "memory.h"

// 1 if pages of it are closed to writes, which the first write to each will open.
EXPORT s32 moat_buf_open(s32 pool, u32 page, u32 n) {
  struct pool *p = pool_of(pool);
  if (!p || page >= p->pages || n > p->pages - page || !n) return -E_INVAL;
  lock(&p->lock);
  for (u32 k = page; k < page + n; k++) p->start[k] = page;
  p->hint[page] = NONE;
  p->chunk[page] = 1;
  p->from[page] = NONE;
  p->walk[page] = p->haste[page] = 0;
  p->cost[page] = 0;
  // What was here before may live on in a snapshot: its pages stay closed to writes, as under any guard.
  s32 guarded = 0;
  for (u32 i = page, j; i < page + n; i = j) {
    int out = p->out[p->frame[i]] != 0;
    for (j = i + 1; j < page + n && (p->out[p->frame[j]] != 0) == out;) j++;
    if (protect_all(p, i, j - i, out ? RO : RW) || out) guarded = 1;
  }
  unlock(&p->lock);
  return guarded;
}
EXPORT s32 moat_buf_close(s32 pool, u32 page, u32 n) {
  struct pool *p = pool_of(pool);
  if (!p || page >= p->pages || n > p->pages - page) return -E_INVAL;
  lock(&p->lock);
  for (u32 k = page; k < page + n; k++) p->start[k] = NONE;
  unlock(&p->lock);
  return 0;
}
// Nanoseconds spent on guards of this buffer since the last call.
EXPORT s32 moat_buf_cost(s32 pool, u32 page) {
  struct pool *p = pool_of(pool);
  if (!p || page >= p->pages) return -E_INVAL;
  lock(&p->lock);
  u32 c = p->cost[page];
  p->cost[page] = 0;
  unlock(&p->lock);
  return (s32)(c & 0x7fffffff);
}
// Gives write permission back to the pages of a range that no operation holds. Returns the pages that are
// still guarded.
EXPORT s32 moat_restore(s32 pool, u32 page, u32 n) {
  struct pool *p = pool_of(pool);
  if (!p || page >= p->pages || n > p->pages - page) return -E_INVAL;
  s32 left = 0;
  u64 t0 = now_ns();
  lock(&p->lock);
  for (u32 i = page, end = page + n; i < end;) {
    u32 f = p->frame[i];
    if (p->state[i] == RW || p->out[f] || p->in[f]) {
      left += p->state[i] != RW;
      i++;
      continue;
    }
    u32 j = i + 1;
    while (j < end && p->state[j] == p->state[i] && !p->out[p->frame[j]] && !p->in[p->frame[j]]) j++;
    if (protect(p, i, j - i, RW)) left += (s32)(j - i);
    i = j;
  }
  if (p->start[page] != NONE) p->cost[p->start[page]] += (u32)(now_ns() - t0);
  unlock(&p->lock);
  return left;
}

// Brings a scattered, idle range back to neighbouring frames, by copying it. 0, or -errno if it is not idle
// or there is no such run of free frames.
EXPORT s32 moat_mend(s32 pool, u32 page, u32 n) {
  struct pool *p = pool_of(pool);
  if (!p || page >= p->pages || n > p->pages - page || !n) return -E_INVAL;
  s32 r = 0;
  lock(&p->lock);
  for (u32 k = page; k < page + n; k++)
    if (p->out[p->frame[k]] || p->in[p->frame[k]]) r = -E_BUSY;
  if (!r && p->nfree < n) r = -E_NOBUFS;
  if (!r) {
    u32 first = NONE;
    for (u32 f = 0; f < p->frames;) {
      if (!(p->free[f / 64] >> (f % 64) & 1)) {
        f++;
        continue;
      }
      u32 c = 1;
      while (c < n && f + c < p->frames && (p->free[(f + c) / 64] >> ((f + c) % 64) & 1)) c++;
      if (c == n) {
        first = f;
        break;
      }
      f += c;
    }
    if (first == NONE)
      r = -E_NOBUFS;
    else {
      p->cursor = first;
      // No thread may write to a page while it is copied; remapped, it is open again.
      r = protect_all(p, page, n, RO);
      if (!r) r = privatise(p, page, n);
      if (r > 0) {
        p->stat[S_MENDED] += n;
        r = 0;
      }
    }
  }
  unlock(&p->lock);
  return r;
}

static u32 pools_lock;
static void uring_close(s32 pool);  // uring.c

// Makes one huge page of the 512 from `page` on, which must be aligned and stand on aligned, neighbouring
// frames: their guard then costs one page-table entry instead of 512. Takes some milliseconds.
// 1 if done, 0 if it was already, -errno if it cannot be (-EINVAL: scattered; others: the kernel's).
EXPORT s32 moat_collapse(s32 pool, u32 page) {
  struct pool *p = pool_of(pool);
  if (!p || G.page_size != 4096 || page % HUGE || page >= p->pages || HUGE > p->pages - page) return -E_INVAL;
  if (p->huge[page / HUGE]) return 0;
  u32 f = p->frame[page];
  if (f % HUGE) return -E_INVAL;
  for (u32 k = 0; k < HUGE; k++)
    if (p->frame[page + k] != f + k) return -E_INVAL;
  (void)*(volatile u8 *)frame_at(p, f);  // the kernel wants one page that is there
  // Without the lock: the kernel copies, and a fault on these pages may be waiting for us.
  s32 r = (s32)sys3(NR_madvise, frame_at(p, f), HUGE << 12, MADV_COLLAPSE);
  if (!r) r = (s32)sys3(NR_madvise, window_at(p, page), HUGE << 12, MADV_COLLAPSE);
  if (r) return r;
  lock(&p->lock);
  int whole = 1;
  for (u32 k = 0; k < HUGE && whole; k++) whole = p->frame[page + k] == f + k;
  p->huge[page / HUGE] = (u8)whole;
  if (whole) {
    p->block[page / HUGE] = f / HUGE + 1;
    p->home[f / HUGE] = 1;
  }
  p->stat[S_HUGE] += (u64)whole;
  unlock(&p->lock);
  return whole ? 1 : -E_INVAL;
}

// Makes huge pages of all frames that are not yet, before they are pinned: pinned pages cannot be brought
// together any more, and pinning them one by one takes several times as long. Returns how many it made.
EXPORT s32 moat_collapse_frames(s32 pool) {
  struct pool *p = pool_of(pool);
  if (!p || G.page_size != 4096) return 0;
  s32 n = 0;
  for (u32 f = 0; f + HUGE <= p->frames; f += HUGE) {
    (void)*(volatile u8 *)frame_at(p, f);  // the kernel wants one page that is there
    n += sys3(NR_madvise, frame_at(p, f), HUGE << 12, MADV_COLLAPSE) == 0;
  }
  return n;
}

EXPORT s32 moat_init(u32 page_size, f64 maps_budget, f64 spin_page_ns) {
  lock(&pools_lock);  // two Workers may load the helper at the same time
  if (!G.op) {
    G.page_size = page_size;
    G.page_shift = (u32)__builtin_ctz(page_size);
    G.op_free = NONE;
    G.maps_budget = (s64)maps_budget;
    G.spin_page_ns = (u64)spin_page_ns;
    G.op = map_anonymous((u64)MAX_OPS * sizeof(struct op));
  }
  unlock(&pools_lock);
  return G.op ? 0 : -E_NOMEM;
}

// Bytes of a pool's tables: what moat_pool_add() carves, rounded up.
static u64 tables(u32 pages, u32 frames) {
  u64 words = (frames + 63) / 64;
  return (u64)pages * 34 + (u64)frames * 21 + words * 8 + STATS * 8 + FAULT_RING * sizeof(struct fault) + 64;
}

// Registers a pool: its window and device view are mapped already, window page k on frame k.
EXPORT s32 moat_pool_add(f64 win, f64 dev, u32 pages, u32 frames, f64 timeout_ns) {
  s32 i = 0;
  lock(&pools_lock);
  while (i < MAX_POOLS && G.pool[i].live) i++;
  struct pool *p = &G.pool[i];
  if (i == MAX_POOLS) {
    unlock(&pools_lock);
    return -E_NFILE;
  }
  u64 words = (frames + 63) / 64, bytes = tables(pages, frames);
  u8 *m = map_anonymous(bytes);
  if (!m) {
    unlock(&pools_lock);
    return -E_NOMEM;
  }
  lock(&p->lock);  // a handler may be looking at the pool that had this place
  memset((u8 *)p + 8, 0, sizeof *p - 8);  // all but live and lock
#define CARVE(field, n) (p->field = (void *)m, m += (u64)(n) * sizeof *p->field)
  CARVE(free, words);
  CARVE(stat, STATS);
  CARVE(faults, FAULT_RING);
  CARVE(frame, pages);
  CARVE(start, pages);
  CARVE(hint, pages);
  CARVE(chunk, pages);
  CARVE(from, pages);
  CARVE(walk, pages);
  CARVE(haste, pages);
  CARVE(cost, pages);
  CARVE(out, frames);
  CARVE(hold, frames);
  CARVE(in, frames);
  CARVE(owner, frames);
  CARVE(last, frames);
  CARVE(block, pages / HUGE + 1);
  CARVE(state, pages);
  CARVE(huge, pages / HUGE + 1);
  CARVE(home, frames / HUGE + 1);
#undef CARVE
  p->win = (u64)win;
  p->win_bytes = (u64)pages << G.page_shift;
  p->dev = (u64)dev;
  p->pages = pages;
  p->frames = frames;
  p->timeout_ns = (u64)timeout_ns;
  p->bell = -1;
  p->thread = thread_id();
  for (u32 k = 0; k < pages; k++) {
    p->frame[k] = p->owner[k] = k;
    p->start[k] = NONE;
  }
  for (u32 f = pages; f < frames; f++) frame_give(p, f);
  p->cursor = pages < frames ? pages : 0;
  store_rel(&p->live, 1);
  if ((u32)i >= G.pool_high) store_rel(&G.pool_high, (u32)i + 1);
  unlock(&p->lock);
  unlock(&pools_lock);
  return i;
}
EXPORT s32 moat_pool_remove(s32 i) {
  struct pool *p = pool_of(i);
  if (!p) return -E_INVAL;
  uring_close(i);
  // A handler that waited for the last operation may not have noticed yet that it has ended.
  for (lock(&p->lock); p->guests; lock(&p->lock)) {
    unlock(&p->lock);
    sleep_ns(20000);
  }
  s64 breaks = 0;
  for (u32 k = 1; k < p->pages; k++) breaks += broken_at(p, k);
  budget(-breaks);
  u64 bytes = tables(p->pages, p->frames);
  store_rel(&p->live, 0);
  views_remove(p);
  sys2(NR_munmap, p->free, bytes);
  unlock(&p->lock);
  return 0;
}
EXPORT s32 moat_pool_notify(s32 i, s32 on, s32 bell) {
  struct pool *p = pool_of(i);
  if (!p) return -E_INVAL;
  p->bell = bell;
  p->notify = (u32)on;
  return 0;
}

// Addresses and numbers JavaScript reads by itself.
enum { Q_OPS, Q_STATS, Q_FAULTS, Q_NFAULTS, Q_FREE, Q_MAPS_USED, Q_MAPS_BUDGET, Q_OPS_LIVE, Q_VIEW_WRITES };
EXPORT f64 moat_query(s32 what, s32 i) {
  struct pool *p = pool_of(i);
  switch (what) {
    case Q_OPS: return (f64)(u64)G.op;
    case Q_STATS: return p ? (f64)(u64)p->stat : 0;
    case Q_FAULTS: return p ? (f64)(u64)p->faults : 0;
    case Q_NFAULTS: return p ? (f64)load_acq(&p->nfaults) : 0;
    case Q_FREE: return p ? p->nfree + p->nkept : 0;
    case Q_MAPS_USED: return (f64)G.maps_used;
    case Q_MAPS_BUDGET: return (f64)G.maps_budget;
    case Q_OPS_LIVE: return G.ops_live;
    case Q_VIEW_WRITES: return p ? (f64)load_acq(&p->views.writes) : 0;
  }
  return -E_INVAL;
}
EXPORT s32 moat_set_maps_budget(f64 n) {
  G.maps_budget = (s64)n;
  return 0;
}
