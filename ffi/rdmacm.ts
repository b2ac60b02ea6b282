/**
 * librdmacm: the functions used, with their C declarations.
 *
 * @module
 */
import { type Library, openForGood } from "./library.ts";
import type { Functions, Symbols } from "./runtime.ts";

const symbols = {
  // struct rdma_event_channel *rdma_create_event_channel(void);
  rdma_create_event_channel: { parameters: [], result: "address" },
  // void rdma_destroy_event_channel(struct rdma_event_channel *channel);
  rdma_destroy_event_channel: { parameters: ["address"], result: "void" },
  // int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *context,
  //                    enum rdma_port_space ps);
  rdma_create_id: { parameters: ["address", "buffer", "address", "i32"], result: "i32" },
  // int rdma_destroy_id(struct rdma_cm_id *id);
  rdma_destroy_id: { parameters: ["address"], result: "i32" },
  // int rdma_migrate_id(struct rdma_cm_id *id, struct rdma_event_channel *channel);
  rdma_migrate_id: { parameters: ["address", "address"], result: "i32" },
  // int rdma_bind_addr(struct rdma_cm_id *id, struct sockaddr *addr);
  rdma_bind_addr: { parameters: ["address", "buffer"], result: "i32" },
  // int rdma_resolve_addr(struct rdma_cm_id *id, struct sockaddr *src_addr, struct sockaddr *dst_addr,
  //                       int timeout_ms);
  rdma_resolve_addr: { parameters: ["address", "address", "buffer", "i32"], result: "i32" },
  // int rdma_resolve_route(struct rdma_cm_id *id, int timeout_ms);
  rdma_resolve_route: { parameters: ["address", "i32"], result: "i32" },
  // int rdma_create_qp(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *qp_init_attr);
  rdma_create_qp: { parameters: ["address", "address", "buffer"], result: "i32" },
  // void rdma_destroy_qp(struct rdma_cm_id *id);
  rdma_destroy_qp: { parameters: ["address"], result: "void" },
  // int rdma_connect(struct rdma_cm_id *id, struct rdma_conn_param *conn_param);
  rdma_connect: { parameters: ["address", "buffer"], result: "i32" },
  // int rdma_listen(struct rdma_cm_id *id, int backlog);
  rdma_listen: { parameters: ["address", "i32"], result: "i32" },
  // int rdma_accept(struct rdma_cm_id *id, struct rdma_conn_param *conn_param);
  rdma_accept: { parameters: ["address", "buffer"], result: "i32" },
  // int rdma_reject(struct rdma_cm_id *id, const void *private_data, uint8_t private_data_len);
  rdma_reject: { parameters: ["address", "buffer", "i32"], result: "i32" },
  // int rdma_disconnect(struct rdma_cm_id *id);
  rdma_disconnect: { parameters: ["address"], result: "i32" },
  // int rdma_get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **event);
  rdma_get_cm_event: { parameters: ["address", "buffer"], result: "i32" },
  // int rdma_ack_cm_event(struct rdma_cm_event *event);
  rdma_ack_cm_event: { parameters: ["address"], result: "i32" },
  // __be16 rdma_get_src_port(struct rdma_cm_id *id), rdma_get_dst_port(struct rdma_cm_id *id);
  rdma_get_src_port: { parameters: ["address"], result: "i32" },
  rdma_get_dst_port: { parameters: ["address"], result: "i32" },
  // const char *rdma_event_str(enum rdma_cm_event_type event);
  rdma_event_str: { parameters: ["i32"], result: "address" },
  // int rdma_set_option(struct rdma_cm_id *id, int level, int optname, void *optval, size_t optlen);
  rdma_set_option: { parameters: ["address", "i32", "i32", "buffer", "size"], result: "i32" },
} as const satisfies Symbols;

const HINT = "install it: apt-get install librdmacm1 ibverbs-providers (Fedora: dnf install " +
  "librdmacm, of rdma-core), or name it in MOAT_LIBRDMACM";

let library: Library<typeof symbols> | undefined;

/** The library itself, opened at its first use. */
export function rdmacmLibrary(): Library<typeof symbols> {
  return library ??= openForGood(
    "librdmacm",
    "MOAT_LIBRDMACM",
    "librdmacm.so.1",
    symbols,
    HINT,
  );
}

/**
 * The functions of librdmacm, opened at their first use. Those that return `int` return -1 on failure, with
 * errno set.
 *
 * @throws {MoatError} `LIBRARY_NOT_FOUND`
 */
export function rdmacm(): Functions<typeof symbols> {
  return rdmacmLibrary().functions;
}
