// The inline verbs. ibv_post_send() and its like are no symbols of libibverbs: they call through the table of
// function pointers that every context begins with. The structs below are libibverbs' own, as in
// <infiniband/verbs.h>; tests/verbs_layout_test.ts has a C compiler compare them with the header.
#ifndef MOAT_VERBS_H
#define MOAT_VERBS_H
#include "sys.h"

struct ibv_sge { u64 addr; u32 length, lkey; };
struct ibv_send_wr {
  u64 wr_id;
  struct ibv_send_wr *next;
  struct ibv_sge *sg_list;
  s32 num_sge;
  u32 opcode, send_flags, imm_data;
  u64 remote_addr;
  u32 rkey;
  u32 other[19];  // atomics, datagrams, memory windows, segmentation
};
struct ibv_recv_wr { u64 wr_id; struct ibv_recv_wr *next; struct ibv_sge *sg_list; s32 num_sge; };
struct ibv_wc {
  u64 wr_id;
  u32 status, opcode, vendor_err, byte_len, imm_data, qp_num, src_qp, wc_flags;
  u16 pkey_index, slid;
  u8 sl, dlid_path_bits;
};
_Static_assert(sizeof(struct ibv_sge) == 16 && sizeof(struct ibv_send_wr) == 128, "as in verbs.h");
_Static_assert(sizeof(struct ibv_recv_wr) == 32 && sizeof(struct ibv_wc) == 48, "as in verbs.h");

struct ibv_qp;
struct ibv_cq;
struct ibv_context {
  void *device;
  void *ops_before[11];
  int (*poll_cq)(struct ibv_cq *, int, struct ibv_wc *);
  int (*req_notify_cq)(struct ibv_cq *, int);
  void *ops_between[12];
  int (*post_send)(struct ibv_qp *, struct ibv_send_wr *, struct ibv_send_wr **);
  int (*post_recv)(struct ibv_qp *, struct ibv_recv_wr *, struct ibv_recv_wr **);
};
// Both begin with their context.
struct ibv_qp { struct ibv_context *context; };
struct ibv_cq { struct ibv_context *context; };

enum { WR_WRITE = 0, WR_WRITE_IMM = 1, WR_SEND = 2, WR_SEND_IMM = 3, WR_READ = 4 };
enum { SEND_FENCE = 1, SEND_SIGNALED = 2, SEND_SOLICITED = 4, SEND_INLINE = 8 };
enum { WC_SUCCESS = 0, WC_WR_FLUSH_ERR = 5, WC_RECV = 128 };

#endif
