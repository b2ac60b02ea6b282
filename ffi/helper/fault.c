// The fault handler. It runs on whatever thread touched a guarded page, on that thread's signal stack
// (Deno: 11,952 bytes, of which the kernel's frame takes up to 3.4 KB), between two instructions of
// compiled JavaScript. It may take the spin locks of this helper: nobody faults while holding one.
// It never calls into JavaScript and never waits for JavaScript.
#include "memory.h"

static void progress_all(void);                            // conn.c: moves every transport of the process on
static int only_self_can(s32 conn);                        // is the other end driven by this very thread?
static u64 in_transit(s32 conn);                           // how long a message may be under way
static void revoke_receive(s32 op, s32 pool, u32 page, s32 status);  // takes it back from its transport

static struct chained segv = { .sig = SIGSEGV };

// ---- faults that are ours

struct record { u32 page, offset, pages; s32 op; u8 outcome; };

// Progress is made by the waiting thread itself: spin, then give the CPU away, then sleep in short steps.
struct waiting { u64 t0, deadline; u32 turns; };
static void wait_turn(struct waiting *w) {
  u32 n = w->turns++;
  if (n < 512)
    for (int i = 0; i < 8; i++) cpu_relax();
  else if (n < 4096)
    sys0(NR_sched_yield);
  else
    sleep_ns(n < 8192 ? 50000 : 500000);
}

// The connection that will complete what a page waits for, or -1 if that is somebody else's business. The
// latest operation may have ended before others, and its number may stand for quite another one by now.
static s32 conn_of(struct pool *p, u32 page) {
  s32 op = p->last[p->frame[page]];
  if (op < 0 || (u32)op >= G.op_high) return -1;
  struct op *o = &G.op[op];
  u32 s = load_acq(&o->state);
  if (&G.pool[o->pool] != p || page - o->page >= o->pages) return -1;
  return s == OP_QUEUED || s == OP_POSTED ? o->conn : -1;
}

// The latest operation on a page has ended: looks for another that still holds it, and makes that the one to
// ask about.
static void find_holder(struct pool *p, u32 page, int until_idle) {
  u32 f = p->frame[page];
  for (u32 i = 0; i < G.op_high; i++) {
    struct op *o = &G.op[i];
    u32 s = load_acq(&o->state);
    if ((s != OP_QUEUED && s != OP_POSTED) || &G.pool[o->pool] != p || page - o->page >= o->pages) continue;
    if (p->state[page] == CLOSED ? o->kind != OP_IN : o->kind != OP_OUT || (!until_idle && o->guard != GUARD_WAIT))
      continue;
    struct runs it = runs_of(p->dev, p->frames, &o->d);
    struct run r;
    int has = o->kind == OP_IN;  // a page keeps its frame while a receive is pending
    while (!has && runs_next(&it, &r) == 1) has = f - r.frame < r.count;
    if (!has) continue;
    p->last[f] = (s32)i;
    return;
  }
}

// Marks every operation that uses a frame as broken by a write we could not keep from it.
static void violate(struct pool *p, s32 pool, u32 frame) {
  for (u32 i = 0; i < G.op_high; i++) {
    struct op *o = &G.op[i];
    if (o->pool != pool || (o->kind != OP_OUT && o->kind != OP_SNAP) || (o->state != OP_QUEUED && o->state != OP_POSTED && o->state != OP_HELD))
      continue;
    struct runs it = runs_of(p->dev, p->frames, &o->d);
    struct run r;
    while (runs_next(&it, &r) == 1)
      if (frame - r.frame < r.count) __atomic_or_fetch(&o->flags, OP_VIOLATED, __ATOMIC_RELAXED);
  }
}

// Are snapshots all that holds a frame? Then nothing but JavaScript can let go of it.
static int only_snapshots(struct pool *p, s32 pool, u32 frame) {
  u32 holders = 0;
  for (u32 i = 0; i < G.op_high; i++) {
    struct op *o = &G.op[i];
    if (o->pool != pool || o->kind != OP_SNAP || o->state != OP_HELD) continue;
    struct runs it = runs_of(p->dev, p->frames, &o->d);
    struct run r;
    while (runs_next(&it, &r) == 1) holders += frame - r.frame < r.count;
  }
  return holders == p->out[frame];
}

// A receive that did not come in time: the receives on this page give up their claim and the page opens.
static void give_up_receives(struct pool *p, s32 pool, u32 page, s32 status) {
  for (u32 i = 0; i < G.op_high; i++) {
    struct op *o = &G.op[i];
    if (o->pool == pool && o->kind == OP_IN && (o->state == OP_QUEUED || o->state == OP_POSTED || o->state == OP_HELD) &&
        page - o->page < o->pages)
      revoke_receive((s32)i, pool, page, status);
  }
  lock(&p->lock);
  // A device that cannot take a receive back (none here can not) still owns the frame; the page opens anyway.
  if (p->state[page] == CLOSED) must_open(p, page);
  unlock(&p->lock);
}

// Waits until no receive (state CLOSED) or no sending operation of the kind that matters holds the page.
// Called and returns with the pool locked. DID_WAIT, DID_TIMEOUT or DID_DEADLOCK.
static u8 wait_page(struct pool *p, u32 page, int until_idle, struct waiting *w) {
  int local_turns = 0;
  u8 vain = 0;
  for (;;) {
    u32 f = p->frame[page];
    if (p->state[page] == RW) return DID_WAIT;
    if (p->state[page] == CLOSED ? !p->in[f] : until_idle ? !p->out[f] : !p->hold[f]) return DID_WAIT;
    if (vain) return vain;
    if (conn_of(p, page) < 0 && w->turns % 1024 == 0) find_holder(p, page, until_idle);
    s32 conn = conn_of(p, page);
    unlock(&p->lock);
    progress_all();
    u64 now = now_ns();
    int hopeless = conn >= 0 && only_self_can(conn) && ++local_turns > 2 && now - w->t0 >= in_transit(conn);
    if (!hopeless && now < w->deadline) wait_turn(w);
    lock(&p->lock);
    vain = hopeless ? DID_DEADLOCK : now >= w->deadline ? DID_TIMEOUT : 0;
  }
}

#define SPIN_FAULT_NS 8000  // a fault with a page's mapping made anew (measured on an EPYC 9005)

// How many pages this fault is worth: a program that walks through a buffer is given four times as many
// each time it comes to the next page, so that a rewrite of n pages costs log n faults, and a single write one.
static u32 predict(struct pool *p, u32 page, u32 most) {
  u32 s = p->start[page], n = 1;
  if (s != NONE && p->hint[s] == page)
    n = p->chunk[s] * 4;
  else if (s != NONE && p->from[s] == page)
    n = (p->walk[s] + 1) / 2;  // half of the way it went from here the last time: the other half proves it right
  return n > most ? most : n;
}
static void learn(struct pool *p, u32 page, u32 n) {
  u32 s = p->start[page];
  if (s == NONE) return;
  if (p->hint[s] == page)
    p->walk[s] += n;
  else {
    p->from[s] = page;
    p->walk[s] = n;
  }
  p->hint[s] = page + n;
  p->chunk[s] = n;
}

// How long to look for a completion before pages are copied: for what all the copies of this walk would take,
// as far as it can be foreseen, and less and less (but for every 64th time) when it did not come before.
static u64 patience(struct pool *p, u32 page, u32 n) {
  u32 s = p->start[page], haste = s == NONE ? 0 : p->haste[s];
  if (s != NONE && p->from[s] == page && p->walk[s] > n) n = p->walk[s];
  if (p->huge[page / HUGE] && n < HUGE / 8) n = HUGE / 8;  // once it loses a page it is split for good
  return (SPIN_FAULT_NS + n * G.spin_page_ns) >> (haste % 64 > 6 ? 6 : haste % 64);
}

// The neighbours of a read-only page that are in the same buffer and the same situation.
static u32 extent(struct pool *p, u32 page, u32 most, int in_flight) {
  u32 n = 1, s = p->start[page];
  while (n < most && page + n < p->pages && p->start[page + n] == s && p->state[page + n] == RO) {
    u32 f = p->frame[page + n];
    if ((p->out[f] != 0) != in_flight || p->hold[f]) break;
    n++;
  }
  return n;
}

// A write to a page that is, or was, being sent. The pool is locked, and stays so.
static u8 write_to_sent(struct pool *p, s32 pool, u32 page, struct record *rec) {
  struct waiting w = { now_ns(), 0, 0 };
  w.deadline = w.t0 + p->timeout_ns;
  u8 waited = 0;
  if (p->hold[p->frame[page]]) {
    waited = wait_page(p, page, 0, &w);
    if (p->state[page] == RW) return waited;
  }
  for (;;) {
    u32 f = p->frame[page];
    if (!p->out[f]) {  // "only restores the permission"
      u32 n = extent(p, page, predict(p, page, 1u << 20), 0);
      if (p->huge[page / HUGE]) {  // as a whole, or the kernel would have to split it
        u32 c = page / HUGE * HUGE;
        u32 whole = extent(p, c, n > HUGE ? n : HUGE, 0) / HUGE * HUGE;
        if (whole && p->state[c] == RO && !p->out[p->frame[c]]) {
          page = c;
          n = whole;
        }
      }
      int r = protect(p, page, n, RW);
      while (r && n > 1) r = protect(p, page, n /= 2, RW);
      if (r) {  // no mapping left to split: open whole neighbourhoods, which needs none
        u32 a = page, b = page + 1;
        while (a && p->state[a - 1] == RO && !p->out[p->frame[a - 1]]) a--;
        while (b < p->pages && p->state[b] == RO && !p->out[p->frame[b]]) b++;
        r = protect(p, a, b - a, RW);
        n = b - a;
      }
      if (r) r = must_open(p, page), n = 1;
      if (r) return 0;
      learn(p, page, n);
      rec->pages = n;
      return waited ? waited : DID_RESTORE;
    }
    u32 n = extent(p, page, predict(p, page, 256), 1);
    // A completion that is about to come is cheaper than a copy: look for one, for no longer than the
    // copy would take. A huge page that loses a page is split for good, so it is worth its copy as a whole.
    s32 conn = conn_of(p, page);
    u32 b = p->start[page];
    if (conn >= 0 && !waited && p->hold[f] == 0 && (b == NONE || p->hint[b] != page)) {  // once a walk
      u64 until = now_ns() + patience(p, page, n);
      unlock(&p->lock);
      do {
        progress_all();
        for (int i = 0; i < 32; i++) cpu_relax();
      } while (load_rlx(&p->out[f]) && now_ns() < until && !only_self_can(conn));
      lock(&p->lock);
      if (p->state[page] != RO) return DID_RESTORE;  // another thread was faster
      // Only where the walk was foreseen: else the time was too short to tell.
      if (b != NONE && p->from[b] == page) p->haste[b] = p->out[p->frame[page]] ? p->haste[b] + 1 : 0;
      if (!p->out[p->frame[page]]) continue;
      n = extent(p, page, n, 1);
    }
    u64 t0 = now_ns();
    int got = privatise(p, page, n);
    if (got < 0 && n > 1) got = privatise(p, page, 1);
    if (got > 0) {
      // The program is about to write all of them: mapping them now saves a fault a page.
      if (got > 1) sys3(NR_madvise, window_at(p, page), (u64)got << G.page_shift, MADV_POPULATE_WRITE);
      p->stat[S_PRIVATE_PAGES] += (u64)got;
      u32 s = p->start[page];
      if (s != NONE) p->cost[s] += (u32)(now_ns() - t0);
      learn(p, page, (u32)got);
      rec->pages = (u32)got;
      return waited ? waited : DID_PRIVATE;
    }
    // No frame, or no mapping: wait like "wait" does, and say so.
    p->stat[S_DEGRADED]++;
    // The thread whose JavaScript would have to release the snapshots is this one: no use in waiting.
    if (p->thread == thread_id() && only_snapshots(p, pool, p->frame[page])) waited = DID_DEADLOCK;
    if (waited > DID_WAIT) {  // the time is spent
      violate(p, pool, p->frame[page]);
      if (must_open(p, page)) return 0;
      return waited;
    }
    waited = wait_page(p, page, 1, &w);
    if (p->state[page] == RW) return waited;
  }
}

// An access to a page being received.
static u8 access_to_pending(struct pool *p, s32 pool, u32 page) {
  struct waiting w = { now_ns(), 0, 0 };
  w.deadline = w.t0 + p->timeout_ns;
  u8 r = wait_page(p, page, 0, &w);
  if (p->state[page] != CLOSED) return r;
  if (r == DID_WAIT) {  // arrived, but the mapping could not be opened then
    u32 a = page, b = page + 1;
    while (a && p->state[a - 1] == CLOSED && !p->in[p->frame[a - 1]]) a--;
    while (b < p->pages && p->state[b] == CLOSED && !p->in[p->frame[b]]) b++;
    return protect(p, a, b - a, RW) && must_open(p, page) ? 0 : r;
  }
  unlock(&p->lock);
  give_up_receives(p, pool, page, r == DID_DEADLOCK ? -E_BUSY : -E_TIMEDOUT);
  lock(&p->lock);
  return r;
}

static void report(struct pool *p, const struct record *rec, int write, u64 ns) {
  p->stat[S_FAULTS]++;
  p->stat[write ? S_WRITE_FAULTS : S_READ_FAULTS]++;
  if (rec->outcome == DID_RESTORE) p->stat[S_RESTORES]++;
  if (rec->outcome == DID_TIMEOUT) p->stat[S_TIMEOUTS]++;
  if (rec->outcome == DID_DEADLOCK) p->stat[S_DEADLOCKS]++;
  if (rec->outcome >= DID_WAIT) {
    p->stat[S_WAITS]++;
    p->stat[S_WAIT_NS] += ns;
    u64 us = ns / 1000;
    u32 b = us ? 64 - (u32)__builtin_clzl(us) : 0;
    p->stat[S_HIST + (b < HIST_BUCKETS ? b : HIST_BUCKETS - 1)]++;
  }
  struct fault *r = &p->faults[p->nfaults % FAULT_RING];
  r->start = p->start[rec->page];
  r->page = rec->page;
  r->offset = rec->offset;
  r->op = rec->op;
  r->access = (u8)write;
  r->outcome = rec->outcome;
  r->pages = (u16)(rec->pages > 0xffff ? 0xffff : rec->pages);
  r->thread = (u32)thread_id();
  r->ns = ns;
  store_rel(&p->nfaults, p->nfaults + 1);
}

static int map_scribble(struct pool *p, u32 page);  // mapped.c

// 1 if the access can be tried again, 0 if it is not ours after all.
static int pool_fault(s32 pool, u64 address, int write) {
  struct pool *p = &G.pool[pool];
  u64 t0 = now_ns();
  lock(&p->lock);
  if (!p->live || address - p->win >= p->win_bytes) {
    unlock(&p->lock);
    return 0;
  }
  u32 page = (u32)((address - p->win) >> G.page_shift);
  struct record rec = { page, (u32)(address & (G.page_size - 1)), 1, p->last[p->frame[page]], 0 };
  if (p->state[page] == RW) {
    int r;
    if (p->read_only && write) {
      r = map_scribble(p, page);
    } else {
      // Another thread has opened the page since. If the kernel disagrees, say it again; never loop for ever.
      p->stat[S_SPURIOUS]++;
      r = sys3(NR_mprotect, window_at(p, page), G.page_size, PROT_READ | PROT_WRITE) == 0;
    }
    unlock(&p->lock);
    return r;
  }
  p->guests++;  // the pool stays, though the lock is let go of while this waits
  rec.outcome = p->state[page] == RO ? write_to_sent(p, pool, page, &rec) : access_to_pending(p, pool, page);
  p->guests--;
  u64 ns = now_ns() - t0;
  u32 s = p->start[page];
  // The price of being told, for the "auto" guard: about 1 us a fault went before this handler's clock.
  if (s != NONE && rec.outcome != DID_PRIVATE) p->cost[s] += (u32)(ns < 1000000000 ? ns : 1000000000);
  if (s != NONE) p->cost[s] += 1000;
  if (rec.outcome) report(p, &rec, write, ns);
  s32 bell = rec.outcome && p->notify ? p->bell : -1;
  unlock(&p->lock);
  if (bell >= 0) bell_ring(bell);
  return rec.outcome != 0;
}

static int snapshot_fault(u64 address);  // snapshot.c: the program writes to a version it reads
static int peer_fault(u64 address);  // shm_message.c: a receiver writes to a message it reads in place

// A pool was closed between an access of another thread and this handler. If there are views of its memory they see
// zeros now, and the access succeeds; if there are not, it comes back and is nobody's.
#define LATE_FAULTS 64u
static int late_fault(u64 address) {
  for (u32 i = 0, n = load_acq(&G.pool_high); i < n; i++) {
    struct pool *p = &G.pool[i];
    if (load_acq(&p->live) || (address - p->win >= p->win_bytes && !arena_has(&p->views, address))) continue;
    if (__atomic_fetch_add(&p->late, 1, __ATOMIC_RELAXED) < LATE_FAULTS) return 1;
  }
  return 0;
}

EXPORT void moat_on_segv(int sig, void *info, void *context) {
  (void)sig;
  s32 code = fault_code(info);
  u64 a = fault_address(info);
  // Nothing mapped there, or not this access. A jump into a buffer is a bug like any other: no guard would
  // ever make it executable.
  if ((code == 1 || code == 2) && a != fault_pc(context)) {
    for (s32 i = 0, n = (s32)load_acq(&G.pool_high); i < n; i++)
      if (load_acq(&G.pool[i].live) && a - G.pool[i].win < G.pool[i].win_bytes) {
        if (pool_fault(i, a, fault_is_write(context))) return;
        break;
      }
    if (snapshot_fault(a) || peer_fault(a) || late_fault(a)) return;
  }
  chain(&segv, info, context);
}

EXPORT s32 moat_handler_before(void) { return handler_before(&segv, moat_on_segv); }
EXPORT s32 moat_handler_after(void) { return handler_after(&segv, moat_on_segv); }
EXPORT s32 moat_handler_ours(void) { return handler_ours(&segv, moat_on_segv); }
EXPORT f64 moat_handler_address(void) { return (f64)(u64)moat_on_segv; }
