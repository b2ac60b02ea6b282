// Work requests of the transport over verbs: the queue pair, its slots, control messages. All files of this
// transport may run in the fault handler of any thread, or in the doorbell's: they post and poll through the
// context's table and call nothing that allocates.
#include "conn.h"

static inline u64 recv_slot(struct conn *c, u32 i) { return c->slots + (u64)i * SLOT_BYTES; }
static inline u64 send_slot(struct conn *c, u32 i) { return c->slots + (u64)(RECV_SLOTS + i) * SLOT_BYTES; }

// ---- the end of a connection

// Brings the queue pair to error: from here on the device takes nothing up, and gives back what it has.
static void rdma_die(struct conn *c, u32 state) {
  // A goodbye that came before tells more than how it ended.
  if (c->state == CONN_OPEN && c->their_bye) state = c->their_bye == BYE_FINISHED ? CONN_ENDED : CONN_PEER_ABORTED;
  if (c->state == CONN_OPEN) c->state = state;
  if (c->dead) return;
  u64 attr[24] = { 6 /* IBV_QPS_ERR */ };
  c->dead = 1;
  c->dead_since = now_ns();
  c->modify_qp(c->qp, attr, 1 /* IBV_QP_STATE */);
  // What was done without asking for a completion never gives one: a last request, flushed behind all others,
  // says that the send queue is empty. There is always room for it.
  struct ibv_send_wr wr = { 0 }, *bad;
  wr.opcode = WR_SEND;
  wr.send_flags = SEND_SIGNALED;
  wr.wr_id = c->sq_head;
  c->sent[c->sq_head % SQ_DEPTH] = (struct sent){ W_DRAIN, NO_SLOT, 0, -1 };
  if (!c->qp->context->post_send(c->qp, &wr, &bad)) c->sq_head++;
}

// The first completion that failed explains all that follow.
static void note_error(struct conn *c, const struct ibv_wc *wc, u32 kind) {
  if (c->has_error || (c->dead && wc->status == WC_WR_FLUSH_ERR)) return;
  c->error = *wc;
  c->error.opcode = kind;
  c->has_error = 1;
}

// ---- posting

// Posts one request. `signal` asks for its completion; without one it is done when a later one is.
static int post(struct conn *c, struct ibv_send_wr *wr, u8 kind, u8 slot, s32 op, int signal) {
  struct ibv_send_wr *bad;
  u64 i = c->sq_head;
  if (c->dead) return -1;
  c->sent[i % SQ_DEPTH] = (struct sent){ kind, slot, 0, op };
  wr->wr_id = i;
  if (signal) wr->send_flags |= SEND_SIGNALED;
  if (c->qp->context->post_send(c->qp, wr, &bad)) {
    rdma_die(c, CONN_LOST);
    return -1;
  }
  c->sq_head++;
  return 0;
}
static inline u32 sq_space(struct conn *c) { return SQ_DEPTH - 1 - (u32)(c->sq_head - c->sq_done); }

static u8 slot_take(struct conn *c, u32 leave) {
  if (c->nsend_free <= leave) return NO_SLOT;
  u8 s = (u8)__builtin_ctzl(c->send_free);
  c->send_free &= ~(1ul << s);
  c->nsend_free--;
  return s;
}
static void slot_give(struct conn *c, u8 s) {
  c->send_free |= 1ul << s;
  c->nsend_free++;
}

// Sends a slot, of which `len` bytes are the message, and behind it what the sges say.
static int post_slot(struct conn *c, u8 slot, u32 len, u8 kind, s32 op, const struct ibv_sge *more, u32 nmore) {
  struct ibv_sge sge[MAX_SGE];
  struct ibv_send_wr wr = { 0 };
  sge[0] = (struct ibv_sge){ send_slot(c, slot), len, c->slot_lkey };
  for (u32 i = 0; i < nmore; i++) sge[1 + i] = more[i];
  wr.sg_list = sge;
  wr.num_sge = (s32)(1 + nmore);
  wr.opcode = WR_SEND;
  if (!nmore && len <= c->max_inline) wr.send_flags = SEND_INLINE;
  int signal = kind != W_SLOT || (c->sq_head & 7) == 7 || c->nsend_free < 12;
  return post(c, &wr, kind, slot, op, signal);
}

static struct header *head_of(struct conn *c, u8 slot, u8 kind) {
  struct header *h = (struct header *)send_slot(c, slot);
  *h = (struct header){ kind, 0, 0, c->consumed, 0, 0, 0, 0 };
  c->told = c->consumed;
  return h;
}

// The runs of an announcement, behind the message's header.
static inline struct run *runs_in(struct header *h) { return (struct run *)(h + 1) + HEAD_RUNS(h->head); }

static int post_recv_slot(struct conn *c, u32 slot) {
  struct ibv_sge sge = { recv_slot(c, slot), SLOT_BYTES, c->slot_lkey };
  struct ibv_recv_wr wr = { RECEIVE | slot, 0, &sge, 1 }, *bad;
  if (c->dead) return 0;
  if (c->qp->context->post_recv(c->qp, &wr, &bad)) {
    rdma_die(c, CONN_LOST);
    return -1;
  }
  c->posted++;
  return 0;
}
// The slot of a data message is free again, and the peer may send another.
static void consume(struct conn *c, u32 slot) {
  c->consumed++;
  post_recv_slot(c, slot);
}

// Releases, credits, goodbye: at most one message of them at a time, so they gather while one is under way.
static void send_control(struct conn *c) {
  int due = c->nreleases || c->consumed - c->told >= DATA_SLOTS / 3 || (c->bye && !c->bye_sent);
  if (c->raw || c->dead || c->control || !due || !sq_space(c)) return;
  u8 slot = slot_take(c, 0);
  if (slot == NO_SLOT) return;
  struct header *h = head_of(c, slot, M_CONTROL);
  h->count = (u16)c->nreleases;
  memcpy(h + 1, c->release_id, c->nreleases * 4);
  u32 len = (u32)sizeof *h + c->nreleases * 4;
  c->nreleases = 0;
  if (c->bye && !c->bye_sent) {
    h->flag = (u8)c->bye;
    c->bye_sent = 1;
  }
  c->control = 1;
  post_slot(c, slot, len, W_CONTROL, -1, 0, 0);
}

// Asks the peer's device for a sign of life: a read of its first bytes. Its program has no part in that.
static void send_beat(struct conn *c) {
  struct ibv_sge sge = { c->slots + (RECV_SLOTS + SEND_SLOTS) * SLOT_BYTES, 8, c->slot_lkey };
  struct ibv_send_wr wr = { 0 };
  wr.sg_list = &sge;
  wr.num_sge = 1;
  wr.opcode = WR_READ;
  wr.remote_addr = c->remote_base;
  wr.rkey = c->rkey;
  if (!sq_space(c)) return;
  c->beating = 1;
  post(c, &wr, W_BEAT, NO_SLOT, -1, 1);
}
