// Receiving over TCP by the pool's ring (uring.h): one request for what is left of a large message's data, which
// the kernel puts in its place as it comes. On loopback, 1 MiB at a time, it was between 0.75 and 1.5 times as fast
// as reading from the socket, run by run; what it saves is that somebody looks in vain.
#include "conn.h"

static int tcp_arm(struct conn *c, s32 me);
static void tcp_move(struct conn *c, s32 me, int ahead, int lazy);
static void rx_ended(struct conn *c);
static void rx_fail(struct conn *c, s32 i, s32 status);

// From how many bytes on there is something to be read: what is less is not told to anybody who waits.
static void rx_least(struct conn *c, u32 bytes) {
  if (bytes != c->rx_least && !sys5(NR_setsockopt, c->fd, 1 /* SOL_SOCKET */, 18 /* SO_RCVLOWAT */, &bytes, 4))
    c->rx_least = bytes;
}

// The place of the next `bytes` of the message, as a list; how many. *end: where in the message that stops.
static u32 rx_places(const struct conn *c, u64 bytes, struct iovec *iov, u32 most, u64 *end) {
  const struct op *o = &G.op[c->rx_op];
  u64 at = c->rx_at, stop = at + (bytes > URING_PIECE ? URING_PIECE : bytes);
  u32 k = 0;
  while (at < stop && k < most) {
    u8 *to;
    iov[k].len = place_of(&G.pool[o->pool], o, at, stop - at, &to);
    iov[k].base = (u64)to;
    at += iov[k++].len;
  }
  *end = at;
  return k;
}

// Hands what is left to the ring. 0: it is too little, or this thread may not; it is to be read from the socket.
static int rx_submit(struct conn *c) {
  struct uring *u = uring_of(c->pool);
  u64 end, left = c->rx.len - c->rx_at;
  if (!c->rx_from || left < c->rx_from || !u || !uring_may_submit(u)) return 0;
  struct iovec iov[TCP_IOVS];  // read before the call is back (IORING_FEAT_SUBMIT_STABLE)
  // In large pieces as long as it is certain that one more will come: each costs the waking of a thread.
  u32 k, large = left > 2 * LEAST_BYTES;
  k = rx_places(c, large ? left - LEAST_BYTES : left, iov, TCP_IOVS, &end);
  c->rx_msg = (struct msghdr){ 0, 0, 0, iov, k, 0, 0, 0, 0 };
  struct sqe e;
  memset(&e, 0, sizeof e);
  e.opcode = k == 1 ? IORING_OP_RECV : IORING_OP_RECVMSG;
  e.fd = c->fd;
  e.addr = k == 1 ? iov[0].base : (u64)&c->rx_msg;
  e.len = k == 1 ? (u32)iov[0].len : 1;
  e.op_flags = 0x100;  // MSG_WAITALL
  e.user_data = (u64)(u32)c->number << 32 | TAG_RECEIVE;
  rx_least(c, large ? LEAST_BYTES : 1);
  c->rx_ring = !uring_submit(u, &e);
  return (int)c->rx_ring;
}

// Has the request end: its completion gives the place back. One that is just at work is not found; then again.
static void rx_take_back(struct conn *c) {
  struct uring *u = uring_of(c->pool);
  if (!c->rx_ring || c->rx_cancel || !u) return;
  if (!uring_may_submit(u)) {
    uring_kick(u);
    return;
  }
  struct sqe e;
  memset(&e, 0, sizeof e);
  e.opcode = IORING_OP_ASYNC_CANCEL;
  e.fd = -1;
  e.addr = (u64)(u32)c->number << 32 | TAG_RECEIVE;
  e.user_data = (u64)(u32)c->number << 32 | TAG_CANCEL;
  c->rx_cancel = !uring_submit(u, &e);
}

static void rx_cqe(struct conn *c, s32 res) {
  c->rx_ring = 0;
  if (res > 0) {
    c->rx_at += (u64)res;
    count(c, S_RING_RECEIVES);
  } else if (res == -E_AGAIN || res == -E_INVAL || res == -E_OPNOTSUPP || res == -E_FAULT) {
    // Not for this socket: one that does not block, to a kernel that takes it at its word; or into a mapped file that
    // was cut off, which the plain way knows how to end.
    c->rx_from = 0;
  } else if (res != -E_INTR && res != -E_CANCELED) {
    rx_ended(c);
  }
  if (!c->rx_over) return;
  rx_fail(c, c->rx_op, c->rx_over);
  c->rx_op = -1;
  c->rx_over = 0;
}

// A completion of the ring. JavaScript that sleeps relies on the doorbell's thread, which has to be asked again,
// whoever reaps: what it waited for was this.
static void tcp_cqe(struct conn *c, s32 me, u32 tag, s32 res, u32 flags) {
  if (tag & TAG_CANCEL)
    c->rx_cancel = 0;
  else if (tag & TAG_RECEIVE)
    rx_cqe(c, res);
  else
    tx_cqe(c, tag, res, flags);
  struct uring *u = uring_of(c->pool);
  int awake = !c->asleep && u && thread_id() == u->owner;
  if (awake)
    tcp_move(c, me, 0, c->asked != 0);
  else if (tcp_arm(c, me) && c->asleep) {
    c->asleep = 0;
    bell_ring(c->bell);
  }
}
