// Connections: what the transports have in common. Each has queues of operations, a lock, and a bell to
// ring; how it moves on is its transport's (shm.c, rdma.c).
#ifndef MOAT_CONN_H
#define MOAT_CONN_H
#include "memory.h"
#include "rdma.h"
#include "shm.h"

enum { CONN_SHM = 1, CONN_RDMA };
enum { CONN_OPEN, CONN_ENDED, CONN_LOST, CONN_BROKEN, CONN_ABORTED, CONN_PEER_ABORTED };

struct conn {  // never freed, only used again: a handler may be looking at it
  u32 live, lock;
  u32 kind, state, hup;
  s32 pool, fd, bell;
  s32 local_tid;        // the thread that drives the other end, if that is in this process; else 0
  u32 checks;
  u32 inflight;         // sends that the peer, or the device, has not done with
  struct queue sq, rq, cq;  // to send; waiting for a message; done, for JavaScript
  struct op taken;      // the message moat_conn_take hands over, and the operation moat_conn_next reports:
  struct op done;       // JavaScript reads both here
  union {
    struct SHM_FIELDS;
    struct RDMA_FIELDS;
  };
};
#define MAX_CONNS 4096

// What a transport does, with the connection's lock held (shm_eager and rdma_eager take it themselves).
static int shm_poll(struct conn *c, s32 me), rdma_poll(struct conn *c, s32 me);
static void shm_check(struct conn *c, s32 me), rdma_check(struct conn *c, s32 me);  // now and then: is the peer there?
static s32 shm_eager(struct conn *c, const u8 *src, u32 len), rdma_eager(struct conn *c, s32 me, const u8 *src, u32 len);
static void shm_flush(struct conn *c), rdma_flush(struct conn *c);                   // sends what is queued
static s32 shm_take(struct conn *c, s32 me), rdma_take(struct conn *c, s32 me);      // 1, 0 or -errno
static int shm_arm(struct conn *c, s32 me), rdma_arm(struct conn *c, s32 me);        // 1: there is work already
static void shm_end(struct conn *c, s32 abort), rdma_end(struct conn *c, s32 abort);
static void shm_remove(struct conn *c);
static s32 rdma_collect(struct conn *c, struct op *o, u8 *to);  // copies a small message out of its slot

#endif
