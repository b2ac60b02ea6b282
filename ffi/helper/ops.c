// Operations: which frames a send or a receive holds, its guard, its list of runs.
#include "memory.h"

static void bell_ring(s32 bell);  // bell.c
static void bell_ask(s32 bell, s32 fd, s32 conn, u32 events);
static void map_settle(struct pool *p, const struct op *o);  // mapped.c

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

// A message's header waits in a frame: of a send until it is done, of a receive until JavaScript has collected it.
// Gives it back; the pool is locked.
static void head_unref(struct pool *p, struct op *o) {
  if (!o->head_frame) return;
  p->out[o->head_frame - 1] = 0;
  frame_give(p, o->head_frame - 1);
  o->head_frame = 0;
}
static int head_park(struct pool *p, struct op *o, const u8 *from, u32 len) {
  u32 f;
  lock(&p->lock);
  int got = (int)frames_take(p, 1, &f);
  if (got) p->out[f] = 1;
  unlock(&p->lock);
  if (!got) return -E_NOBUFS;
  memcpy(frame_at(p, f), from, len);
  o->head_frame = f + 1;
  o->head_len = len;
  return 0;
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
    if (o->kind == OP_OUT || o->kind == OP_SNAP) {
      out_unref(p, o);
      head_unref(p, o);
    } else {
      in_unref(p, o);
    }
    if (unlikely(p->file_pages)) {
      map_settle(p, o);
      if (p->broken && !status) status = -E_STALE;
    }
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
  if ((o->flags & OP_PARKED || o->head_frame) && p->live) {
    lock(&p->lock);
    if (o->flags & OP_PARKED) out_unref(p, o);
    head_unref(p, o);
    unlock(&p->lock);
    if (unlikely(p->starved)) feed(p);
  }
  op_drop(i);
  return 0;
}

// Gives a send that has not begun a header. -ENOBUFS: there is no frame for it.
EXPORT s32 moat_op_header(s32 i, const u8 *src, u32 len) {
  if (i < 0 || (u32)i >= G.op_high || G.op[i].state != OP_HELD || G.op[i].kind != OP_OUT || G.op[i].head_frame)
    return -E_INVAL;
  return len > HEADER_MAX ? -E_INVAL : head_park(&G.pool[G.op[i].pool], &G.op[i], src, len);
}

// The same for later: the bytes stay where they are (JavaScript holds a copy) until they are sent.
EXPORT s32 moat_op_header_staged(s32 i, f64 src, u32 len) {
  if (i < 0 || (u32)i >= G.op_high || G.op[i].state != OP_HELD || G.op[i].kind != OP_OUT || G.op[i].head_frame)
    return -E_INVAL;
  if (len > HEADER_MAX) return -E_INVAL;
  G.op[i].head_src = (u64)src;
  G.op[i].head_len = len;
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
  // What is mapped read-only cannot be written to: a stray write gets a page of its own.
  if ((guard == GUARD_WAIT || guard == GUARD_COW) && !p->read_only) {
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
