// The transport over reliable connected queue pairs. Each side can read the other's pool, and neither can
// write to anything of the other's: small messages are sent into slots that the receiver has posted, large
// ones are announced and then read by the receiver (RDMA READ) from the sender's pages into its own. So a
// receive can be taken back until its message is there, a broken peer can damage nothing, and a handler that
// waits has one thing to do at most: to post the reads of a message that was announced. A sender's has none.
//
// Flow: a side may have DATA_SLOTS messages (small ones, or announcements) at the other that have not been
// consumed; how many were is told in the header of everything that goes the other way. Control messages
// (releases, goodbye) need no credit: their slots are posted again at once, and there is at most one under
// way. Should a receiver be so far behind that it has no slot, the device tries again (RNR).
#ifndef MOAT_RDMA_H
#define MOAT_RDMA_H
#include "memory.h"
#include "verbs.h"

#define SLOT_BYTES 4096u
#define DATA_SLOTS 48u         // messages the peer may have here that have not been consumed
#define RECV_SLOTS 64u         // these and control messages
#define SEND_SLOTS 32u
#define CONTROL_SLOTS 4u       // of the send slots, what data leaves free
#define SQ_DEPTH 256u
#define CQ_DEPTH (SQ_DEPTH + 2048u)  // and raw receives
#define MAX_SGE 16u
#define MAX_AHEAD 16u          // large messages read for a program that has not asked for them yet
#define RELEASES 1000u         // messages read whose release has not been sent yet
#define RDMA_TRANSIT_NS 500000000ul
#define BEAT_NS 1000000000ul   // silence after which a peer that something is expected of is asked for a sign of life
#define FAREWELL_NS 500000000ul

enum { M_EAGER = 1, M_PAGES, M_CONTROL };
enum { BYE_FINISHED = 1, BYE_ABORTED };
struct header {  // of every message in a slot; version 1 of the protocol, little-endian
  u8 kind;
  u8 flag;       // M_PAGES: 1, the list goes on in the next slot. M_CONTROL: goodbye
  u16 count;     // M_PAGES: runs of frames. M_CONTROL: releases. They follow, aligned to 8 bytes
  u32 consumed;  // of the other side's data messages, all that were, modulo 2^32
  u64 len;       // bytes of the message
  u32 id;        // M_PAGES: the sender's operation, for the release
  u16 off;       // M_PAGES: first byte in the first frame
  u16 head;      // bytes of the message's header; they follow at once, in the first slot of an announcement
};
_Static_assert(sizeof(struct header) == 24, "the wire format");
#define EAGER_BYTES_RDMA (SLOT_BYTES - (u32)sizeof(struct header))
#define RUNS_IN_SLOT (EAGER_BYTES_RDMA / 8u)
#define HEAD_RUNS(head) (((u32)(head) + 7) / 8)  // runs that a message's header takes the place of
#define MAX_CHAIN 21u          // slots of one announcement; what is more scattered is copied together first

// What an entry of the send queue was for.
enum { W_SLOT = 1, W_OP, W_READ, W_CONTROL, W_BEAT, W_DRAIN };
struct sent { u8 kind, slot; u16 pad; s32 op; };
#define NO_SLOT 255
#define RECEIVE (1ul << 63)    // in a wr_id: of a receive, not of the send queue
#define RAW_RECEIVES 1024u

// Of the slots that data may use, seven can be waiting for an eighth that asks for its completion.
_Static_assert(MAX_CHAIN + CONTROL_SLOTS + 7 <= SEND_SLOTS, "an announcement always finds its slots");

#define RDMA_FIELDS {                                                                                         \
  struct ibv_qp *qp;                                                                                          \
  struct ibv_cq *rcq;                                                                                         \
  int (*modify_qp)(struct ibv_qp *, void *, int);                                                             \
  int (*get_cq_event)(void *, struct ibv_cq **, void **);                                                     \
  void *channel;          /* struct ibv_comp_channel * */                                                     \
  u64 slots;              /* RECV_SLOTS, then SEND_SLOTS, of SLOT_BYTES; then 8 bytes */                                  \
  u64 remote_base;        /* the peer's device view */                                                        \
  u32 remote_frames, rkey, slot_lkey, pool_lkey, max_inline, max_sge, max_reads, read_bytes;                  \
  u32 raw;                /* plain SEND and RECV: no headers, no credits */                                   \
  u64 sq_head, sq_done;   /* entries of the send queue: posted, done */                                       \
  u32 posted;             /* receives at the device */                                                        \
  u64 send_free;          /* bitmap of send slots, and how many */                                            \
  u32 nsend_free;                                                                                             \
  u32 data_sent, data_seen;      /* data messages sent; of those, consumed by the peer */                     \
  u32 consumed, told;     /* the peer's data messages consumed; what it has been told */                      \
  u8 arrived[RECV_SLOTS]; /* slots of data messages that nobody has consumed, a ring */                       \
  u32 arr_head, arr_tail;                                                                                     \
  u32 pulls, reads;       /* receives being read, and reads at the device */                                  \
  s32 pulling;            /* the receive whose reads are being posted, or -1; and how far that is */          \
  u32 pull_slot, pull_run;                                                                                    \
  u64 pull_at, pull_off;                                                                                      \
  u32 wants;              /* an announced message waits for JavaScript to say where to */                     \
  struct queue ahead;     /* receives into such places, in the order of the messages */                       \
  u32 nahead, streaming, no_room;                                                                             \
  u32 nreleases;                                                                                              \
  u32 release_id[RELEASES];                                                                                   \
  u32 control;            /* a control message is under way */                                                \
  u32 bye, bye_sent, bye_done, their_bye;                                                                     \
  u32 armed, events;      /* completion notifications asked for; events to be acknowledged */                 \
  u32 dead, drained;      /* the queue pair is in error; and the device has given everything back */          \
  u32 begun, gone;        /* the peer is known; the queue pair has been destroyed */                          \
  u32 beating, behind;    /* behind: there are more completions than one turn takes */                        \
  u64 heard, dead_since, ended;                                                                               \
  struct ibv_wc error;    /* the first completion that failed; its opcode is what was asked for */            \
  u32 has_error;                                                                                              \
  struct sent sent[SQ_DEPTH];                                                                                 \
}

#endif
