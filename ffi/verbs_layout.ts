/**
 * The layouts of the structs of libibverbs and librdmacm that JavaScript reads or writes: offsets and sizes
 * in bytes, the same on x86-64 and aarch64 unless said otherwise. `tests/verbs_layout_test.ts` has a C compiler compare them with
 * `<infiniband/verbs.h>` and `<rdma/rdma_cma.h>`.
 *
 * Members of nested structs and unions stand among those of the struct around them.
 *
 * @module
 */

/** `struct ibv_device`. */
export const IBV_DEVICE = {
  size: 664,
  nodeType: 16,
  transportType: 20,
  name: 24,
  devName: 88,
  devPath: 152,
  ibdevPath: 408,
} as const;

/** `struct ibv_context`, up to its mutex, which is larger on aarch64. */
export const IBV_CONTEXT = {
  device: 0,
  cmdFd: 264,
  asyncFd: 268,
  numCompVectors: 272,
} as const;

/** Where the `abi_compat` of a `struct ibv_context` is, after the mutex. */
export const ABI_COMPAT = { x86_64: 320, aarch64: 328 } as const;

/**
 * `struct verbs_context`, which ends with the `struct ibv_context` and grows at its beginning: bytes before
 * the context.
 */
export const VERBS_CONTEXT = { sz: 8, queryDeviceEx: 104, queryPort: 320 } as const;

/** `struct ibv_device_attr`. */
export const IBV_DEVICE_ATTR = {
  size: 232,
  fwVer: 0,
  nodeGuid: 64,
  sysImageGuid: 72,
  maxMrSize: 80,
  pageSizeCap: 88,
  vendorId: 96,
  vendorPartId: 100,
  hwVer: 104,
  maxQp: 108,
  maxQpWr: 112,
  deviceCapFlags: 116,
  maxSge: 120,
  maxSgeRd: 124,
  maxCq: 128,
  maxCqe: 132,
  maxMr: 136,
  maxPd: 140,
  maxQpRdAtom: 144,
  maxEeRdAtom: 148,
  maxResRdAtom: 152,
  maxQpInitRdAtom: 156,
  maxEeInitRdAtom: 160,
  atomicCap: 164,
  maxEe: 168,
  maxRdd: 172,
  maxMw: 176,
  maxRawIpv6Qp: 180,
  maxRawEthyQp: 184,
  maxMcastGrp: 188,
  maxMcastQpAttach: 192,
  maxTotalMcastQpAttach: 196,
  maxAh: 200,
  maxFmr: 204,
  maxMapPerFmr: 208,
  maxSrq: 212,
  maxSrqWr: 216,
  maxSrqSge: 220,
  maxPkeys: 224,
  localCaAckDelay: 226,
  physPortCnt: 227,
} as const;

/** `struct ibv_device_attr_ex`. */
export const IBV_DEVICE_ATTR_EX = {
  size: 400,
  compMask: 232,
  odpGeneralCaps: 240,
  rcOdpCaps: 248,
  ucOdpCaps: 252,
  udOdpCaps: 256,
  completionTimestampMask: 264,
  hcaCoreClock: 272,
  deviceCapFlagsEx: 280,
  tsoMaxTso: 288,
  tsoSupportedQpts: 292,
  rssSupportedQpts: 296,
  rssMaxRwqIndirectionTables: 300,
  rssMaxRwqIndirectionTableSize: 304,
  rssRxHashFieldsMask: 312,
  rssRxHashFunction: 320,
  maxWqTypeRq: 328,
  pacingQpRateLimitMin: 332,
  pacingQpRateLimitMax: 336,
  pacingSupportedQpts: 340,
  rawPacketCaps: 344,
  tmMaxRndvHdrSize: 348,
  tmMaxNumTags: 352,
  tmFlags: 356,
  tmMaxOps: 360,
  tmMaxSge: 364,
  maxCqCount: 368,
  maxCqPeriod: 370,
  maxDmSize: 376,
  pciAtomicFetchAdd: 384,
  pciAtomicSwap: 386,
  pciAtomicCompareSwap: 388,
  xrcOdpCaps: 392,
  physPortCntEx: 396,
} as const;

/** `struct ibv_port_attr`. */
export const IBV_PORT_ATTR = {
  size: 52,
  state: 0,
  maxMtu: 4,
  activeMtu: 8,
  gidTblLen: 12,
  portCapFlags: 16,
  maxMsgSz: 20,
  badPkeyCntr: 24,
  qkeyViolCntr: 28,
  pkeyTblLen: 32,
  lid: 34,
  smLid: 36,
  lmc: 38,
  maxVlNum: 39,
  smSl: 40,
  subnetTimeout: 41,
  initTypeReply: 42,
  activeWidth: 43,
  activeSpeed: 44,
  physState: 45,
  linkLayer: 46,
  flags: 47,
  portCapFlags2: 48,
} as const;

/** `struct ibv_gid_entry`. */
export const IBV_GID_ENTRY = {
  size: 32,
  gid: 0,
  gidIndex: 16,
  portNum: 20,
  gidType: 24,
  ndevIfindex: 28,
} as const;

/** `struct ibv_async_event`. */
export const IBV_ASYNC_EVENT = {
  size: 16,
  element: 0,
  eventType: 8,
} as const;

/** `struct ibv_mr`. */
export const IBV_MR = {
  size: 48,
  addr: 16,
  length: 24,
  handle: 32,
  lkey: 36,
  rkey: 40,
} as const;

/** `struct ibv_comp_channel`. */
export const IBV_COMP_CHANNEL = {
  size: 16,
  fd: 8,
} as const;

/** `struct ibv_cq`, up to its mutex. */
export const IBV_CQ = {
  channel: 8,
  cqe: 28,
} as const;

/** `struct ibv_qp`, up to its mutex. */
export const IBV_QP = {
  handle: 48,
  qpNum: 52,
  state: 56,
  qpType: 60,
} as const;

/** `struct ibv_qp_init_attr`. */
export const IBV_QP_INIT_ATTR = {
  size: 64,
  qpContext: 0,
  sendCq: 8,
  recvCq: 16,
  srq: 24,
  maxSendWr: 32,
  maxRecvWr: 36,
  maxSendSge: 40,
  maxRecvSge: 44,
  maxInlineData: 48,
  qpType: 52,
  sqSigAll: 56,
} as const;

/** `struct ibv_qp_attr`. */
export const IBV_QP_ATTR = {
  size: 144,
  qpState: 0,
  curQpState: 4,
  pathMtu: 8,
  pathMigState: 12,
  qkey: 16,
  rqPsn: 20,
  sqPsn: 24,
  destQpNum: 28,
  qpAccessFlags: 32,
  maxSendWr: 36,
  maxRecvWr: 40,
  maxSendSge: 44,
  maxRecvSge: 48,
  maxInlineData: 52,
  ahAttr: 56,
  altAhAttr: 88,
  pkeyIndex: 120,
  altPkeyIndex: 122,
  enSqdAsyncNotify: 124,
  sqDraining: 125,
  maxRdAtomic: 126,
  maxDestRdAtomic: 127,
  minRnrTimer: 128,
  portNum: 129,
  timeout: 130,
  retryCnt: 131,
  rnrRetry: 132,
  altPortNum: 133,
  altTimeout: 134,
  rateLimit: 136,
} as const;

/** `struct ibv_ah_attr`. */
export const IBV_AH_ATTR = {
  size: 32,
  dgid: 0,
  flowLabel: 16,
  sgidIndex: 20,
  hopLimit: 21,
  trafficClass: 22,
  dlid: 24,
  sl: 26,
  srcPathBits: 27,
  staticRate: 28,
  isGlobal: 29,
  portNum: 30,
} as const;

/** `struct ibv_sge`. */
export const IBV_SGE = {
  size: 16,
  addr: 0,
  length: 8,
  lkey: 12,
} as const;

/** `struct ibv_send_wr`. */
export const IBV_SEND_WR = {
  size: 128,
  wrId: 0,
  next: 8,
  sgList: 16,
  numSge: 24,
  opcode: 28,
  sendFlags: 32,
  immData: 36,
  remoteAddr: 40,
  rkey: 48,
  atomicRemoteAddr: 40,
  atomicCompareAdd: 48,
  atomicSwap: 56,
  atomicRkey: 64,
} as const;

/** `struct ibv_recv_wr`. */
export const IBV_RECV_WR = {
  size: 32,
  wrId: 0,
  next: 8,
  sgList: 16,
  numSge: 24,
} as const;

/** `struct ibv_wc`. */
export const IBV_WC = {
  size: 48,
  wrId: 0,
  status: 8,
  opcode: 12,
  vendorErr: 16,
  byteLen: 20,
  immData: 24,
  qpNum: 28,
  srcQp: 32,
  wcFlags: 36,
  pkeyIndex: 40,
  slid: 42,
  sl: 44,
  dlidPathBits: 45,
} as const;

/** `struct rdma_event_channel`. */
export const RDMA_EVENT_CHANNEL = {
  size: 4,
  fd: 0,
} as const;

/** `struct rdma_cm_id`. */
export const RDMA_CM_ID = {
  size: 416,
  verbs: 0,
  channel: 8,
  qp: 24,
  srcAddr: 32,
  dstAddr: 160,
  ps: 344,
  portNum: 348,
  pd: 400,
} as const;

/** `struct rdma_conn_param`. */
export const RDMA_CONN_PARAM = {
  size: 24,
  privateData: 0,
  privateDataLen: 8,
  responderResources: 9,
  initiatorDepth: 10,
  flowControl: 11,
  retryCount: 12,
  rnrRetryCount: 13,
  srq: 14,
  qpNum: 16,
} as const;

/** `struct rdma_cm_event`. */
export const RDMA_CM_EVENT = {
  size: 80,
  id: 0,
  listenId: 8,
  event: 16,
  status: 20,
  conn: 24,
} as const;

/** `struct sockaddr_in`. */
export const SOCKADDR_IN = {
  size: 16,
  family: 0,
  port: 2,
  addr: 4,
} as const;

/** `struct sockaddr_in6`. */
export const SOCKADDR_IN6 = {
  size: 28,
  family: 0,
  port: 2,
  flowinfo: 4,
  addr: 8,
  scopeId: 24,
} as const;
