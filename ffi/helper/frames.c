// Frames and the map of a pool: what is behind each page of the window, and what the program may do there.
// See memory.h for who may touch what.
#include "memory.h"

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

static const int prot_flags[] = { [RW] = PROT_READ | PROT_WRITE, [RO] = PROT_READ, [CLOSED] = PROT_NONE };

// Changes n pages, all in the same state, to another. 0, or -ENOMEM with nothing changed.
static int change(struct pool *p, u32 a, u32 n, u8 to, int must) {
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
    r = (int)sys3(NR_mprotect, window_at(p, a), (u64)n << G.page_shift, prot_flags[to]);
    if (!r) return 0;
    // Scattered frames are several mappings, and the kernel may have changed some before it refused to split
    // the last. Taking that back splits nothing.
    sys3(NR_mprotect, window_at(p, a), (u64)n << G.page_shift, prot_flags[from]);
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
  if (unlikely(p->shared == f + 1)) p->shared = 0;
  if (unlikely(f < p->file_pages)) {  // of a file: never free, but its page can go home now
    if (p->due >= p->due_end) p->due = f, p->due_end = f;
    if (f < p->due) p->due = f;
    if (f >= p->due_end) p->due_end = f + 1;
    return;
  }
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
