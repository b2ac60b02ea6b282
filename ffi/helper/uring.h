// io_uring through raw system calls: one ring for each pool that needs one, with the pool's device view as
// its fixed buffers. The numbers and structs are those of <linux/io_uring.h>.
//
// Who may submit: a request dies with the thread that submitted it. So only the thread that owns the pool
// submits, and its doorbell's thread, which lives as long; anybody may reap. What a handler on another thread
// would submit stays queued at its connection, and uring_kick() has the doorbell's thread do it.
//
// Locks: the reap lock before a connection's; the lock for submitting is the innermost of all.
#ifndef MOAT_URING_H
#define MOAT_URING_H
#include "sys.h"

struct sqe {
  u8 opcode, flags;
  u16 ioprio;
  s32 fd;
  u64 off, addr;
  u32 len, op_flags;
  u64 user_data;  // the connection's number << 32 | a tag of its own
  u16 buf_index, personality;
  s32 splice_fd;
  u64 addr3, pad;
};
_Static_assert(sizeof(struct sqe) == 64, "struct io_uring_sqe");
struct cqe {
  u64 user_data;
  s32 res;
  u32 flags;
};
_Static_assert(sizeof(struct cqe) == 16, "struct io_uring_cqe");
struct uring_params {
  u32 sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, resv[3];
  struct { u32 head, tail, ring_mask, ring_entries, flags, dropped, array, resv; u64 user_addr; } sq_off;
  struct { u32 head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv; u64 user_addr; } cq_off;
};
_Static_assert(sizeof(struct uring_params) == 120, "struct io_uring_params");
struct iovec { u64 base, len; };

enum { IORING_OP_NOP = 0, IORING_OP_READV = 1, IORING_OP_WRITEV = 2, IORING_OP_FSYNC = 3, IORING_OP_READ_FIXED = 4,
       IORING_OP_WRITE_FIXED = 5, IORING_OP_ASYNC_CANCEL = 14, IORING_OP_READ = 22, IORING_OP_WRITE = 23,
       IORING_OP_RECVMSG = 10, IORING_OP_RECV = 27, IORING_OP_SEND_ZC = 47, IORING_OP_SENDMSG_ZC = 48 };
enum { IORING_SEND_ZC_REPORT_USAGE = 8 };  // in sqe.ioprio
#define IORING_NOTIF_USAGE_ZC_COPIED (1u << 31)                           // in cqe.res
enum { IORING_CQE_F_MORE = 2, IORING_CQE_F_NOTIF = 8 };
#define IOSQE_ASYNC 16

#define URING_SQ 256u
#define URING_CQ 4096u
#define URING_PIECE (1ul << 30)  // the largest that one fixed buffer can be
#define URING_PIECES 1024u

struct uring {
  u32 live, sq_lock, reap_lock;
  u32 lookers;             // threads that look at its completions: it stays mapped for them
  s32 fd, owner, bell;     // owner: the thread that made it. bell: the doorbell that watches it, or -1
  u32 under_way;           // requests without their last completion
  u32 *sq_head, *sq_tail, *sq_flags, *sq_array, sq_mask, sq_entries;
  struct sqe *sqes;
  u32 *cq_head, *cq_tail, cq_mask;
  struct cqe *cqes;
  u64 ring, ring_bytes, sqes_bytes;
  u64 dev;                 // what is registered: the pool's device view
  u64 registered;          // bytes of it; 0: nothing, for the reason in `refused`
  s32 refused;
};

static inline struct uring *uring_of(s32 pool);
// Hands over one request, a copy of *e, and counts it at its connection. 0, or -EAGAIN: no room now.
static s32 uring_submit(struct uring *u, const struct sqe *e);
static int uring_may_submit(const struct uring *u);
// Has the doorbell's thread move on the connections it watches.
static void uring_kick(struct uring *u);
// The fixed buffer that has all of [address, address + bytes), or -1.
static s32 uring_buffer(const struct uring *u, u64 address, u64 bytes);
// Gives every completion to its connection. To be called with no connection's lock held.
static void uring_reap(s32 pool);

#endif
