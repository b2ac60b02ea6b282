// Views of frames for JavaScript to read: of a peer's pool (messages of shm://) or of our own (snapshots). One
// mapping of all frames at their places, read-only, and behind it room for aliases of scattered frames. A write
// goes to a private copy of its page, by the kernel's own copy-on-write, until the view is closed: the frames
// never change. Every function is called with the lock of the arena's owner held.
#include "memory.h"

static int arena_map(struct arena *a, u32 page, u32 n, u32 frame, int prot, int flags) {
  u64 to = a->view + ((u64)page << G.page_shift);
  s64 r = sys6(NR_mmap, (s64)to, (s64)((u64)n << G.page_shift), prot, flags | MAP_FIXED, a->fd,
               (s64)((u64)frame << G.page_shift));
  return r == (s64)to ? 0 : r < 0 ? (int)r : -E_NOMEM;
}
static u32 arena_frame(const struct arena *a, u32 page) { return page < a->frames ? page : a->alias[page - a->frames]; }
static int arena_has(const struct arena *a, u64 address) {
  return a->view && address - a->view < (u64)(a->frames + a->aliases) << G.page_shift;
}

// The mappings that writes to [page, page+n) were accounted for.
static s64 private_maps(struct arena *a, u32 page, u32 n) {
  s64 maps = 0;
  for (u32 i = page; i < page + n; i++) maps += a->flags[i] & FIRST ? 2 : 0;
  return maps;
}

// Puts back the frames where the program had written, and leaves `flags` there. Returns the pages put back.
static u32 arena_restore(struct arena *a, u32 page, u32 n, u8 flags) {
  u32 put = 0;
  for (u32 i = page, j; i < page + n; i = j) {
    j = i + 1;
    if (a->flags[i] & PRIVATE) {
      u32 f = arena_frame(a, i);
      while (j < page + n && (a->flags[j] & PRIVATE) && arena_frame(a, j) == f + (j - i)) j++;
      put += j - i;
      if (arena_map(a, i, j - i, f, PROT_READ, MAP_SHARED)) {
        // No mapping left. What the program wrote stays there, so nothing is read in place there any more.
        for (u32 k = i; k < j; k++) a->flags[k] &= (u8)~HELD;
        continue;
      }
      account(-private_maps(a, i, j - i));
    }
    memset(a->flags + i, flags, j - i);
  }
  return put;
}

// Takes a place among the aliases back.
static void arena_close(struct arena *a, u32 page, u32 n) {
  account(-private_maps(a, page, n));
  memset(a->flags + page, 0, n);
  sys6(NR_mmap, (s64)(a->view + ((u64)page << G.page_shift)), (s64)((u64)n << G.page_shift), PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

// The address of a list that is one run of frames nobody else is reading here; 0 if it is not.
static u64 arena_in_place(struct arena *a, const struct desc *d) {
  if (d->kind != D_PAGES || d->nruns != 1) return 0;
  u32 f = d->run[0].frame, n = d->run[0].count;
  for (u32 k = f; k < f + n; k++)
    if (a->flags[k]) return 0;
  memset(a->flags + f, HELD, n);
  return a->view + ((u64)f << G.page_shift) + d->off;
}

// Maps a list of any runs at a place among the aliases. Its address, or -errno. `base` is where the list's own
// frames are read: a peer's may change under us, and is checked.
static s64 arena_alias(struct arena *a, u64 base, const struct desc *d, u32 at) {
  if (at >= a->aliases) return -E_INVAL;
  u32 pages = (u32)((d->off + d->len + G.page_size - 1) >> G.page_shift), k = 0;
  if (pages > a->aliases - at) return -E_INVAL;
  if (budget(d->nruns + 1)) return -E_NOMEM;
  struct runs it = runs_of(base, a->frames, d);
  struct run r;
  int e = 0, more;
  while ((more = runs_next(&it, &r)) == 1 && !e) {
    if (r.count > pages - k) {
      more = -1;
      break;
    }
    e = arena_map(a, a->frames + at + k, r.count, r.frame, PROT_READ, MAP_SHARED);
    for (u32 j = 0; j < r.count && !e; j++, k++) {
      a->alias[at + k] = r.frame + j;
      a->flags[a->frames + at + k] = HELD;
    }
  }
  if (more < 0 || k != pages) e = e ? e : -E_PROTO;
  if (e) {
    arena_close(a, a->frames + at, k);
    account(-(s64)(d->nruns + 1));
    return e;
  }
  return (s64)(a->view + ((u64)(a->frames + at) << G.page_shift) + d->off);
}

// Ends a view: `page` is its place, runs is what its alias cost.
static void arena_release(struct arena *a, u32 page, u32 n, u32 runs) {
  if (page < a->frames) {
    arena_restore(a, page, n, 0);
  } else {
    arena_close(a, page, n);
    account(-(s64)(runs + 1));
  }
}

// The program writes to a view: it gets a private page, and more of them the longer it goes on. Returns how
// many, 0 if there is no view, -1 if it failed.
static int arena_write(struct arena *a, u64 address) {
  u32 page = (u32)((address - a->view) >> G.page_shift), m = 1, all = a->frames + a->aliases;
  if (!(a->flags[page] & HELD)) return 0;  // a view that has been closed: a stray pointer like any other
  if (a->flags[page] & PRIVATE) return 1;  // another thread was faster
  u32 want = page == a->hint ? (a->chunk < 64 ? a->chunk * 4 : 256) : 1, f = arena_frame(a, page);
  int in_place = page < a->frames;
  while (m < want && page + m < all && a->flags[page + m] == HELD && (page + m < a->frames) == in_place &&
         arena_frame(a, page + m) == f + m)
    m++;
  int r = arena_map(a, page, m, f, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  if (r && m > 1) r = arena_map(a, page, m = 1, f, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  if (r) return -1;
  for (u32 k = 0; k < m; k++) a->flags[page + k] |= PRIVATE;
  a->flags[page] |= FIRST;
  account(2);  // past the budget if need be: it must not fail
  a->writes++;
  a->hint = page + m;
  a->chunk = m;
  return (int)m;
}
