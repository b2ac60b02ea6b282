// The page-version pool: frames, reference counts, guards. See memory.h for who may touch what.
#include "memory.h"

// ---- the map of a pool

static inline u8 *frame_at(struct pool *p, u32 f) { return (u8 *)(p->dev + ((u64)f << G.page_shift)); }
static inline u64 window_at(struct pool *p, u32 page) { return p->win + ((u64)page << G.page_shift); }
static inline struct pool *pool_of(s32 i) {
  return i >= 0 && i < MAX_POOLS && G.pool[i].live ? &G.pool[i] : 0;
}

// A boundary between two pages that the kernel cannot keep in one mapping.
static inline int broken_at(struct pool *p, u32 i) {
  if (i == 0 || i >= p->pages) return 0;
  return p->state[i] != p->state[i - 1] || p->frame[i] != p->frame[i - 1] + 1;
}

// Accounts for `more` mappings. A process has vm.max_map_count of them, shared with the runtime.
static int budget(s64 more) {
  s64 used = __atomic_add_fetch(&G.maps_used, more, __ATOMIC_RELAXED);
  if (more > 0 && used > G.maps_budget) {
    __atomic_sub_fetch(&G.maps_used, more, __ATOMIC_RELAXED);
    return -E_NOMEM;
  }
  return 0;
}

// The same for what has happened, or must: a page that a program waits for opens from the reserve that the
// budget leaves to the runtime.
static inline void account(s64 more) { __atomic_add_fetch(&G.maps_used, more, __ATOMIC_RELAXED); }

// Changes n pages, all in the same state, to another. 0, or -ENOMEM with nothing changed.
static int change(struct pool *p, u32 a, u32 n, u8 to, int must) {
  static const int flags[] = { PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE };
  u8 from = p->state[a];
  s64 before = broken_at(p, a) + broken_at(p, a + n);
  for (u32 i = 0; i < n; i++) p->state[a + i] = to;
  s64 more = broken_at(p, a) + broken_at(p, a + n) - before;
  int r = 0;
  if (must)
    account(more);
  else
    r = budget(more);
  if (!r) {
    r = (int)sys3(NR_mprotect, window_at(p, a), (u64)n << G.page_shift, flags[to]);
    if (!r) return 0;
    // Scattered frames are several mappings, and the kernel may have changed some before it refused to split
    // the last. Taking that back splits nothing.
    sys3(NR_mprotect, window_at(p, a), (u64)n << G.page_shift, flags[from]);
    account(-more);
  }
  for (u32 i = 0; i < n; i++) p->state[a + i] = from;
  return r;
}
static int protect(struct pool *p, u32 a, u32 n, u8 to) { return change(p, a, n, to, 0); }
static int must_open(struct pool *p, u32 page) { return change(p, page, 1, RW, 1); }

// Brings every page of [a, a+n) to a state, run by run. Stops at the first refusal.
static int protect_all(struct pool *p, u32 a, u32 n, u8 to) {
  for (u32 i = a, end = a + n; i < end;) {
    u8 s = p->state[i];
    u32 j = i + 1;
    while (j < end && p->state[j] == s) j++;
    if (s != to) {
      int r = protect(p, i, j - i, to);
      if (r) return r;
    }
    i = j;
  }
  return 0;
}

// ---- frames

static inline int frame_is_free(struct pool *p, u32 f) { return (int)(p->free[f / 64] >> (f % 64) & 1); }
static inline int frame_is_idle(struct pool *p, u32 f) { return !p->out[f] && !p->in[f]; }

// Frames are short: those kept for huge pages are free for all.
static void frames_unkeep(struct pool *p) {
  for (u32 b = 0; b <= p->frames / HUGE; b++) {
    if (!p->home[b]) continue;
    p->home[b] = 0;
    for (u32 f = b * HUGE; f < (b + 1) * HUGE && f < p->frames; f++)
      if (p->owner[f] == NONE && frame_is_idle(p, f) && !frame_is_free(p, f)) {
        p->free[f / 64] |= 1ul << (f % 64);
        p->nfree++;
      }
  }
  p->nkept = 0;
}

// Takes up to `want` neighbouring free frames; returns how many, the first in *first.
static u32 frames_take(struct pool *p, u32 want, u32 *first) {
  if (!p->nfree && p->nkept) frames_unkeep(p);
  if (!p->nfree) return 0;
  u32 words = (p->frames + 63) / 64, w = p->cursor / 64;
  u64 bits = p->free[w] & (~0ul << (p->cursor % 64));
  for (u32 k = 0; !bits && k <= words; k++) {
    w = w + 1 == words ? 0 : w + 1;
    bits = p->free[w];
  }
  if (!bits) return 0;
  u32 f = w * 64 + (u32)__builtin_ctzl(bits), n = 0;
  while (n < want && f + n < p->frames && (p->free[(f + n) / 64] >> ((f + n) % 64) & 1)) {
    p->free[(f + n) / 64] &= ~(1ul << ((f + n) % 64));
    n++;
  }
  p->nfree -= n;
  p->cursor = f + n < p->frames ? f + n : 0;
  *first = f;
  return n;
}
// Looks for `want` neighbouring free frames, and lets the next frames be taken there: a message in one piece is
// read in place. Without such a run it leaves the pieces to be taken as they come.
static void frames_seek(struct pool *p, u32 want) {
  u32 run = 0;
  for (u32 f = p->cursor & ~63u; f < p->frames;) {
    u64 bits = p->free[f / 64];
    if (!bits || (!~bits && f + 64 <= p->frames)) {
      run = bits ? run + 64 : 0;
      f += 64;
    } else {
      for (u32 end = f + 64; f < end && run < want; f++) run = bits >> (f % 64) & 1 ? run + 1 : 0;
    }
    if (run >= want) {
      p->cursor = f - run;
      return;
    }
  }
}
static void frame_give(struct pool *p, u32 f) {
  p->owner[f] = NONE;
  if (p->home[f / HUGE]) {
    p->nkept++;
    return;
  }
  p->free[f / 64] |= 1ul << (f % 64);
  p->nfree++;
  if (f < p->cursor) p->cursor = f;  // used again soon, while the cache still has it
}

// Puts n neighbouring frames behind the window pages at a, in one step for other threads: the mapping of
// the device view is duplicated over them (the memfd is sealed, so mmap could not map it writable again).
// The frames replaced are left to the operations that still use them. 0 or -errno with nothing changed.
static int remap(struct pool *p, u32 a, u32 first, u32 n) {
  s64 before = 0, after = 0;
  for (u32 i = a; i <= a + n; i++) before += broken_at(p, i);
  // Inside the run nothing is broken afterwards; at its ends it may be.
  after = (a > 0 && !(p->state[a - 1] == RW && p->frame[a - 1] + 1 == first)) +
          (a + n < p->pages && !(p->state[a + n] == RW && p->frame[a + n] == first + n));
  int r = budget(after - before);
  if (r) return r;
  u64 to = window_at(p, a), bytes = (u64)n << G.page_shift;
  for (u32 c = a / HUGE; c <= (a + n - 1) / HUGE; c++) p->huge[c] = 0;
  s64 got = sys5(NR_mremap, frame_at(p, first), 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
  if (got != (s64)to) {
    account(before - after);
    return got < 0 ? (int)got : -E_NOMEM;
  }
  for (u32 i = 0; i < n; i++) {
    u32 old = p->frame[a + i];
    p->state[a + i] = RW;
    if (old == first + i) continue;
    p->frame[a + i] = first + i;
    p->owner[first + i] = a + i;
    p->owner[old] = NONE;
    if (!p->out[old]) frame_give(p, old);
  }
  return 0;
}

// Moves the program from the frames behind [a, a+n) to copies of them. Returns the pages moved (at least
// one; fewer than n when frames are scattered or short), or -errno.
static int privatise(struct pool *p, u32 a, u32 n) {
  u32 first, got = frames_take(p, n, &first);
  if (!got) return -E_NOBUFS;
  // What another thread wrote between the copy and the remapping would be lost: it shall fault, and wait for
  // the lock. Pages under a guard are closed to writes already.
  int r = protect_all(p, a, got, RO);
  if (!r) {
    for (u32 i = 0; i < got; i++)
      memcpy(frame_at(p, first + i), frame_at(p, p->frame[a + i]), G.page_size);
    r = remap(p, a, first, got);
  }
  if (r) {
    for (u32 i = 0; i < got; i++) frame_give(p, first + i);
    return r;
  }
  return (int)got;
}

// A huge page that was split because the program wrote to it in flight comes together again: its private
// pages are copied home, and the whole is mapped as one. Only where the last writes went through the buffer
// from end to end: for a few scattered ones the split page is cheaper.
static void recombine(struct pool *p, u32 chunk) {
  u32 a = chunk * HUGE, home = (p->block[chunk] - 1) * HUGE, moved = 0;
  if (!p->home[home / HUGE] || p->start[a] == NONE || p->chunk[p->start[a]] < 64) return;
  for (u32 i = 0; i < HUGE; i++) {
    u32 f = p->frame[a + i], h = home + i;
    if (!frame_is_idle(p, f) || (f != h && (p->owner[h] != NONE || !frame_is_idle(p, h)))) return;
  }
  if (protect_all(p, a, HUGE, RO)) return;  // as in privatise
  for (u32 i = 0; i < HUGE; i++)
    if (p->frame[a + i] != home + i) {
      memcpy(frame_at(p, home + i), frame_at(p, p->frame[a + i]), G.page_size);
      moved++;
    }
  if (remap(p, a, home, HUGE)) return;
  p->nkept -= moved;
  p->huge[chunk] = 1;
  p->stat[S_MENDED] += moved;
}

// ---- operations

static void bell_ring(s32 bell);  // bell.c

// Frames have come free: somebody may have gone to sleep without one, and nothing else would wake it.
static void feed(struct pool *p) {
  s32 bell = __atomic_exchange_n(&p->starved, 0, __ATOMIC_RELAXED);
  if (bell) bell_ring(bell - 1);
}

static s32 op_new(u8 kind, s32 pool) {
  lock(&G.op_lock);
  u32 i = G.op_free;
  if (i != NONE)
    G.op_free = G.op[i].next_free;
  else if (G.op_high < MAX_OPS)
    i = G.op_high++;
  if (i != NONE) G.ops_live++;
  unlock(&G.op_lock);
  if (i == NONE) return -E_NFILE;
  struct op *o = &G.op[i];
  memset(o, 0, sizeof *o);
  o->state = OP_HELD;
  o->kind = kind;
  o->pool = pool;
  o->conn = -1;
  o->page = NONE;
  o->d.id = i;
  o->d.kind = D_PAGES;
  return (s32)i;
}
static void op_drop(s32 i) {
  struct op *o = &G.op[i];
  lock(&G.op_lock);
  o->state = OP_FREE;
  o->next_free = G.op_free;
  G.op_free = (u32)i;
  G.ops_live--;
  unlock(&G.op_lock);
}
// Walks a run list. `base` and `frames` are the memory the frames live in: ours, or a peer's, in which case
// nothing read can be trusted: every entry is read once and checked before it is used.
struct runs { u64 base; u32 frames; const struct desc *d; u32 i, table, slot; };
static inline struct runs runs_of(u64 base, u32 frames, const struct desc *d) {
  return (struct runs){ base, frames, d, 0, d->table, 0 };
}
// 1 with a run, 0 at the end, -1 if the list is not a list.
static int runs_next(struct runs *it, struct run *r) {
  if (it->i >= it->d->nruns) return 0;
  if (it->d->kind == D_PAGES) {
    if (it->i >= 4) return -1;
    *r = it->d->run[it->i];
  } else {
    u32 last = G.page_size / 8 - 1;
    if (it->table >= it->frames) return -1;
    union { u64 word; struct run run; } e;
    if (it->slot == last) {
      e.word = load_rlx((u64 *)(it->base + ((u64)it->table << G.page_shift)) + last);
      if (e.run.frame >= it->frames) return -1;
      it->table = e.run.frame;
      it->slot = 0;
    }
    e.word = load_rlx((u64 *)(it->base + ((u64)it->table << G.page_shift)) + it->slot++);
    *r = e.run;
  }
  it->i++;
  if (r->count == 0 || r->frame >= it->frames || r->count > it->frames - r->frame) return -1;
  return 1;
}

// Appends frames to an operation's list; the fifth run moves the list into a frame of its own.
static int runs_add(struct pool *p, struct op *o, u32 frame, u32 count) {
  struct desc *d = &o->d;
  u32 per = G.page_size / 8 - 1, f;
  if (d->kind == D_PAGES) {
    if (d->nruns && d->run[d->nruns - 1].frame + d->run[d->nruns - 1].count == frame) {
      d->run[d->nruns - 1].count += count;
      return 0;
    }
    if (d->nruns < 4) {
      d->run[d->nruns++] = (struct run){ frame, count };
      return 0;
    }
    if (!frames_take(p, 1, &f)) return -E_NOBUFS;
    p->out[f] = 1;
    memcpy(frame_at(p, f), d->run, sizeof d->run);
    d->table = o->last_table = f;
    d->kind = D_TABLE;
  }
  struct run *t = (struct run *)frame_at(p, o->last_table);
  u32 slot = d->nruns % per;
  struct run *prev = slot ? &t[slot - 1] : &t[per - 1];
  if (prev->frame + prev->count == frame) {
    prev->count += count;
    return 0;
  }
  if (d->nruns == MAX_RUNS) return -E_NOBUFS;
  if (slot == 0) {
    if (!frames_take(p, 1, &f)) return -E_NOBUFS;
    p->out[f] = 1;
    t[per] = (struct run){ f, 0 };
    o->last_table = f;
    t = (struct run *)frame_at(p, f);
  }
  t[slot] = (struct run){ frame, count };
  d->nruns++;
  return 0;
}

// Ends the use of an operation's frames. The pool is locked.
static void out_unref(struct pool *p, struct op *o) {
  struct runs it = runs_of(p->dev, p->frames, &o->d);
  struct run r;
  int hold = o->guard == GUARD_WAIT;
  while (runs_next(&it, &r) == 1)
    for (u32 f = r.frame; f < r.frame + r.count; f++) {
      if (hold) p->hold[f]--;
      if (!--p->out[f] && p->owner[f] == NONE) frame_give(p, f);
    }
  if (o->d.kind == D_TABLE)
    for (u32 f = o->d.table, n = o->d.nruns, per = G.page_size / 8 - 1;;) {
      u32 next = ((struct run *)frame_at(p, f))[per].frame;
      p->out[f] = 0;
      frame_give(p, f);
      if (n <= per) break;
      n -= per;
      f = next;
    }
  o->d.nruns = 0;
  o->d.kind = D_PAGES;
}

static void in_unref(struct pool *p, struct op *o) {
  for (u32 i = o->page; i < o->page + o->pages; i++) p->in[p->frame[i]]--;
  for (u32 i = o->page, end = o->page + o->pages; i < end;) {
    if (p->state[i] != CLOSED || p->in[p->frame[i]]) {
      i++;
      continue;
    }
    u32 j = i + 1;
    while (j < end && p->state[j] == CLOSED && !p->in[p->frame[j]]) j++;
    protect(p, i, j - i, RW);  // a refusal (no mapping left) leaves it to the next fault to open more at once
    i = j;
  }
}

// The device is done with an operation: frames and window pages are given back to the program.
static void op_finish(s32 i, s32 status) {
  struct op *o = &G.op[i];
  struct pool *p = &G.pool[o->pool];
  if (o->kind != OP_TAKE) {
    lock(&p->lock);
    if (o->kind == OP_OUT)
      out_unref(p, o);
    else
      in_unref(p, o);
    unlock(&p->lock);
    if (unlikely(p->starved)) feed(p);
  }
  o->status = o->flags & OP_VIOLATED ? -E_TIMEDOUT : status;
  store_rel(&o->state, OP_DONE);
}

EXPORT s32 moat_op_free(s32 i) {
  if (i < 0 || (u32)i >= G.op_high || G.op[i].state != OP_DONE) return -E_INVAL;
  struct op *o = &G.op[i];
  struct pool *p = &G.pool[o->pool];
  if ((o->flags & OP_PARKED) && p->live) {
    lock(&p->lock);
    out_unref(p, o);
    unlock(&p->lock);
    if (unlikely(p->starved)) feed(p);
  }
  op_drop(i);
  return 0;
}

// For devices that are not transports of this helper: the caller saw the completion.
EXPORT s32 moat_op_done(s32 i, s32 status) {
  if (i < 0 || (u32)i >= G.op_high) return -E_INVAL;
  struct op *o = &G.op[i];
  if (o->conn >= 0 || (o->state != OP_HELD && o->state != OP_POSTED)) return -E_INVAL;
  op_finish(i, status);
  return 0;
}

// Starts a send of n window pages under a guard. The operation's run list says what to post; the guard is
// up before this returns. -EBUSY: a receive is pending on one of the pages. -ENOMEM: no mapping left.
EXPORT s32 moat_out(s32 pool, u32 page, u32 n, u32 off, f64 len, s32 guard) {
  struct pool *p = pool_of(pool);
  if (!p || page >= p->pages || n > p->pages - page || !n) return -E_INVAL;
  s32 i = op_new(OP_OUT, pool);
  if (i < 0) return i;
  struct op *o = &G.op[i];
  o->guard = (u8)guard;
  o->page = page;
  o->pages = n;
  o->off = o->d.off = off;
  o->len = o->d.len = (u64)len;
  int hold = guard == GUARD_WAIT, r = 0;
  u32 ro = 0;

  lock(&p->lock);
  for (u32 k = page; k < page + n; k++)
    if (unlikely(p->in[p->frame[k]])) {
      r = -E_BUSY;
      goto fail;
    }
  if (guard == GUARD_WAIT || guard == GUARD_COW)
    for (u32 c = (page + HUGE - 1) / HUGE; c < (page + n) / HUGE; c++)
      if (p->block[c] && !p->huge[c]) recombine(p, c);
  for (u32 k = page; k < page + n;) {  // neighbouring frames make a run
    u32 f = p->frame[k], c = 0;
    while (k + c < page + n && p->frame[k + c] == f + c) {
      p->out[f + c]++;
      p->last[f + c] = i;
      c++;
    }
    if (hold)
      for (u32 h = 0; h < c; h++) p->hold[f + h]++;
    r = runs_add(p, o, f, c);
    if (r) {  // undo the run that did not fit on the list; the others are on it
      for (u32 h = 0; h < c; h++) {
        p->out[f + h]--;
        if (hold) p->hold[f + h]--;
      }
      out_unref(p, o);
      goto fail;
    }
    k += c;
  }
  if (guard == GUARD_WAIT || guard == GUARD_COW) {
    for (u32 k = page; k < page + n; k++) ro += p->state[k] == RO;
    if (ro != n) {
      u64 t0 = now_ns();
      r = protect_all(p, page, n, RO);
      if (r) {
        out_unref(p, o);
        goto fail;
      }
      p->stat[S_ARMS]++;
      p->stat[S_ARM_PAGES] += n - ro;
      u32 s = p->start[page];
      if (s != NONE) p->cost[s] += (u32)(now_ns() - t0);
    }
  }
  unlock(&p->lock);
  return i;
fail:
  unlock(&p->lock);
  op_drop(i);
  return r;
}

// Takes frames for `len` bytes into an operation's list. -ENOBUFS with nothing taken when they are short.
static int frames_for(struct pool *p, struct op *o, s32 i, u64 len) {
  u32 want = (u32)((len + G.page_size - 1) >> G.page_shift);
  if (p->nfree < want && p->nkept) frames_unkeep(p);
  if (p->nfree < want) return -E_NOBUFS;
  if (want > 1) frames_seek(p, want);
  while (want) {
    u32 f, got = frames_take(p, want, &f);
    if (!got) goto short_;
    for (u32 k = 0; k < got; k++) {
      p->out[f + k] = 1;
      p->last[f + k] = i;
      p->owner[f + k] = NONE;
    }
    if (runs_add(p, o, f, got)) {
      for (u32 k = 0; k < got; k++) {
        p->out[f + k] = 0;
        frame_give(p, f + k);
      }
      goto short_;
    }
    want -= got;
  }
  return 0;
short_:
  out_unref(p, o);
  return -E_NOBUFS;
}

// Copies the bytes at `src` into an operation's frames. Takes no lock: `src` is the program's memory and
// may fault into the handler.
static void fill_frames(struct pool *p, struct op *o, const u8 *src) {
  struct runs it = runs_of(p->dev, p->frames, &o->d);
  struct run r;
  u64 left = o->len;
  while (left && runs_next(&it, &r) == 1) {
    u64 n = (u64)r.count << G.page_shift;
    if (n > left) n = left;
    memcpy(frame_at(p, r.frame), src, n);
    src += n;
    left -= n;
  }
}

// An eager copy: `len` bytes at `src` in frames of their own, with no window and so no guard.
EXPORT s32 moat_out_copy(s32 pool, const u8 *src, f64 len) {
  struct pool *p = pool_of(pool);
  if (!p) return -E_INVAL;
  s32 i = op_new(OP_OUT, pool);
  if (i < 0) return i;
  struct op *o = &G.op[i];
  o->guard = GUARD_COPY;
  o->len = o->d.len = (u64)len;
  lock(&p->lock);
  int r = frames_for(p, o, i, o->len);
  unlock(&p->lock);
  if (r) {
    op_drop(i);
    return r;
  }
  fill_frames(p, o, src);
  return i;
}

// The same for later: the bytes stay where they are (JavaScript holds a copy) until frames are free.
EXPORT s32 moat_out_staged(s32 pool, f64 src, f64 len) {
  if (!pool_of(pool)) return -E_INVAL;
  s32 i = op_new(OP_OUT, pool);
  if (i < 0) return i;
  struct op *o = &G.op[i];
  o->guard = GUARD_COPY;
  o->flags = OP_STAGED;
  o->src = (u64)src;
  o->len = o->d.len = (u64)len;
  return i;
}

// Starts a receive into [off, off+len) of n window pages and closes them to the program.
// -ENOBUFS: a send still holds one of the pages and there is no frame to move the program to.
EXPORT s32 moat_in(s32 pool, u32 page, u32 n, u32 off, f64 len, s32 guard) {
  struct pool *p = pool_of(pool);
  if (!p || page >= p->pages || n > p->pages - page || !n) return -E_INVAL;
  s32 i = op_new(OP_IN, pool);
  if (i < 0) return i;
  struct op *o = &G.op[i];
  o->guard = (u8)guard;
  o->page = page;
  o->pages = n;
  o->off = off;
  o->len = (u64)len;
  int r = 0;
  lock(&p->lock);
  for (u32 k = page; k < page + n && !r; k++)
    if (unlikely(p->out[p->frame[k]])) {
      r = privatise(p, k, 1);  // the device keeps sending the old frame
      if (r > 0) r = 0;
    }
  if (!r && guard != GUARD_NONE) r = protect_all(p, page, n, CLOSED);
  if (r) {
    // Pages closed by this call, and by no other receive, open again.
    for (u32 k = page; k < page + n; k++)
      if (p->state[k] == CLOSED && !p->in[p->frame[k]]) protect(p, k, 1, RW);
    unlock(&p->lock);
    op_drop(i);
    return r;
  }
  for (u32 k = page; k < page + n; k++) {
    p->in[p->frame[k]]++;
    p->last[p->frame[k]] = i;
  }
  unlock(&p->lock);
  return i;
}

// ---- buffers and pools

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
  protect_all(p, page, n, RW);
  unlock(&p->lock);
  return 0;
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
  u64 words = (frames + 63) / 64;
  u64 bytes = (u64)pages * 34 + (u64)frames * 21 + words * 8 + STATS * 8 + FAULT_RING * sizeof(struct fault) + 64;
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
  lock(&p->lock);
  s64 breaks = 0;
  for (u32 k = 1; k < p->pages; k++) breaks += broken_at(p, k);
  budget(-breaks);
  u64 words = (p->frames + 63) / 64;
  u64 bytes = (u64)p->pages * 34 + (u64)p->frames * 21 + words * 8 + STATS * 8 + FAULT_RING * sizeof(struct fault) + 64;
  store_rel(&p->live, 0);
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
enum { Q_OPS, Q_STATS, Q_FAULTS, Q_NFAULTS, Q_FREE, Q_MAPS_USED, Q_MAPS_BUDGET, Q_OPS_LIVE };
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
  }
  return -E_INVAL;
}
EXPORT s32 moat_set_maps_budget(f64 n) {
  G.maps_budget = (s64)n;
  return 0;
}
