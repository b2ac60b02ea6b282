// Sends of copies: bytes in frames that no window shows, so that they need no guard.
#include "memory.h"

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

#define SHARED_MAX 256u  // bytes: smaller than what is read from or written to a disk past the page cache

// Finds room for a small copy in a frame that others are in. The frame is free when the last of them is done.
// -ENOBUFS: there is no frame.
static int share_frame(struct pool *p, struct op *o, s32 i, u8 **to) {
  u32 f = p->shared - 1, len = ((u32)o->len + 15) & ~15u;
  if (!p->shared || p->shared_at + len > G.page_size) {
    if (!p->nfree && p->nkept) frames_unkeep(p);
    if (!p->nfree || !frames_take(p, 1, &f)) return -E_NOBUFS;
    p->owner[f] = NONE;
    p->out[f] = 0;
    p->shared = f + 1;
    p->shared_at = 0;
  }
  p->out[f]++;
  p->last[f] = i;
  o->off = o->d.off = p->shared_at;
  *to = frame_at(p, f) + p->shared_at;
  p->shared_at += len;
  return runs_add(p, o, f, 1);  // the first run always has a place
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
  u8 *to = 0;
  lock(&p->lock);
  int r = o->len && o->len <= SHARED_MAX ? share_frame(p, o, i, &to) : frames_for(p, o, i, o->len);
  unlock(&p->lock);
  if (r) {
    op_drop(i);
    return r;
  }
  if (to)
    memcpy(to, src, o->len);  // the program's memory, which may fault: not under the lock
  else
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

// A write of bytes that lie outside the pool where nobody will change them: a file can be written from there.
EXPORT s32 moat_out_lent(s32 pool, f64 src, f64 len) {
  s32 i = moat_out_staged(pool, src, len);
  if (i < 0) return i;
  G.op[i].guard = GUARD_COW;
  G.op[i].flags = OP_LENT;
  return i;
}
