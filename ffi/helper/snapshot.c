// Snapshots: immutable versions of a buffer. A snapshot is an operation that holds frames like a send under
// "cow" and is never posted; each send of it is an operation on the same frames. The program reads it through
// a mapping of its own.
#include "memory.h"

static struct op *snapshot_of(s32 i) {
  return i >= 0 && (u32)i < G.op_high && G.op[i].kind == OP_SNAP && G.op[i].state == OP_HELD ? &G.op[i] : 0;
}

// Takes a version of n window pages. -EBUSY: a receive is pending on one of them. -ENOMEM: no mapping left.
EXPORT s32 moat_snapshot(s32 pool, u32 page, u32 n, u32 off, f64 len) {
  s32 i = moat_out(pool, page, n, off, len, GUARD_COW);
  if (i >= 0) G.op[i].kind = OP_SNAP;
  return i;
}

// Starts a send of `len` bytes of a snapshot from `at` on.
EXPORT s32 moat_out_of(s32 snapshot, f64 at, f64 len) {
  struct op *s = snapshot_of(snapshot);
  if (!s || at < 0 || len < 1 || (u64)at + (u64)len > s->d.len) return -E_INVAL;
  s32 i = op_new(OP_OUT, s->pool), r = 0;
  if (i < 0) return i;
  struct op *o = &G.op[i];
  struct pool *p = &G.pool[s->pool];
  u64 first = (s->d.off + (u64)at) >> G.page_shift;  // pages of the snapshot to leave out, and to take
  o->d.off = (u32)((s->d.off + (u64)at) & (G.page_size - 1));
  u64 want = (o->d.off + (u64)len + G.page_size - 1) >> G.page_shift;
  o->guard = GUARD_COW;
  o->len = o->d.len = (u64)len;
  lock(&p->lock);
  struct runs it = runs_of(p->dev, p->frames, &s->d);
  struct run run;
  while (want && runs_next(&it, &run) == 1) {
    if (first >= run.count) {
      first -= run.count;
      continue;
    }
    u32 f = run.frame + (u32)first, c = run.count - (u32)first;
    if (c > want) c = (u32)want;
    first = 0;
    for (u32 k = 0; k < c; k++) p->out[f + k]++;
    r = runs_add(p, o, f, c);
    if (r) {
      for (u32 k = 0; k < c; k++) p->out[f + k]--;
      out_unref(p, o);
      break;
    }
    want -= c;
  }
  unlock(&p->lock);
  if (r) op_drop(i);
  return r ? r : i;
}

// Says where views of a pool's snapshots are to be: `view` is a read-only mapping of all frames, and behind it
// room for `aliases` more.
EXPORT s32 moat_views_add(s32 pool, f64 view, u32 aliases, s32 fd) {
  struct pool *p = pool_of(pool);
  if (!p || p->views.view) return -E_INVAL;
  u32 *marks = map_anonymous(p->frames + (u64)aliases * 5);
  if (!marks) return -E_NOMEM;
  lock(&p->lock);
  p->views = (struct arena){ 0, p->frames, aliases, fd, (u8 *)(marks + aliases), marks, 0, 0, 0 };
  store_rel(&p->views.view, (u64)view);  // the handler looks at it without the lock
  unlock(&p->lock);
  return 0;
}
static void views_remove(struct pool *p) {
  if (p->views.view) sys2(NR_munmap, p->views.alias, p->views.frames + (u64)p->views.aliases * 5);
}

// Opens a view of a snapshot: in place (at < 0), if it is in one piece that nobody else reads; or mapped at a
// place among the aliases. Its address; 0 if it cannot be read in place; or -errno.
EXPORT f64 moat_view_open(s32 snapshot, s32 at) {
  struct op *s = snapshot_of(snapshot);
  if (!s) return -E_INVAL;
  struct pool *p = &G.pool[s->pool];
  lock(&p->lock);
  s64 address = at < 0 ? (s64)arena_in_place(&p->views, &s->d) : arena_alias(&p->views, p->dev, &s->d, (u32)at);
  unlock(&p->lock);
  return (f64)address;
}
EXPORT s32 moat_view_close(s32 pool, u32 page, u32 n, u32 runs) {
  struct pool *p = pool_of(pool);
  if (!p) return -E_INVAL;
  lock(&p->lock);
  arena_release(&p->views, page, n, runs);
  unlock(&p->lock);
  return 0;
}
// Undoes what the program has written to a view. Returns the pages it had written to.
EXPORT s32 moat_view_restore(s32 pool, u32 page, u32 n) {
  struct pool *p = pool_of(pool);
  if (!p) return -E_INVAL;
  lock(&p->lock);
  u32 put = arena_restore(&p->views, page, n, HELD);
  unlock(&p->lock);
  return (s32)put;
}
// 1 if a write to the buffer had to go through, because no frame was left for it: this is no version any more.
EXPORT s32 moat_snapshot_broken(s32 snapshot) {
  struct op *s = snapshot_of(snapshot);
  return !s ? -E_INVAL : s->flags & OP_VIOLATED ? 1 : 0;
}

// For the fault handler.
static int snapshot_fault(u64 address) {
  for (u32 i = 0, n = load_acq(&G.pool_high); i < n; i++) {
    struct pool *p = &G.pool[i];
    if (!load_acq(&p->live) || !load_acq(&p->views.view) || !arena_has(&p->views, address)) continue;
    lock(&p->lock);
    int r = p->live && arena_has(&p->views, address) ? arena_write(&p->views, address) : 0;
    unlock(&p->lock);
    if (r) return r > 0;
  }
  return 0;
}
