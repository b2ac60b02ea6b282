/**
 * libibverbs: the functions used, with their C declarations.
 *
 * The data path is not among them: `ibv_post_send`, `ibv_post_recv`, `ibv_poll_cq` and `ibv_req_notify_cq`
 * are inline functions of `<infiniband/verbs.h>` without symbols; they are called through the helper.
 *
 * @module
 */
import { addressIn, type Library, openForGood } from "./library.ts";
import { rdmacmLibrary } from "./rdmacm.ts";
import { type Functions, runtime, type Symbols } from "./runtime.ts";

const symbols = {
  // struct ibv_device **ibv_get_device_list(int *num_devices);
  ibv_get_device_list: { parameters: ["buffer"], result: "address" },
  // void ibv_free_device_list(struct ibv_device **list);
  ibv_free_device_list: { parameters: ["address"], result: "void" },
  // struct ibv_context *ibv_open_device(struct ibv_device *device);
  ibv_open_device: { parameters: ["address"], result: "address" },
  // int ibv_close_device(struct ibv_context *context);
  ibv_close_device: { parameters: ["address"], result: "i32" },
  // int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *device_attr);
  ibv_query_device: { parameters: ["address", "buffer"], result: "i32" },
  // int ibv_query_port(struct ibv_context *context, uint8_t port_num, struct _compat_ibv_port_attr *attr);
  // It fills no more than the first 48 bytes of a struct ibv_port_attr; see ___ibv_query_port in verbs.h.
  ibv_query_port: { parameters: ["address", "i32", "buffer"], result: "i32" },
  // int ibv_query_gid(struct ibv_context *context, uint8_t port_num, int index, union ibv_gid *gid);
  ibv_query_gid: { parameters: ["address", "i32", "i32", "buffer"], result: "i32" },
  // int ibv_query_pkey(struct ibv_context *context, uint8_t port_num, int index, __be16 *pkey);
  ibv_query_pkey: { parameters: ["address", "i32", "i32", "buffer"], result: "i32" },
  // struct ibv_pd *ibv_alloc_pd(struct ibv_context *context);
  ibv_alloc_pd: { parameters: ["address"], result: "address" },
  // int ibv_dealloc_pd(struct ibv_pd *pd);
  ibv_dealloc_pd: { parameters: ["address"], result: "i32" },
  // struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access);
  ibv_reg_mr: { parameters: ["address", "address", "size", "i32"], result: "address" },
  // int ibv_dereg_mr(struct ibv_mr *mr);
  ibv_dereg_mr: { parameters: ["address"], result: "i32" },
  // struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context);
  ibv_create_comp_channel: { parameters: ["address"], result: "address" },
  // int ibv_destroy_comp_channel(struct ibv_comp_channel *channel);
  ibv_destroy_comp_channel: { parameters: ["address"], result: "i32" },
  // struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe, void *cq_context,
  //                              struct ibv_comp_channel *channel, int comp_vector);
  ibv_create_cq: {
    parameters: ["address", "i32", "address", "address", "i32"],
    result: "address",
  },
  // int ibv_destroy_cq(struct ibv_cq *cq);
  ibv_destroy_cq: { parameters: ["address"], result: "i32" },
  // int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context);
  ibv_get_cq_event: { parameters: ["address", "buffer", "buffer"], result: "i32" },
  // void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int nevents);
  ibv_ack_cq_events: { parameters: ["address", "u32"], result: "void" },
  // struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *qp_init_attr);
  ibv_create_qp: { parameters: ["address", "buffer"], result: "address" },
  // int ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask);
  ibv_modify_qp: { parameters: ["address", "buffer", "i32"], result: "i32" },
  // int ibv_query_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask,
  //                  struct ibv_qp_init_attr *init_attr);
  ibv_query_qp: { parameters: ["address", "buffer", "i32", "buffer"], result: "i32" },
  // int ibv_destroy_qp(struct ibv_qp *qp);
  ibv_destroy_qp: { parameters: ["address"], result: "i32" },
  // int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event);
  ibv_get_async_event: { parameters: ["address", "buffer"], result: "i32" },
  // void ibv_ack_async_event(struct ibv_async_event *event);
  ibv_ack_async_event: { parameters: ["buffer"], result: "void" },
  // const char *ibv_wc_status_str(enum ibv_wc_status status);
  ibv_wc_status_str: { parameters: ["i32"], result: "address" },
  // const char *ibv_event_type_str(enum ibv_event_type event);
  ibv_event_type_str: { parameters: ["i32"], result: "address" },
} as const satisfies Symbols;

// Since rdma-core 31.
const gidSymbols = {
  // ssize_t _ibv_query_gid_table(struct ibv_context *context, struct ibv_gid_entry *entries,
  //                              size_t max_entries, uint32_t flags, size_t entry_size);
  _ibv_query_gid_table: {
    parameters: ["address", "buffer", "size", "u32", "size"],
    result: "size",
  },
} as const satisfies Symbols;

const HINT = "install it: apt-get install libibverbs1 ibverbs-providers (Fedora: dnf install " +
  "libibverbs, of rdma-core), or name it in MOAT_LIBIBVERBS";

let library: Library<typeof symbols> | undefined;
let gids: Functions<typeof gidSymbols> | null | undefined;

function ibverbsLibrary(): Library<typeof symbols> {
  return library ??= openForGood(
    "libibverbs",
    "MOAT_LIBIBVERBS",
    "libibverbs.so.1",
    symbols,
    HINT,
  );
}

/**
 * The functions of libibverbs, opened at their first use. Those that return a pointer return 0 on failure,
 * with errno set; most others the errno, or -1 with errno set.
 *
 * @throws {MoatError} `LIBRARY_NOT_FOUND`
 */
export function ibverbs(): Functions<typeof symbols> {
  return ibverbsLibrary().functions;
}

/** `_ibv_query_gid_table` where the library has it. */
export function gidTableFunction():
  | Functions<typeof gidSymbols>["_ibv_query_gid_table"]
  | undefined {
  if (gids === undefined) {
    try {
      gids = runtime().open(ibverbsLibrary().path, gidSymbols);
    } catch {
      gids = null;
    }
  }
  return gids?._ibv_query_gid_table;
}

/**
 * The address of a function, for the helper to call: `symbolAddress("ibverbs", "ibv_modify_qp")`.
 *
 * @throws {MoatError} `LIBRARY_NOT_FOUND`
 */
export function symbolAddress(of: "ibverbs" | "rdmacm", name: string): number {
  return addressIn(of === "ibverbs" ? ibverbsLibrary() : rdmacmLibrary(), name);
}
