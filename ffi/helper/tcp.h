// The transport over TCP: a stream of frames, each a header of 16 bytes and what it announces. Version 1,
// little-endian. Before the first frame each side sends the greeting of lib/tcp/hello.ts, of a fixed length.
//
//   T_MESSAGE  the message's own header of h bytes (h may be 0) and its len bytes of data. Where h <= len the
//              header travels in the place of the first h bytes of the data, and they travel last:
//                  [header][data h..len)[data 0..h)
//              so that the receiver's pages are filled in one piece at their own offsets, and then h bytes are
//              patched (Brustoloni 1999, header patching). Where h > len: [header][data].
//   T_BYE      the last frame, and the end of the stream behind it: the sender closed, or aborted.
//
// There are no credits: who does not receive does not read, and TCP holds the sender back. Large messages go
// from the sender's pages into the receiver's; only small ones, and the 16 bytes of a header, pass through the
// stage. The kernel's copy of the last byte is a send's completion; or, of one that it does not copy
// (IORING_OP_SEND_ZC, whose requests follow one another because a stream has an order), its notification.
//
// The data of a large message may be received by the ring as well: one request at a time, by a thread that may
// submit. While it is there nobody else reads from the socket, and the place of the message is the kernel's: a
// receive that ends before (a channel that is closed) has it taken back, and ends with its completion.
#ifndef MOAT_TCP_H
#define MOAT_TCP_H
#include "memory.h"
#include "uring.h"

enum { T_MESSAGE = 1, T_BYE };
enum { T_FINISHED = 1, T_ABORTED };  // what a goodbye's flag says
struct frame {
  u8 kind, flag;
  u16 head;   // bytes of the message's own header
  u32 zero;
  u64 len;    // bytes of data
};
_Static_assert(sizeof(struct frame) == 16, "the wire format");
#define FRAME 16u

#define STAGE_BYTES (64u << 10)
#define TCP_EAGER_MAX (16u << 10)
#define TCP_SMALL (TCP_EAGER_MAX + HEADER_MAX)  // data and header up to which a message passes through the stage
#define OUT_BYTES (TCP_EAGER_MAX + 4096u)
#define MAX_PLACES 3u  // large messages received before the program asks for them, so that it wakes up less often
#define TCP_IOVS 48
#define TCP_TRANSIT_NS 500000000ul
#define LEAST_BYTES (256u << 10)
#define ZC_AGAIN 4096u     // sends after which zero-copy is tried again where the kernel copied
// What a request at the ring is, in its tag; without either it sends, and the rest is the operation.
#define TAG_RECEIVE 0x80000000u
#define TAG_CANCEL 0x40000000u

#define SILENCE_MS 15000u  // without any acknowledgement, when there should have been many

struct msghdr {
  void *name;
  u32 namelen, pad;
  struct iovec *iov;
  u64 iovlen;
  void *control;
  u64 controllen;
  s32 flags, pad2;
};

// A walk through the bytes of a send: a list of runs of frames, or (`flat`) bytes in one piece.
struct walk { struct runs it; const u8 *flat; struct run run; u64 off; };

#define TCP_FIELDS {                                                                                          \
  s32 number;              /* its place in the table */                                                       \
  u8 *stage, *out;         /* STAGE_BYTES and OUT_BYTES, mapped at their first use */                         \
  u32 in_head, in_tail;    /* what has been read into the stage and is not consumed */                        \
  u32 rx_chunk;            /* how much to read at a time when it is not known what comes */                   \
  u32 rx_has;              /* rx is the frame at the head, its 16 bytes consumed */                           \
  struct frame rx;                                                                                            \
  u64 rx_at;               /* bytes of its data that are in place, or (discarding) of it that are gone */     \
  s32 rx_op;               /* the receive it goes into, or -1 */                                              \
  s32 rx_parked;           /* the receive whose message is still at the head of the stage, or -1 */           \
  u32 rx_taken;            /* the message taken is still there */                                             \
  struct queue rx_spare,   /* places for large messages that have not come yet, */                            \
      rx_ahead;            /* and messages in such places for which nobody has asked yet */                   \
  u32 rx_nplaces;          /* of both, and under way */                                                       \
  u32 rx_full;             /* JavaScript had no room for one more */                                          \
  u64 rx_stream;           /* the program takes large messages, one after the other, the last of this size */ \
  u32 rx_wants;            /* the frame at the head waits for JavaScript to say where to */                   \
  u32 rx_bye, rx_end;      /* the goodbye (0x100: still behind messages); the stream has ended somehow */     \
  u32 rx_least;            /* the bytes the doorbell's thread is woken for */                                 \
  u32 rx_drop;             /* nobody wants what comes */                                                      \
  u64 rx_from;             /* bytes from which a message is received by the pool's ring; 0: never */          \
  u32 rx_ring, rx_cancel;  /* a request to receive is in the ring; and one to take that back */               \
  s32 rx_over;             /* what the receive ends with (-errno) as soon as its request has; 0: it goes on */ \
  struct msghdr rx_msg;    /* of that request: the kernel writes to it */                                     \
  s32 tx_op;               /* the send being sent, or -1, and how much of it (frame and all) is */            \
  u64 tx_at;                                                                                                  \
  struct frame tx;                                                                                            \
  struct walk tx_walk;                                                                                        \
  u32 out_head, out_tail;  /* bytes that the socket did not take */                                           \
  u64 zc_from;             /* bytes from which a send goes without a copy, by the pool's ring; 0: never */    \
  u32 zc_rest;             /* sends until that is tried again: the kernel copied */                           \
  u32 tx_zc, tx_wait;      /* this one does; a request's first completion is awaited */                       \
  u32 tx_bye, tx_shut;     /* the goodbye that is to be sent; it has been */                                  \
  u32 tx_dead, tx_torn;    /* nothing can be sent any more; the stream stops in the middle of a frame */      \
  u32 tx_unsure, tx_ticks; /* sent since the peer was last known to have acknowledged everything */           \
  u32 asked, looks;        /* what the doorbell's thread waits for; looks in vain meanwhile */                \
}

#endif
