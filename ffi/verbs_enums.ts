/**
 * The enumerations of libibverbs and librdmacm, by the names of their members without the prefix.
 * `tests/verbs_layout_test.ts` compares them with the headers.
 *
 * @module
 */

/** `enum ibv_node_type`, `IBV_NODE_…`. */
export const NODE_TYPE = {
  UNKNOWN: -1,
  CA: 1,
  SWITCH: 2,
  ROUTER: 3,
  RNIC: 4,
  USNIC: 5,
  USNIC_UDP: 6,
  UNSPECIFIED: 7,
} as const;

/** `enum ibv_transport_type`, `IBV_TRANSPORT_…`. */
export const TRANSPORT_TYPE = {
  UNKNOWN: -1,
  IB: 0,
  IWARP: 1,
  USNIC: 2,
  USNIC_UDP: 3,
  UNSPECIFIED: 4,
} as const;

/** `enum ibv_atomic_cap`, `IBV_ATOMIC_…`. */
export const ATOMIC_CAP = { NONE: 0, HCA: 1, GLOB: 2 } as const;

/** `enum ibv_port_state`, `IBV_PORT_…`. */
export const PORT_STATE = {
  NOP: 0,
  DOWN: 1,
  INIT: 2,
  ARMED: 3,
  ACTIVE: 4,
  ACTIVE_DEFER: 5,
} as const;

/** `IBV_LINK_LAYER_…`. */
export const LINK_LAYER = { UNSPECIFIED: 0, INFINIBAND: 1, ETHERNET: 2 } as const;

/** `enum ibv_mtu`, `IBV_MTU_…`: the key is the number of bytes. */
export const MTU = { 256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5 } as const;

/** `enum ibv_gid_type`, `IBV_GID_TYPE_…`. */
export const GID_TYPE = { IB: 0, ROCE_V1: 1, ROCE_V2: 2 } as const;

/** `enum ibv_access_flags`, `IBV_ACCESS_…`. */
export const ACCESS = {
  LOCAL_WRITE: 1,
  REMOTE_WRITE: 2,
  REMOTE_READ: 4,
  REMOTE_ATOMIC: 8,
  MW_BIND: 16,
  ZERO_BASED: 32,
  ON_DEMAND: 64,
  HUGETLB: 128,
  RELAXED_ORDERING: 1 << 20,
} as const;

/** `enum ibv_qp_type`, `IBV_QPT_…`. */
export const QP_TYPE = { RC: 2, UC: 3, UD: 4 } as const;

/** `enum ibv_qp_state`, `IBV_QPS_…`. */
export const QP_STATE = {
  RESET: 0,
  INIT: 1,
  RTR: 2,
  RTS: 3,
  SQD: 4,
  SQE: 5,
  ERR: 6,
  UNKNOWN: 7,
} as const;

/** `enum ibv_mig_state`, `IBV_MIG_…`. */
export const MIG_STATE = { MIGRATED: 0, REARM: 1, ARMED: 2 } as const;

/** `enum ibv_qp_attr_mask`, `IBV_QP_…`. */
export const QP_ATTR_MASK = {
  STATE: 1 << 0,
  CUR_STATE: 1 << 1,
  EN_SQD_ASYNC_NOTIFY: 1 << 2,
  ACCESS_FLAGS: 1 << 3,
  PKEY_INDEX: 1 << 4,
  PORT: 1 << 5,
  QKEY: 1 << 6,
  AV: 1 << 7,
  PATH_MTU: 1 << 8,
  TIMEOUT: 1 << 9,
  RETRY_CNT: 1 << 10,
  RNR_RETRY: 1 << 11,
  RQ_PSN: 1 << 12,
  MAX_QP_RD_ATOMIC: 1 << 13,
  ALT_PATH: 1 << 14,
  MIN_RNR_TIMER: 1 << 15,
  SQ_PSN: 1 << 16,
  MAX_DEST_RD_ATOMIC: 1 << 17,
  PATH_MIG_STATE: 1 << 18,
  CAP: 1 << 19,
  DEST_QPN: 1 << 20,
  RATE_LIMIT: 1 << 25,
} as const;

/** `enum ibv_wr_opcode`, `IBV_WR_…`. */
export const WR_OPCODE = {
  RDMA_WRITE: 0,
  RDMA_WRITE_WITH_IMM: 1,
  SEND: 2,
  SEND_WITH_IMM: 3,
  RDMA_READ: 4,
  ATOMIC_CMP_AND_SWP: 5,
  ATOMIC_FETCH_AND_ADD: 6,
} as const;

/** `enum ibv_send_flags`, `IBV_SEND_…`. */
export const SEND_FLAGS = { FENCE: 1, SIGNALED: 2, SOLICITED: 4, INLINE: 8 } as const;

/** `enum ibv_wc_status`, `IBV_WC_…`. */
export const WC_STATUS = {
  SUCCESS: 0,
  LOC_LEN_ERR: 1,
  LOC_QP_OP_ERR: 2,
  LOC_EEC_OP_ERR: 3,
  LOC_PROT_ERR: 4,
  WR_FLUSH_ERR: 5,
  MW_BIND_ERR: 6,
  BAD_RESP_ERR: 7,
  LOC_ACCESS_ERR: 8,
  REM_INV_REQ_ERR: 9,
  REM_ACCESS_ERR: 10,
  REM_OP_ERR: 11,
  RETRY_EXC_ERR: 12,
  RNR_RETRY_EXC_ERR: 13,
  LOC_RDD_VIOL_ERR: 14,
  REM_INV_RD_REQ_ERR: 15,
  REM_ABORT_ERR: 16,
  INV_EECN_ERR: 17,
  INV_EEC_STATE_ERR: 18,
  FATAL_ERR: 19,
  RESP_TIMEOUT_ERR: 20,
  GENERAL_ERR: 21,
  TM_ERR: 22,
  TM_RNDV_INCOMPLETE: 23,
} as const;

/** `enum ibv_wc_opcode`, `IBV_WC_…`. */
export const WC_OPCODE = {
  SEND: 0,
  RDMA_WRITE: 1,
  RDMA_READ: 2,
  COMP_SWAP: 3,
  FETCH_ADD: 4,
  BIND_MW: 5,
  LOCAL_INV: 6,
  TSO: 7,
  RECV: 128,
  RECV_RDMA_WITH_IMM: 129,
} as const;

/** `enum ibv_wc_flags`, `IBV_WC_…`. */
export const WC_FLAGS = { GRH: 1, WITH_IMM: 2, WITH_INV: 8 } as const;

/** `enum ibv_event_type`, `IBV_EVENT_…`. */
export const EVENT_TYPE = {
  CQ_ERR: 0,
  QP_FATAL: 1,
  QP_REQ_ERR: 2,
  QP_ACCESS_ERR: 3,
  COMM_EST: 4,
  SQ_DRAINED: 5,
  PATH_MIG: 6,
  PATH_MIG_ERR: 7,
  DEVICE_FATAL: 8,
  PORT_ACTIVE: 9,
  PORT_ERR: 10,
  LID_CHANGE: 11,
  PKEY_CHANGE: 12,
  SM_CHANGE: 13,
  SRQ_ERR: 14,
  SRQ_LIMIT_REACHED: 15,
  QP_LAST_WQE_REACHED: 16,
  CLIENT_REREGISTER: 17,
  GID_CHANGE: 18,
  WQ_FATAL: 19,
} as const;

/** `enum rdma_cm_event_type`, `RDMA_CM_EVENT_…`. */
export const CM_EVENT = {
  ADDR_RESOLVED: 0,
  ADDR_ERROR: 1,
  ROUTE_RESOLVED: 2,
  ROUTE_ERROR: 3,
  CONNECT_REQUEST: 4,
  CONNECT_RESPONSE: 5,
  CONNECT_ERROR: 6,
  UNREACHABLE: 7,
  REJECTED: 8,
  ESTABLISHED: 9,
  DISCONNECTED: 10,
  DEVICE_REMOVAL: 11,
  MULTICAST_JOIN: 12,
  MULTICAST_ERROR: 13,
  ADDR_CHANGE: 14,
  TIMEWAIT_EXIT: 15,
} as const;

/** `enum rdma_port_space`, `RDMA_PS_…`. */
export const PORT_SPACE = { IPOIB: 2, TCP: 0x106, UDP: 0x111, IB: 0x13f } as const;

/** Options of an id, `RDMA_OPTION_ID_…`. */
export const CM_OPTION = { TOS: 0, REUSEADDR: 1, AFONLY: 2, ACK_TIMEOUT: 3 } as const;

/** The name of a number of an enumeration, or the number as text. */
export function nameOf<T extends Record<string, number>>(table: T, value: number): string {
  for (const name in table) if (table[name] === value) return name;
  return String(value);
}
