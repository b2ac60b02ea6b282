/**
 * The layouts of C structs that JavaScript reads or writes. Offsets and sizes in bytes, the same on
 * x86-64 and aarch64 unless said otherwise. Those of the helper are checked by assertions in its
 * sources and by `tests/layout_test.ts`.
 *
 * @module
 */

/** `struct sigaction` of glibc and musl. */
export const SIGACTION = { size: 152, handler: 0, mask: 8, flags: 136 } as const;

/** `struct statfs`. */
export const STATFS = { size: 120, type: 0 } as const;

/** `struct sockaddr_un`. */
export const SOCKADDR_UN = { size: 110, family: 0, path: 2 } as const;

/** `struct statx`. */
export const STATX = {
  size: 256,
  mask: 0,
  mode: 28,
  bytes: 40,
  /** Where `mask` has `hasDirect`: what O_DIRECT wants of memory, and of offsets and lengths. */
  memoryAlign: 152,
  offsetAlign: 156,
} as const;
/** STATX_DIOALIGN. */
export const STATX_DIRECT = 0x2000;

/** `struct msghdr`, `struct iovec`, `struct cmsghdr`. */
export const MSGHDR = {
  size: 56,
  iov: 16,
  iovlen: 24,
  control: 32,
  controllen: 40,
  flags: 48,
} as const;

/** `struct ucred`. */
export const UCRED = { size: 12, pid: 0, uid: 4, gid: 8 } as const;

/** `struct op` of the helper (ffi/helper/memory.h). */
export const OP = {
  size: 160,
  flags: 6,
  status: 28,
  len: 32,
  got: 40,
  desc: 48,
  seq: 128,
  headLength: 136,
  direct: 152,
} as const;

/** `struct desc` of the helper: a message's descriptor on the wire. */
export const DESC = {
  size: 64,
  id: 0,
  kind: 4,
  len: 8,
  off: 16,
  nruns: 20,
  runs: 24,
  table: 56,
} as const;

/** Kinds of descriptors. */
export const DESC_KIND = { eager: 1, pages: 2, table: 3, landed: 4 } as const;

/** `op.flags`: a small message was parked in frames of the pool. */
export const OP_PARKED = 4;

/** `struct fault` of the helper: one entry of a pool's fault ring. */
export const FAULT = {
  size: 32,
  entries: 1024,
  start: 0,
  page: 4,
  offset: 8,
  op: 12,
  access: 16,
  outcome: 17,
  pages: 18,
  thread: 20,
  ns: 24,
} as const;

/** `struct ring` of the helper (ffi/helper/shm.h): the memory a side of an shm connection shares. */
export const RING = {
  size: 4096 + 65536 + 65536 + (256 << 10),
  state: 256,
  pid: 260,
  tid: 264,
  open: 1,
  /** Messages up to this size travel through the ring; larger ones as pages. Bytes. */
  eagerMax: 16 << 10,
} as const;

/** Numbers of the transport over TCP (ffi/helper/tcp.h). */
export const TCP = {
  /** Messages up to this size are copied into the socket at once. Bytes. */
  eagerMax: 16 << 10,
} as const;

/** Numbers of the transport over verbs (ffi/helper/rdma.h). */
export const RDMA = {
  /** Bytes of a slot for a small message, and of the header in it. */
  slotBytes: 4096,
  headerBytes: 24,
  /** Slots for receiving and for sending. */
  recvSlots: 64,
  sendSlots: 32,
  /** Entries of the send queue. */
  sendQueue: 256,
  /** Receives of the raw protocol. */
  rawReceives: 1024,
  /** Segments of a work request. */
  maxSge: 16,
} as const;
