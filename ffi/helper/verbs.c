// Thunks: JavaScript calls the inline verbs through these (verbs.h). Addresses are f64; what is returned is
// what libibverbs returns, errors as -errno. The work requests are memory that JavaScript prepared.
#include "verbs.h"

// Writes the address of the first request that was not posted to *bad, a u64, if it fails.
EXPORT s32 moat_verbs_post_send(f64 qp, f64 wr, f64 bad) {
  struct ibv_qp *q = (struct ibv_qp *)(u64)qp;
  int r = q->context->post_send(q, (struct ibv_send_wr *)(u64)wr, (struct ibv_send_wr **)(u64)bad);
  return r > 0 ? -r : r;
}
EXPORT s32 moat_verbs_post_recv(f64 qp, f64 wr, f64 bad) {
  struct ibv_qp *q = (struct ibv_qp *)(u64)qp;
  int r = q->context->post_recv(q, (struct ibv_recv_wr *)(u64)wr, (struct ibv_recv_wr **)(u64)bad);
  return r > 0 ? -r : r;
}
// Returns how many completions were written to wc, an array of n.
EXPORT s32 moat_verbs_poll_cq(f64 cq, s32 n, f64 wc) {
  struct ibv_cq *c = (struct ibv_cq *)(u64)cq;
  return c->context->poll_cq(c, n, (struct ibv_wc *)(u64)wc);
}
EXPORT s32 moat_verbs_req_notify_cq(f64 cq, s32 solicited_only) {
  struct ibv_cq *c = (struct ibv_cq *)(u64)cq;
  int r = c->context->req_notify_cq(c, solicited_only);
  return r > 0 ? -r : r;
}
