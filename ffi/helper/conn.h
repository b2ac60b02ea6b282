// Connections: what the transports have in common. Each has queues of operations, a lock, and a bell to
// ring; how it moves on is its transport's (shm.c, rdma.c).
#ifndef MOAT_CONN_H
#define MOAT_CONN_H
#include "memory.h"
#include "rdma.h"
#include "shm.h"
#include "uring.h"
#include "file.h"
#include "tcp.h"

enum { CONN_SHM = 1, CONN_RDMA, CONN_FILE, CONN_TCP };
enum { CONN_OPEN, CONN_ENDED, CONN_LOST, CONN_BROKEN, CONN_ABORTED, CONN_PEER_ABORTED };

struct conn {  // never freed, only used again: a handler may be looking at it
  u32 live, lock;
  u32 kind, state, hup;
  s32 pool, fd, bell;
  s32 local_tid;        // the thread that drives the other end, if that is in this process; else 0
  u32 checks;
  u32 in_ring;          // requests in the pool's ring without their last completion
  u32 ready;            // what epoll said of its descriptor
  u32 kicked;           // the doorbell's thread shall look at it
  u32 carrying;         // 1 + the receive into whose buffer it is bringing a message, without the lock; or 0
  u32 asleep;           // JavaScript has gone to sleep, and looks only when the bell rings
  u32 inflight;         // sends that the peer, or the device, has not done with
  struct queue sq, rq, cq;  // to send; waiting for a message; done, for JavaScript
  struct op taken;      // the message moat_conn_take hands over, and the operation moat_conn_next reports:
  struct op done;       // JavaScript reads both here
  u8 head[HEADER_MAX];  // the header of the message taken
  u8 parked_head[HEADER_MAX];  // and of the receive `head_parked`, or -1: the pool had no frame for it
  s32 head_parked;
  union {
    struct SHM_FIELDS;
    struct RDMA_FIELDS;
    struct FILE_FIELDS;
    struct TCP_FIELDS;
  };
};
#define MAX_CONNS 4096

// What a transport does. All but eager() are called with the connection's lock held.
struct transport {
  int (*poll)(struct conn *c, s32 me);    // moves it on; returns how many operations ended
  void (*check)(struct conn *c, s32 me);  // now and then: is the peer there?
  s32 (*eager)(struct conn *c, s32 me, const u8 *src, u32 len);  // sends a small message, or -EAGAIN
  void (*flush)(struct conn *c);          // sends what is queued
  s32 (*take)(struct conn *c, s32 me);    // 1, 0 or -errno
  int (*arm)(struct conn *c, s32 me);     // 1: there is work already
  void (*end)(struct conn *c, s32 abort);
  void (*hang_up)(struct conn *c);        // the Worker that owned it is gone
  s32 (*collect)(struct conn *c, s32 me, s32 op, struct op *o, u8 *to);  // copies a message out
  // Those that may be 0:
  void (*remove)(struct conn *c);
  u32 (*held)(struct conn *c);            // what is under way besides what the queues say
  int (*event)(struct conn *c, s32 me);   // its descriptor, if it has one, is ready: moves it on. 1: JavaScript has to look.
  int (*tick)(struct conn *c, s32 me);    // now and then, while JavaScript sleeps
  f64 (*wants)(struct conn *c);           // see moat_conn_wants
  s32 (*land)(struct conn *c, s32 me, s32 op);
  void (*cqe)(struct conn *c, s32 me, u32 tag, s32 res, u32 flags);  // a completion of its ring
  u64 background;                         // a receive into a buffer of so many bytes is left to the doorbell's thread
  u32 wakes;                              // the descriptor brings bytes that only wake, and are discarded
  u32 oneshot;                            // the descriptor is watched only when asked for, by bell_ask()
  u64 transit_ns;                         // how long a message may be under way
};
static const struct transport *transport_of(const struct conn *c);

#endif
