// The transport over TCP (tcp.h): moving on, the end, what JavaScript calls.
#include "conn.h"

// ---- the state of a connection

static void rx_stop(struct conn *c, s32 status) {
  if (c->rx_ring) {  // its place is the kernel's
    if (!c->rx_over) c->rx_over = status;
    rx_take_back(c);
  } else {
    if (c->rx_op >= 0) rx_fail(c, c->rx_op, status);
    c->rx_op = -1;
  }
  c->rx_wants = 0;
  fail_queue(c, &c->rq, status);
}
// Lets the kernel drop what it has of this connection, pages included.
static void tcp_sever(struct conn *c) {
  u64 nowhere[2] = { 0, 0 };  // AF_UNSPEC
  sys2(NR_shutdown, c->fd, 2 /* SHUT_RDWR */);
  if (c->inflight) sys3(NR_connect, c->fd, nowhere, sizeof nowhere);
}
// The peer sends what is not the protocol: everything ends here, and the peer hears no more of it.
static void tcp_cut_off(struct conn *c) {
  c->state = CONN_BROKEN;
  c->tx_dead = c->rx_end = 1;
  fail_sends(c, -E_PROTO);
  rx_stop(c, -E_PROTO);
  rx_free_places(c);
  tcp_sever(c);
}

// Draws the conclusions of what has been sent and received.
static void tcp_settle(struct conn *c) {
  if (c->state == CONN_OPEN || c->state == CONN_LOST) {
    if (c->rx_bye)
      c->state = (c->rx_bye & 0xff) == T_FINISHED ? CONN_ENDED : CONN_PEER_ABORTED;
    else if (c->rx_end)
      c->state = CONN_LOST;
  }
  if (c->state == CONN_OPEN) return;
  s32 status = state_error(c->state);
  if (c->state != CONN_ABORTED || c->tx_dead) fail_sends(c, status);  // nobody reads them any more
  // What arrived before the end can still be received.
  if ((c->rx_end || (c->rx_bye && c->rx_bye < 0x100)) && (c->rx_op >= 0 || (c->rq.head >= 0 && !rx_whole(c) && c->rx_ahead.head < 0)))
    rx_stop(c, status);
}

static void tcp_move(struct conn *c, s32 me, int ahead, int lazy) {
  if (c->rx_over) rx_take_back(c);
  if (c->state == CONN_BROKEN) return;
  if (!lazy || !(c->asked & EPOLLOUT)) tcp_flush(c);
  if (tcp_receive(c, me, ahead, lazy) < 0)
    tcp_cut_off(c);
  else
    tcp_settle(c);
}

// Whoever calls: a handler may bring about what JavaScript sleeps for, and the doorbell's thread then finds
// nothing that it would ring for.
static int tcp_poll(struct conn *c, s32 me) {
  tcp_move(c, me, 0, c->asked && ++c->looks % 16);
  int work = c->cq.head >= 0 || c->rx_wants;
  if (work && c->asleep) {
    c->asleep = 0;
    bell_ring(c->bell);
  }
  return work;
}
static void tcp_check(struct conn *c, s32 me) { (void)c, (void)me; }

// ---- the doorbell's thread

// Of how many bytes it is told. In large pieces: each costs this thread's waking up.
static u32 tcp_least(const struct conn *c) {
  u64 left = c->rx_op >= 0 ? c->rx.len - c->rx_at + c->rx.head - staged(c) : 1;
  return left > LEAST_BYTES ? LEAST_BYTES : left ? (u32)left : 1;
}
// Asks it to wait for what would move the connection on. After a hang-up nothing new is to be heard.
static void tcp_ask(struct conn *c, s32 me) {
  u32 want = 0;
  if (!c->rx_end && !c->rx_ring && (c->rx_op >= 0 || rx_hunger(c, 1))) want |= EPOLLIN;
  if (tx_waits(c)) want |= EPOLLOUT;
  if (!c->hup) want |= EPOLLRDHUP;
  // Also where it waits already: what has been read since then may have left less than it waits for.
  if (want & EPOLLIN) rx_least(c, tcp_least(c));
  if (!(want & ~c->asked)) return;
  c->asked = want;
  bell_ask(c->bell, c->fd, me, want);
}
static int tcp_arm(struct conn *c, s32 me) {
  tcp_move(c, me, 1, c->asked != 0);
  if (c->cq.head >= 0 || c->rx_wants) return 1;
  if (c->state != CONN_BROKEN) tcp_ask(c, me);
  return 0;
}
static int tcp_event(struct conn *c, s32 me) {
  u32 state = c->state;
  c->asked = 0;
  if (c->ready & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) c->hup = 1;
  return tcp_arm(c, me) || c->state != state;
}

// A peer that vanished says nothing, and a timeout of the kernel's (TCP_USER_TIMEOUT) would also end a
// connection whose peer is there but does not read. So: are acknowledgements missing that a living peer's
// kernel would have sent? Every two seconds, while there is something to acknowledge.
struct tcp_info { u8 state, ca, retransmits, probes, rest[4]; u32 word[32]; };
static int ask_kernel(const struct conn *c, struct tcp_info *info) {
  u32 size = sizeof *info;
  memset(info, 0, sizeof *info);
  return sys5(NR_getsockopt, c->fd, 6 /* IPPROTO_TCP */, 11 /* TCP_INFO */, info, &size) >= 0;
}
static u32 unacknowledged(const struct conn *c) {
  u32 n = 0;
  sys3(NR_ioctl, c->fd, 0x5411 /* SIOCOUTQ */, &n);
  return n;
}
static int tcp_tick(struct conn *c, s32 me) {
  if (!c->tx_unsure || c->tx_dead || ++c->tx_ticks % 4) return 0;
  struct tcp_info info;
  if (!ask_kernel(c, &info)) return 0;
  u32 unacked = info.word[4], last_ack = info.word[12];  // milliseconds since
  if (!unacknowledged(c)) c->tx_unsure = 0;
  if (last_ack < SILENCE_MS || !((unacked && info.retransmits >= 4) || info.probes >= 4)) return 0;
  tx_failed(c);
  tcp_sever(c);
  tcp_move(c, me, 0, 0);
  return 1;
}

// ---- taking

static s32 tcp_take(struct conn *c, s32 me) {
  struct op *o = &c->taken;
  if (c->rx_taken) rx_consume(c);  // handed over, and not collected
  tcp_move(c, me, 1, 0);
  o->kind = OP_TAKE;
  o->flags = 0;
  if (c->rx_ahead.head >= 0) {
    struct op *from = &G.op[c->rx_ahead.head];
    o->head_len = from->head_len;
    moat_msg_header(me, c->rx_ahead.head, c->head);
    rx_claim(c, o);
    return 1;
  }
  if (c->rx_op >= 0 || c->rx_parked >= 0) return 0;  // that at the head is another receive's
  if (!rx_whole(c) || !rx_small(c)) {
    int more = c->rx_has && (rx_whole(c) || !c->rx_end);  // a large one, as an operation, which JavaScript gives a place
    return more ? 0 : state_error(c->state);
  }
  o->len = o->got = c->rx.len;
  o->d.kind = D_EAGER;
  o->head_len = c->rx.head;
  memcpy(c->head, c->stage + c->in_head, c->rx.head);
  if (c->rx_stream) rx_free_spares(c);
  rx_settle(c);
  c->rx_taken = 1;
  return 1;
}

// Is a place wanted for the message at the head, or (less than 0) for one that will come?
static int rx_needs(const struct conn *c) {
  return c->rx_wants && c->rx_op < 0 && c->rq.head >= 0 && G.op[c->rq.head].kind == OP_TAKE;
}
static f64 tcp_wants(struct conn *c) {
  if (rx_needs(c)) return (f64)c->rx.len;
  int more = c->rx_stream && !c->rx_full && c->rx_nplaces < MAX_PLACES && c->state == CONN_OPEN && !c->rx_end;
  return more ? -(f64)c->rx_stream : 0;
}
static s32 tcp_land(struct conn *c, s32 me, s32 op) {
  int needs = rx_needs(c);
  if (op < 0) {
    if (needs)
      complete(c, pop(&c->rq), -E_NOBUFS);
    else
      c->rx_full = 1;
    c->rx_wants = 0;
    return 0;
  }
  if (tcp_wants(c) == 0 || G.op[op].len < (needs ? c->rx.len : c->rx_stream)) return -E_AGAIN;
  G.op[op].conn = me;
  G.op[op].flags |= OP_AHEAD;
  c->rx_nplaces++;
  c->rx_wants = 0;
  if (needs) {
    rx_begin(c, op);
  } else {
    store_rel(&G.op[op].state, OP_QUEUED);
    push(&c->rx_spare, op);
  }
  return 0;
}

// ---- the end

static void tcp_drop(struct conn *c) {
  rx_stop(c, -E_CANCELED);
  rx_free_places(c);
  c->rx_taken = 0;
  c->rx_parked = -1;
  c->rx_drop = 1;
}
static void tcp_end(struct conn *c, s32 abort) {
  if (c->tx_op >= 0) {
    if (c->tx_at) c->tx_torn = 1;
    tx_end(c, -E_CANCELED);
  }
  if (c->state != CONN_BROKEN) tcp_drop(c);
  c->tx_bye = abort ? T_ABORTED : T_FINISHED;
  if (c->tx_wait) tcp_sever(c);  // in the middle of a message, which has no end now
}
static void tcp_hang_up(struct conn *c) { sys2(NR_shutdown, c->fd, 2 /* SHUT_RDWR */); }
static u32 tcp_held(struct conn *c) { return c->rx_op >= 0; }
static void tcp_remove(struct conn *c) {
  if (c->stage) sys2(NR_munmap, c->stage, STAGE_BYTES);
  if (c->out) sys2(NR_munmap, c->out, OUT_BYTES);
  c->stage = c->out = 0;
}

// ---- what JavaScript calls

EXPORT s32 moat_tcp_add(s32 pool, s32 fd, s32 local_tid) {
  if (!pool_of(pool)) return -E_INVAL;
  struct conn *c;
  s32 i = conn_new(pool, CONN_TCP, fd, local_tid, &c);
  if (i < 0) return i;
  c->rx_op = c->rx_parked = c->tx_op = -1;
  c->rx_spare = c->rx_ahead = (struct queue){ -1, -1 };
  c->rx_chunk = 4096;
  c->number = i;
  c->rx_least = 1;
  conn_begin(c);
  return i;
}
// From so many bytes on its messages go without a copy, and are received, by the ring of its pool; 0: none.
EXPORT s32 moat_tcp_ring(s32 i, f64 send_from, f64 receive_from) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  c->zc_from = (u64)send_from;
  c->rx_from = (u64)receive_from;
  unlock(&c->lock);
  return 0;
}
// No message will be received any more: what comes is thrown away, so that the peer is not held back by it.
EXPORT s32 moat_tcp_drop(s32 i) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  if (c->state != CONN_BROKEN && !c->rx_drop) tcp_drop(c);
  unlock(&c->lock);
  return 0;
}
// May the socket be closed? 0: not yet, the peer's kernel has not got everything. 1: yes. 2: it has to be reset,
// because the stream stops in the middle of a message.
EXPORT s32 moat_tcp_done(s32 i) {
  struct conn *c = conn_at(i);
  if (!c) return -E_INVAL;
  lock(&c->lock);
  struct tcp_info info;
  if (c->state != CONN_BROKEN) tcp_move(c, i, 1, 0);
  int gone = ask_kernel(c, &info) && info.state == 7 /* TCP_CLOSE */;
  s32 r = c->rx_ring ? 0 : c->tx_torn ? 2 : gone || c->tx_dead || (c->tx_shut && !unacknowledged(c)) ? 1 : 0;
  unlock(&c->lock);
  return r;
}

static const struct transport tcp_transport = {
  .poll = tcp_poll, .check = tcp_check, .eager = tcp_eager, .flush = tcp_flush, .take = tcp_take, .arm = tcp_arm,
  .end = tcp_end, .hang_up = tcp_hang_up, .collect = tcp_collect, .remove = tcp_remove, .held = tcp_held,
  .event = tcp_event, .tick = tcp_tick, .wants = tcp_wants, .land = tcp_land, .cqe = tcp_cqe, .oneshot = 1,
  .transit_ns = TCP_TRANSIT_NS,
};
