// The shared-memory transport: two processes, each with a sealed pool and a sealed ring that only its owner
// can write. All that a side tells the other stands in its own ring: descriptors of messages, releases of
// the other's messages, and whether it sleeps. Neither can damage the other, so everything read from the
// other side's ring is only checked, never trusted.
#ifndef MOAT_SHM_H
#define MOAT_SHM_H
#include "memory.h"

#define RING_SLOTS 1024u        // descriptors under way
#define RELEASE_SLOTS 16384u    // messages the peer may hold at a time
#define EAGER_BYTES (256u << 10)
#define EAGER_MAX (16u << 10)   // larger messages travel as pages
#define EAGER_QUEUED (4u << 10)  // of those that had to queue, only these are copied a second time
#define BACKGROUND (256u << 10)  // a receive into a buffer of this size is worth the doorbell's thread
#define TURN (8ul << 20)         // bytes after which that thread looks at other connections first
#define HEAD_SHIFT 20           // desc.head: a header's length above its offset in the eager ring

enum { RING_OPEN = 1, RING_FINISHED, RING_ABORTED };           // what a side says of itself
enum { WANT_MESSAGE = 1, WANT_RELEASE = 2, WANT_SPACE = 4 };   // what a sleeper wants to be woken for

struct ring {  // layout of the ring's memfd; mirrored in ffi/layout.ts
  _Alignas(64) u64 tx_tail;   // descriptors published
  _Alignas(64) u64 rx_head;   // descriptors of the peer consumed
  _Alignas(64) u64 rel_tail;  // releases published
  _Alignas(64) u32 want;
  u32 want_seq;               // changes each time its owner goes to sleep: one wake is enough
  _Alignas(64) u32 state;
  u32 pid, tid;
  _Alignas(4096) struct desc desc[RING_SLOTS];
  u32 rel[RELEASE_SLOTS];
  u8 eager[EAGER_BYTES];
};
_Static_assert(sizeof(struct ring) == 4096 + 65536 + 65536 + EAGER_BYTES, "mirrored in ffi/layout.ts");

// What a connection has besides the fields of every connection (conn.h).
#define SHM_FIELDS {                                                                                          \
  struct ring *mine;                                                                                          \
  const struct ring *theirs;                                                                                  \
  u64 peer_dev;         /* the peer's pool, read-only and never remapped: what this helper reads */           \
  struct arena views;   /* the same again: what JavaScript reads */                                           \
  u64 tx_tail, tx_seen; /* published; of those, consumed by the peer */                                       \
  u64 eager_tail, eager_freed;                                                                                \
  u32 woke_seq;                                                                                               \
  u64 rx_next, rel_seen;                                                                                      \
  u64 eager_end[RING_SLOTS];                                                                                  \
  u8 scratch[EAGER_MAX];                                                                                      \
  s32 parked;           /* the receive whose message is in `parking`: the pool had no frame to park it in */  \
  u8 parking[EAGER_MAX];                                                                                      \
}

#endif
