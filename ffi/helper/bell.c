// The doorbell: one thread for each JavaScript thread that opens channels. It sleeps in epoll_wait over all
// of that thread's sockets and rings once, until JavaScript has answered, by a byte into a socket pair whose
// other end the runtime's event loop reads. Not by a callback: an isolate ends when a Worker is terminated or
// the program is over, at any moment, and a call of its callback is then a jump into freed memory. A socket
// whose other end is gone only says so, and is how a Worker's connections are ended in its stead.
// The thread is made by pthread_create and blocks all signals but SIGBUS.
#include "conn.h"

#define MAX_BELLS 256
enum { WATCH_CONN = 1, WATCH_PLAIN, WATCH_RING, WATCH_PAIR, WATCH_URING };

#define TICK_MS 500
struct bell {
  u32 live, pending;
  s32 epoll, event, pair, owner;
  u32 ticks;   // has watched a connection that wants to be looked at now and then
  s32 thread;  // the one that sleeps here, once it runs
  u32 kicked;  // it shall move its connections on
};
static struct bell bells[MAX_BELLS];
static u32 bells_lock;

struct event {
  u32 events;
  u64 data;
}
#if defined(__x86_64__)
__attribute__((packed))
#endif
;

// Rings by a byte into the socket `pair`.
EXPORT s32 moat_bell_new(s32 epoll, s32 event, s32 pair) {
  lock(&bells_lock);
  s32 i = 0;
  while (i < MAX_BELLS && bells[i].live) i++;
  if (i < MAX_BELLS) bells[i] = (struct bell){ 1, 0, epoll, event, pair, thread_id(), 0, -1, 0 };
  unlock(&bells_lock);
  if (i == MAX_BELLS) return -E_NFILE;
  struct event e = { 1 /* EPOLLIN */, (u64)WATCH_RING << 32 };
  s64 r = sys4(NR_epoll_ctl, epoll, 1 /* ADD */, event, &e);
  if (r >= 0) {
    struct event p = { 0x2000u /* EPOLLRDHUP; EPOLLHUP always comes */, (u64)WATCH_PAIR << 32 };
    r = sys4(NR_epoll_ctl, epoll, 1, pair, &p);
  }
  if (r < 0) store_rel(&bells[i].live, 0);
  return r < 0 ? (s32)r : i;
}

// Watches a connection's socket (the thread reads the wake-up bytes) or any other descriptor (edge-triggered;
// JavaScript reads and writes).
EXPORT s32 moat_bell_watch(s32 bell, s32 fd, s32 conn) {
  struct conn *c = conn_at(conn);
  if (c) c->bell = bell;
  if (c && transport_of(c)->tick && !bells[bell].ticks) {
    store_rel(&bells[bell].ticks, 1);
    bell_ring(bell);  // from now on it wakes by itself
  }
  if (fd < 0) return 0;  // a file: its completions come by the ring
  u32 events = EPOLLIN | EPOLLRDHUP;
  if (!c) events |= EPOLLOUT | EPOLLET;
  if (c && !transport_of(c)->wakes) events |= EPOLLET;
  if (c && transport_of(c)->oneshot) events = EPOLLONESHOT;
  struct event e = { events, conn < 0 ? (u64)WATCH_PLAIN << 32 : (u64)WATCH_CONN << 32 | (u32)conn };
  return (s32)sys4(NR_epoll_ctl, bells[bell].epoll, 1, fd, &e);
}
// Lets the thread know of a connection's descriptor, once.
static void bell_ask(s32 bell, s32 fd, s32 conn, u32 events) {
  if (bell < 0) return;
  struct event e = { events | EPOLLONESHOT, (u64)WATCH_CONN << 32 | (u32)conn };
  sys4(NR_epoll_ctl, bells[bell].epoll, 3 /* MOD */, fd, &e);
}
EXPORT s32 moat_bell_unwatch(s32 bell, s32 fd) {
  struct event e = { 0, 0 };
  return (s32)sys4(NR_epoll_ctl, bells[bell].epoll, 2 /* DEL */, fd, &e);
}

static void bell_ring(s32 bell) {
  if (bell < 0 || bell >= MAX_BELLS || !bells[bell].live) return;
  u64 one = 1;
  sys3(NR_write, bells[bell].event, &one, 8);
}

// The thread's own word to JavaScript. Once, until that has answered.
static void bell_tell(s32 bell) {
  struct bell *b = &bells[bell];
  if (!__atomic_exchange_n(&b->pending, 1, __ATOMIC_SEQ_CST))
    sys6(NR_sendto, b->pair, (s64) "r", 1, 0x4040 /* MSG_DONTWAIT | MSG_NOSIGNAL */, 0, 0);
}

static s32 bell_thread(s32 bell) { return bell < 0 ? -1 : load_acq(&bells[bell].thread); }
static void bell_kick(s32 bell) {
  if (bell < 0) return;
  store_rel(&bells[bell].kicked, 1);
  bell_ring(bell);
}
// Watches the ring of a pool (edge-triggered).
static s32 bell_watch_ring(s32 bell, s32 fd, s32 pool) {
  struct event e = { 1u | 1u << 31 /* EPOLLIN | EPOLLET */, (u64)WATCH_URING << 32 | (u32)pool };
  return (s32)sys4(NR_epoll_ctl, bells[bell].epoll, 1, fd, &e);
}

// JavaScript answers: from now on the bell rings again.
EXPORT s32 moat_bell_answer(s32 bell) {
  __atomic_store_n(&bells[bell].pending, 0, __ATOMIC_SEQ_CST);
  return 0;
}
// The Worker is gone: its peers shall learn it now, not when the process ends.
static void hang_up_for(s32 bell) {
  for (u32 i = 0, n = load_acq(&conns_high); i < n; i++) {
    struct conn *c = conn_at((s32)i);
    if (!c || c->bell != bell) continue;
    lock(&c->lock);
    if (c->live && c->bell == bell) {
      transport_of(c)->hang_up(c);
      fail_queue(c, &c->sq, -E_CANCELED);  // their bytes may have been in memory that went with the Worker
      fail_queue(c, &c->rq, -E_CANCELED);
    }
    unlock(&c->lock);
  }
}

// Connections whose peer may have died without a word.
static int tick(s32 bell) {
  int ring = 0;
  for (u32 i = 0, n = load_acq(&conns_high); i < n; i++) {
    struct conn *c = conn_at((s32)i);
    if (!c || c->bell != bell) continue;
    lock(&c->lock);
    if (c->live && c->bell == bell && transport_of(c)->tick) ring |= transport_of(c)->tick(c, (s32)i);
    unlock(&c->lock);
  }
  return ring;
}

// Moves the connections on that a handler could not, because it is not the thread that may, and those that
// JavaScript left to this thread.
static void move_on(s32 bell) {
  for (u32 i = 0, n = load_acq(&conns_high); i < n; i++) {
    struct conn *c = conn_at((s32)i);
    if (!c || c->bell != bell || !(transport_of(c)->cqe || load_rlx(&c->kicked))) continue;
    lock(&c->lock);
    if (c->live && c->bell == bell) {
      if (transport_of(c)->cqe) poll_locked(c, (s32)i);
      if (c->kicked) {
        c->kicked = 0;  // it may be asked again meanwhile
        transport_of(c)->event(c, (s32)i);
      }
    }
    unlock(&c->lock);
  }
}

// Reads what woke us. A peer that sends without end gets no more than its turn.
static void drain(struct bell *b, struct conn *c) {
  u64 sink[8];
  s64 got = 1;
  for (int i = 0; i < 64 && got > 0; i++)
    got = sys6(NR_recvfrom, c->fd, (s64)sink, sizeof sink, 0x40 /* MSG_DONTWAIT */, 0, 0);
  if (got <= 0 && got != -E_AGAIN && got != -E_INTR) {  // end of file, or the socket is gone: say it once
    struct event e = { 0, 0 };
    sys4(NR_epoll_ctl, b->epoll, 2, c->fd, &e);
    store_rel(&c->hup, 1);
  }
}

EXPORT void *moat_bell_main(void *arg) {
  struct bell *b = &bells[(u64)arg];
  store_rel(&b->thread, thread_id());
  block_signals();
  struct event events[32];
  s64 pid = sys0(NR_getpid);
  u64 ticked = 0;
  for (int dead = 0; !dead;) {
    int ring = 0;
    // Not every runtime closes the descriptors of a Worker it terminates, but its thread ends; the first
    // thread of a process only with the process.
    s64 n = sys6(NR_epoll_pwait, b->epoll, (s64)events, 32, b->ticks ? TICK_MS : b->owner == pid ? -1 : 1000, 0, 8);
    if ((n < 0 && n != -E_INTR) || sys3(NR_tgkill, pid, b->owner, 0) < 0) dead = 1;
    for (s64 k = 0; k < n && !dead; k++) {  // what queues may lie in memory that went with the Worker
      u32 kind = (u32)(events[k].data >> 32), i = (u32)events[k].data;
      u64 sink;
      if (kind == WATCH_RING) {
        sys3(NR_read, b->event, &sink, 8);
        if (__atomic_exchange_n(&b->kicked, 0, __ATOMIC_ACQUIRE)) move_on((s32)(u64)arg);
      }
      if (kind == WATCH_URING) uring_reap((s32)i);
      if (kind == WATCH_PAIR) dead = 1;
      if (kind != WATCH_CONN) {
        ring = 1;
        continue;
      }
      struct conn *c = conn_at((s32)i);
      if (!c) continue;
      // Its descriptor is closed, and the number used for something else, as soon as it is removed; and its
      // place may be another thread's by now.
      lock(&c->lock);
      if (c->live && c->bell == (s32)(u64)arg) {
        const struct transport *t = transport_of(c);
        c->ready = events[k].events;
        if (t->wakes) drain(b, c);
        ring |= t->event(c, (s32)i);
      }
      unlock(&c->lock);
    }
    if (b->ticks && now_ns() - ticked >= TICK_MS * 1000000ul) {
      ticked = now_ns();
      ring |= tick((s32)(u64)arg);
    }
    if (ring && !dead) bell_tell((s32)(u64)arg);
  }
  hang_up_for((s32)(u64)arg);
  sys1(NR_close, b->pair);
  sys1(NR_close, b->epoll);
  sys1(NR_close, b->event);
  store_rel(&b->live, 0);
  return 0;
}
EXPORT f64 moat_bell_main_address(void) { return (f64)(u64)moat_bell_main; }
