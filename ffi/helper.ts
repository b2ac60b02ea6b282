/**
 * The native helper: loading it once per process, and its functions.
 *
 * It is a freestanding shared object of some 70 KiB, carried as base64 in a module of its own for each
 * architecture and loaded from a memfd, so that an `https:` or JSR import brings it along and nothing
 * is written to disk. Its sources are in `ffi/helper/`; `deno task helper` builds it.
 *
 * @module
 */
import { MoatError } from "./errors.ts";
import { architecture, type Functions, runtime, type Symbols } from "./runtime.ts";
import { C, checked, cString, errno, libc, pageSize, readText } from "./libc.ts";
import { installHandler } from "./sigsegv.ts";

const symbols = {
  // s32 moat_init(u32 page_size, f64 maps_budget, f64 spin_page_ns);
  moat_init: { parameters: ["u32", "f64", "f64"], result: "i32" },
  // s32 moat_handler_before(void), moat_handler_after(void), moat_handler_ours(void);
  moat_handler_before: { parameters: [], result: "i32" },
  moat_handler_after: { parameters: [], result: "i32" },
  moat_handler_ours: { parameters: [], result: "i32" },
  // f64 moat_handler_address(void);
  moat_handler_address: { parameters: [], result: "f64" },
  // The same for SIGBUS.
  moat_bus_before: { parameters: [], result: "i32" },
  moat_bus_after: { parameters: [], result: "i32" },
  moat_bus_ours: { parameters: [], result: "i32" },
  moat_bus_address: { parameters: [], result: "f64" },
  // s32 moat_map_begin(s32 pool, s32 read_only), moat_map_query(s32 pool, s32 what), moat_map_break(s32 pool);
  moat_map_begin: { parameters: ["i32", "i32"], result: "i32" },
  moat_map_query: { parameters: ["i32", "i32"], result: "i32" },
  moat_map_break: { parameters: ["i32"], result: "i32" },
  // s32 moat_pool_add(f64 win, f64 dev, u32 pages, u32 frames, f64 timeout_ns);
  moat_pool_add: { parameters: ["f64", "f64", "u32", "u32", "f64"], result: "i32" },
  // s32 moat_pool_remove(s32 pool);
  moat_pool_remove: { parameters: ["i32"], result: "i32" },
  // s32 moat_pool_notify(s32 pool, s32 on, s32 bell);
  moat_pool_notify: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // s32 moat_buf_open(s32 pool, u32 page, u32 n), moat_buf_close(...);
  moat_buf_open: { parameters: ["i32", "u32", "u32"], result: "i32" },
  moat_buf_close: { parameters: ["i32", "u32", "u32"], result: "i32" },
  // s32 moat_buf_cost(s32 pool, u32 page);
  moat_buf_cost: { parameters: ["i32", "u32"], result: "i32" },
  // s32 moat_restore(s32 pool, u32 page, u32 n);
  moat_restore: { parameters: ["i32", "u32", "u32"], result: "i32" },
  // s32 moat_mend(s32 pool, u32 page, u32 n);
  moat_mend: { parameters: ["i32", "u32", "u32"], result: "i32" },
  // s32 moat_collapse(s32 pool, u32 page);
  moat_collapse: { parameters: ["i32", "u32"], result: "i32" },
  // s32 moat_collapse_frames(s32 pool);
  moat_collapse_frames: { parameters: ["i32"], result: "i32" },
  // s32 moat_out(s32 pool, u32 page, u32 n, u32 off, f64 len, s32 guard);
  moat_out: { parameters: ["i32", "u32", "u32", "u32", "f64", "i32"], result: "i32" },
  // s32 moat_snapshot(s32 pool, u32 page, u32 n, u32 off, f64 len), moat_snapshot_broken(s32 snapshot);
  moat_snapshot: { parameters: ["i32", "u32", "u32", "u32", "f64"], result: "i32" },
  moat_snapshot_broken: { parameters: ["i32"], result: "i32" },
  // s32 moat_out_of(s32 snapshot, f64 at, f64 len);
  moat_out_of: { parameters: ["i32", "f64", "f64"], result: "i32" },
  // s32 moat_views_add(s32 pool, f64 view, u32 aliases, s32 fd);
  moat_views_add: { parameters: ["i32", "f64", "u32", "i32"], result: "i32" },
  // f64 moat_view_open(s32 snapshot, s32 at);
  moat_view_open: { parameters: ["i32", "i32"], result: "f64" },
  // s32 moat_view_close(s32 pool, u32 page, u32 n, u32 runs), moat_view_restore(s32 pool, u32 page, u32 n);
  moat_view_close: { parameters: ["i32", "u32", "u32", "u32"], result: "i32" },
  moat_view_restore: { parameters: ["i32", "u32", "u32"], result: "i32" },
  // s32 moat_swap(s32 pool, u32 a, u32 b, u32 n);
  moat_swap: { parameters: ["i32", "u32", "u32", "u32"], result: "i32" },
  // s32 moat_out_copy(s32 pool, const u8 *src, f64 len);
  moat_out_copy: { parameters: ["i32", "buffer", "f64"], result: "i32" },
  // s32 moat_out_staged(s32 pool, f64 src, f64 len);
  moat_out_staged: { parameters: ["i32", "f64", "f64"], result: "i32" },
  // s32 moat_out_lent(s32 pool, f64 src, f64 len);
  moat_out_lent: { parameters: ["i32", "f64", "f64"], result: "i32" },
  // s32 moat_in(s32 pool, u32 page, u32 n, u32 off, f64 len, s32 guard);
  moat_in: { parameters: ["i32", "u32", "u32", "u32", "f64", "i32"], result: "i32" },
  // s32 moat_uring_open(s32 pool), moat_uring_watch(s32 pool, s32 bell);
  moat_uring_open: { parameters: ["i32"], result: "i32" },
  moat_uring_watch: { parameters: ["i32", "i32"], result: "i32" },
  // f64 moat_uring_query(s32 pool, s32 what);
  moat_uring_query: { parameters: ["i32", "i32"], result: "f64" },
  // s32 moat_file_add(s32 pool, s32 fd, s32 direct_fd, u32 mem_align, u32 off_align);
  moat_file_add: { parameters: ["i32", "i32", "i32", "u32", "u32"], result: "i32" },
  // s32 moat_file_start(s32 conn, s32 op, f64 at);
  moat_file_start: { parameters: ["i32", "i32", "f64"], result: "i32" },
  // s32 moat_file_stat(s32 fd, u8 *to);
  moat_file_stat: { parameters: ["i32", "buffer"], result: "i32" },
  // s32 moat_file_worker(void); f64 moat_file_main_address(void);
  moat_file_worker: { parameters: [], result: "i32" },
  moat_file_main_address: { parameters: [], result: "f64" },
  // s32 moat_take_new(s32 pool);
  moat_take_new: { parameters: ["i32"], result: "i32" },
  // s32 moat_op_done(s32 op, s32 status);
  moat_op_done: { parameters: ["i32", "i32"], result: "i32" },
  // s32 moat_op_free(s32 op);
  moat_op_free: { parameters: ["i32"], result: "i32" },
  // s32 moat_op_header(s32 op, const u8 *src, u32 len);
  moat_op_header: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // s32 moat_op_header_staged(s32 op, f64 src, u32 len);
  moat_op_header_staged: { parameters: ["i32", "f64", "u32"], result: "i32" },
  // f64 moat_query(s32 what, s32 pool);
  moat_query: { parameters: ["i32", "i32"], result: "f64" },
  // s32 moat_set_maps_budget(f64 n);
  moat_set_maps_budget: { parameters: ["f64"], result: "i32" },
  // s32 moat_shm_add(s32 pool, s32 fd, s32 peer_fd, f64 mine, f64 theirs, f64 peer_dev, f64 view,
  //                   u32 peer_frames, u32 arena, s32 local_tid);
  moat_shm_add: {
    parameters: ["i32", "i32", "i32", "f64", "f64", "f64", "f64", "u32", "u32", "i32"],
    result: "i32",
  },
  // s32 moat_conn_remove(s32 conn);
  moat_conn_remove: { parameters: ["i32"], result: "i32" },
  // s32 moat_conn_eager(s32 conn, const u8 *src, u32 len);
  moat_conn_eager: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // s32 moat_conn_send(s32 conn, s32 op), moat_conn_recv(s32 conn, s32 op);
  moat_conn_send: { parameters: ["i32", "i32"], result: "i32" },
  moat_conn_recv: { parameters: ["i32", "i32"], result: "i32" },
  // s32 moat_conn_take(s32 conn, f64 spin_ns);
  moat_conn_take: { parameters: ["i32", "f64"], result: "i32" },
  // s32 moat_conn_next(s32 conn), moat_conn_state(s32 conn), moat_conn_busy(s32 conn), ...
  moat_conn_next: { parameters: ["i32"], result: "i32" },
  moat_conn_state: { parameters: ["i32"], result: "i32" },
  moat_conn_busy: { parameters: ["i32"], result: "i32" },
  moat_conn_arm: { parameters: ["i32"], result: "i32" },
  // s32 moat_conn_cancel(s32 op);
  moat_conn_cancel: { parameters: ["i32"], result: "i32" },
  // s32 moat_conn_end(s32 conn, s32 abort);
  moat_conn_end: { parameters: ["i32", "i32"], result: "i32" },
  // f64 moat_conn_report(s32 conn), moat_op_address(s32 op);
  moat_conn_report: { parameters: ["i32"], result: "f64" },
  moat_op_address: { parameters: ["i32"], result: "f64" },
  // s32 moat_thread_id(void);
  moat_thread_id: { parameters: [], result: "i32" },
  // f64 moat_msg_in_place(s32 conn, s32 op);
  moat_msg_in_place: { parameters: ["i32", "i32"], result: "f64" },
  // f64 moat_msg_alias(s32 conn, s32 op, u32 at);
  moat_msg_alias: { parameters: ["i32", "i32", "u32"], result: "f64" },
  // s32 moat_msg_copy(s32 conn, s32 op, u8 *to), moat_msg_unpark(s32 op, u8 *to);
  moat_msg_copy: { parameters: ["i32", "i32", "buffer"], result: "i32" },
  moat_msg_unpark: { parameters: ["i32", "buffer"], result: "i32" },
  // s32 moat_msg_header(s32 conn, s32 op, u8 *to);
  moat_msg_header: { parameters: ["i32", "i32", "buffer"], result: "i32" },
  // f64 moat_conn_wants(s32 conn);
  moat_conn_wants: { parameters: ["i32"], result: "f64" },
  // s32 moat_conn_land(s32 conn, s32 op);
  moat_conn_land: { parameters: ["i32", "i32"], result: "i32" },
  // s32 moat_msg_release(s32 conn, u32 id, s32 page, u32 n, u32 runs);
  moat_msg_release: { parameters: ["i32", "u32", "i32", "u32", "u32"], result: "i32" },
  // s32 moat_rdma_add(s32 pool, s32 fd, const u64 *cfg);
  moat_rdma_add: { parameters: ["i32", "i32", "buffer"], result: "i32" },
  // s32 moat_rdma_begin(s32 conn, f64 remote_base, u32 remote_frames, u32 rkey, s32 local_tid);
  moat_rdma_begin: { parameters: ["i32", "f64", "u32", "u32", "i32"], result: "i32" },
  // s32 moat_rdma_hangup(s32 conn), moat_rdma_kill(s32 conn), moat_rdma_gone(s32 conn);
  moat_rdma_hangup: { parameters: ["i32"], result: "i32" },
  moat_rdma_kill: { parameters: ["i32"], result: "i32" },
  moat_rdma_gone: { parameters: ["i32"], result: "i32" },
  // s32 moat_rdma_leave(void);
  moat_rdma_leave: { parameters: [], result: "i32" },
  // f64 moat_rdma_query(s32 conn, s32 what);
  moat_rdma_query: { parameters: ["i32", "i32"], result: "f64" },
  // s32 moat_tcp_add(s32 pool, s32 fd, s32 local_tid);
  moat_tcp_add: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // s32 moat_tcp_ring(s32 conn, f64 send_from, f64 receive_from);
  moat_tcp_ring: { parameters: ["i32", "f64", "f64"], result: "i32" },
  // s32 moat_uring_probe(void);
  moat_uring_probe: { parameters: [], result: "i32" },
  // f64 moat_uring_round_trip(s32 pool);
  moat_uring_round_trip: { parameters: ["i32"], result: "f64" },
  // s32 moat_tcp_drop(s32 conn), moat_tcp_done(s32 conn);
  moat_tcp_drop: { parameters: ["i32"], result: "i32" },
  moat_tcp_done: { parameters: ["i32"], result: "i32" },
  // s32 moat_verbs_post_send(f64 qp, f64 wr, f64 bad), moat_verbs_post_recv(f64 qp, f64 wr, f64 bad);
  moat_verbs_post_send: { parameters: ["f64", "f64", "f64"], result: "i32" },
  moat_verbs_post_recv: { parameters: ["f64", "f64", "f64"], result: "i32" },
  // s32 moat_verbs_poll_cq(f64 cq, s32 n, f64 wc);
  moat_verbs_poll_cq: { parameters: ["f64", "i32", "f64"], result: "i32" },
  // s32 moat_verbs_req_notify_cq(f64 cq, s32 solicited_only);
  moat_verbs_req_notify_cq: { parameters: ["f64", "i32"], result: "i32" },
  // s32 moat_bell_new(s32 epoll, s32 event, s32 pair);
  moat_bell_new: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // s32 moat_bell_watch(s32 bell, s32 fd, s32 conn), moat_bell_unwatch(s32 bell, s32 fd);
  moat_bell_watch: { parameters: ["i32", "i32", "i32"], result: "i32" },
  moat_bell_unwatch: { parameters: ["i32", "i32"], result: "i32" },
  // s32 moat_bell_answer(s32 bell);
  moat_bell_answer: { parameters: ["i32"], result: "i32" },
  // f64 moat_bell_main_address(void);
  moat_bell_main_address: { parameters: [], result: "f64" },
} as const satisfies Symbols;

/** The functions of the helper. Those that return `s32` return `-errno` on failure. */
export type Helper = Functions<typeof symbols>;

/** What `moat_query` can be asked. */
export const QUERY = {
  ops: 0,
  stats: 1,
  faults: 2,
  faultCount: 3,
  freeFrames: 4,
  mapsUsed: 5,
  mapsBudget: 6,
  opsLive: 7,
  viewWrites: 8,
} as const;

/** What `moat_map_query` can be asked. */
export const MAP_QUERY = {
  /** 1 if the file has been cut off. */
  broken: 0,
  /** 1 if a read-only mapping was written to. */
  scribbled: 1,
  /** Pages whose contents are not in the file yet, because operations hold them. */
  away: 2,
} as const;

/** What `moat_uring_query` can be asked. */
export const URING_QUERY = {
  fd: 0,
  /** Bytes of the device view that are registered as fixed buffers. */
  registered: 1,
  /** The errno if the kernel refused to register them. */
  refused: 2,
  underWay: 3,
} as const;

/** What `moat_rdma_query` can be asked. */
export const RDMA_QUERY = {
  /** 1 once the goodbye has arrived at the peer, or never will. */
  byeDone: 0,
  /** 1 once the queue pair is in error. */
  dead: 1,
  /** 1 if the device has not given everything back a second after that. */
  stuck: 2,
  /** Events of the completion channel that are to be acknowledged. */
  events: 3,
  /** The address of the first completion that failed. */
  error: 4,
  hasError: 5,
} as const;

let loaded: Helper | undefined;

/**
 * The helper, loaded at its first use, with its fault handler installed.
 *
 * @throws {MoatError} `HELPER_BROKEN` if it cannot be loaded.
 */
export function helper(): Helper {
  return loaded ??= alone(load);
}

// Two Workers that load it at the same time would load two copies, each with a handler of its own. The lock is
// on a file that no other process has, and goes with its descriptor.
function alone<T>(act: () => T): T {
  const fd = libc().open(cString("/proc/self/status"), C.O_CLOEXEC, 0);
  try {
    while (libc().flock(fd, C.LOCK_EX) === -1 && errno() === C.EINTR);
    return act();
  } finally {
    libc().close(fd);
  }
}

// A module's top level cannot choose what to import without `await`, so both are here: 2 x 30 KB of text.
import * as x86 from "./helper/x86_64.ts";
import * as arm from "./helper/aarch64.ts";

function load(): Helper {
  const image = architecture() === "x86_64" ? x86 : arm;
  const name = `moat-${image.sha256.slice(0, 16)}`;
  const path = find(name) ?? create(name, image.base64);
  let functions: Helper;
  try {
    functions = runtime().open(path, symbols);
  } catch (error) {
    throw new MoatError("HELPER_BROKEN", `The native helper could not be loaded from ${path}`, {
      cause: error,
      hint: "a system with vm.memfd_noexec=2 forbids code in a memfd: sysctl vm.memfd_noexec=1",
    });
  }
  const r = functions.moat_init(pageSize(), mappingBudget(), SPIN_PAGE_NS);
  if (r < 0) throw new MoatError("HELPER_BROKEN", `moat_init failed with ${r}`, { errno: -r });
  installHandler(functions);
  return functions;
}

// How long a write to a page in flight may look for the completion instead of copying the page: what
// copying and remapping one costs (1 us measured on a Xeon in a virtual machine, with the fault).
const SPIN_PAGE_NS = 1000;

// The mappings guards may make: vm.max_map_count less what the process has and a reserve for the runtime.
function mappingBudget(): number {
  const most = Number(readText("/proc/sys/vm/max_map_count")) || 65530;
  const used = readText("/proc/self/maps").split("\n").length;
  return Math.max(1024, most - used - Math.min(16384, most >> 2));
}

// Another isolate of this process may have loaded it. The same inode by any path is the same copy, with the
// same tables and the same handler. The memfd's descriptor stays open for that.
function find(name: string): string | undefined {
  if (!readText("/proc/self/maps").includes(`/memfd:${name}`)) return undefined;
  const pid = libc().getpid(), link = new Uint8Array(256), decoder = new TextDecoder();
  for (let fd = 0; fd < 4096; fd++) {
    const n = libc().readlink(cString(`/proc/self/fd/${fd}`), link, link.length);
    if (n > 0 && decoder.decode(link.subarray(0, n)).startsWith(`/memfd:${name}`)) {
      return `/proc/${pid}/fd/${fd}`;
    }
  }
  return undefined;
}

// glibc remembers libraries by path: `/proc/self/fd/N` would find whatever was N before, so the path names
// this process, and the descriptor is never closed.
function create(name: string, base64: string): string {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const fd = checked("memfd_create", libc().memfd_create(cString(name), C.MFD_CLOEXEC));
  for (let at = 0; at < bytes.length;) {
    at += checked("write", libc().write(fd, bytes.subarray(at), bytes.length - at));
  }
  return `/proc/${libc().getpid()}/fd/${fd}`;
}
