// Page swapping: the frames behind two ranges of the window are exchanged. Nothing is copied; what moves are the
// page tables of the window, so that it costs the same whatever the pages hold.
#include "memory.h"

// A range of pages in one mapping: neighbouring frames that allow the program the same.
static u32 piece(struct pool *p, u32 page, u32 most) {
  u32 n = 1;
  while (n < most && p->state[page + n] == p->state[page] && p->frame[page + n] == p->frame[page] + n) n++;
  return n;
}

// Where the kernel cannot move a shared mapping and leave one behind (before 5.13): maps n frames anew.
static int map_frames(struct pool *p, u32 page, u32 frame, u32 n, u8 state) {
  u64 bytes = (u64)n << G.page_shift, to = window_at(p, page);
  s64 t = sys5(NR_mremap, frame_at(p, frame), 0, bytes, MREMAP_MAYMOVE, 0);
  if (t < 0 && t > -4096) return (int)t;
  // Closed before it is there: no thread may write to a page in flight in between.
  if (state != RW) sys3(NR_mprotect, t, bytes, prot_flags[state]);
  s64 r = sys5(NR_mremap, t, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
  if (r == (s64)to) return 0;
  sys2(NR_munmap, t, bytes);
  return r < 0 ? (int)r : -E_NOMEM;
}
static int remap_both(struct pool *p, u32 a, u32 b, u32 n) {
  int r = map_frames(p, a, p->frame[b], n, p->state[b]);
  if (!r && (r = map_frames(p, b, p->frame[a], n, p->state[a]))) map_frames(p, a, p->frame[a], n, p->state[a]);
  return r;
}

// Exchanges the mappings of two pieces. At no moment is there a hole: DONTUNMAP leaves the mapping behind without
// its page table, and another thread that comes by finds the same frame again.
static int exchange(struct pool *p, u32 a, u32 b, u32 n) {
  u64 wa = window_at(p, a), wb = window_at(p, b), bytes = (u64)n << G.page_shift;
  const int keep = MREMAP_MAYMOVE | MREMAP_DONTUNMAP, over = MREMAP_MAYMOVE | MREMAP_FIXED;
  s64 t = sys5(NR_mremap, wa, bytes, bytes, keep, 0);
  if (t == -E_INVAL) return remap_both(p, a, b, n);
  if (t < 0 && t > -4096) return (int)t;
  s64 r = sys5(NR_mremap, wb, bytes, bytes, keep | MREMAP_FIXED, wa);
  if (r != (s64)wa) {
    sys5(NR_mremap, t, bytes, bytes, over, wa);
    return r < 0 ? (int)r : -E_NOMEM;
  }
  r = sys5(NR_mremap, t, bytes, bytes, over, wb);
  if (r == (s64)wb) return 0;
  sys5(NR_mremap, wa, bytes, bytes, keep | MREMAP_FIXED, wb);
  sys5(NR_mremap, t, bytes, bytes, over, wa);
  return r < 0 ? (int)r : -E_NOMEM;
}

static void exchange_tables(struct pool *p, u32 a, u32 b, u32 n) {
  for (u32 k = 0; k < n; k++) {
    u32 f = p->frame[a + k], g = p->frame[b + k];
    u8 s = p->state[a + k];
    p->frame[a + k] = g;
    p->frame[b + k] = f;
    p->owner[g] = a + k;
    p->owner[f] = b + k;
    p->state[a + k] = p->state[b + k];
    p->state[b + k] = s;
  }
}

// Boundaries that cost a mapping, in a range and at its ends.
static s64 breaks(struct pool *p, u32 a, u32 n) {
  s64 m = 0;
  for (u32 i = a; i <= a + n; i++) m += broken_at(p, i);
  return m;
}

// Which of the 2 MiB blocks a range touches are still mapped by one page-table entry: those whose frames came
// along as a whole.
static void recount_huge(struct pool *p, u32 a, u32 n) {
  for (u32 c = a / HUGE; c <= (a + n - 1) / HUGE; c++) {
    u32 first = c * HUGE, f = p->frame[first], whole = first + HUGE <= p->pages && f % HUGE == 0 && p->home[f / HUGE];
    whole = whole && p->state[first] == p->state[first + HUGE - 1] && piece(p, first, HUGE) == HUGE;
    p->huge[c] = (u8)(whole && first >= a && first + HUGE <= a + n);
    p->block[c] = whole ? f / HUGE + 1 : 0;
  }
}

static s32 swap_locked(struct pool *p, u32 a, u32 b, u32 n) {
  s64 before = breaks(p, a, n) + breaks(p, b, n);
  u32 done = 0, m;
  int r = 0;
  for (; done < n && !r; done += m) {
    m = piece(p, a + done, n - done);
    m = piece(p, b + done, m);
    r = exchange(p, a + done, b + done, m);
    if (r) break;
    exchange_tables(p, a + done, b + done, m);
  }
  if (!r && budget(breaks(p, a, n) + breaks(p, b, n) - before)) r = -E_NOMEM;
  if (r)  // what was exchanged goes back, piece by piece
    for (u32 k = 0; k < done; k += m) {
      m = piece(p, a + k, done - k);
      m = piece(p, b + k, m);
      if (exchange(p, a + k, b + k, m)) break;  // stays exchanged: mappings this process had a moment ago are gone
      exchange_tables(p, a + k, b + k, m);
    }
  recount_huge(p, a, n);
  recount_huge(p, b, n);
  return r;
}

// Exchanges n pages at a with those at b. -EBUSY: an operation holds one of them in a way that does not move: a
// receive, or a send whose guard is tied to its place ("wait", "none"). -ENOMEM: no mapping left.
EXPORT s32 moat_swap(s32 pool, u32 a, u32 b, u32 n) {
  struct pool *p = pool_of(pool);
  if (!p || !n || a >= p->pages || b >= p->pages || n > p->pages - a || n > p->pages - b) return -E_INVAL;
  if (a < b ? a + n > b : b + n > a) return -E_INVAL;
  s32 r = 0;
  lock(&p->lock);
  for (u32 k = 0; k < n && !r; k++)
    for (u32 side = 0; side < 2 && !r; side++) {
      u32 page = (side ? b : a) + k, f = p->frame[page];
      if (p->in[f] || p->hold[f] || (p->out[f] && p->state[page] != RO)) r = -E_BUSY;
    }
  if (!r) r = swap_locked(p, a, b, n);
  unlock(&p->lock);
  return r;
}
