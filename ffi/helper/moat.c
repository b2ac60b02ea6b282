// The helper of Moat: what cannot be TypeScript. One translation unit, freestanding, no libc.
//   frames.c  what is behind each page; ops.c  operations and their guards; copies.c  sends of copies
//   pools.c   buffers and pools
//   arena.c   views of frames for JavaScript to read; snapshot.c  versions of buffers; swap.c  page swapping
//   mapped.c  pools whose first frames are the pages of a file
//   chain.c   whoever else wants a signal; fault.c  the SIGSEGV handler; bus.c  the SIGBUS handler
//   conn.c    connections: what the transports have in common (a handler that waits must move them on)
//   bytes.c   the bytes of messages and headers, for all of them
//   uring.c   the rings of io_uring that some transports submit to
//   file.c    files, as connections whose other end is the disk
//   shm.c     the shared-memory transport; shm_message.c  its messages, read in place
//   rdma.c    the transport over verbs; rdma_post.c, rdma_send.c, rdma_receive.c  its parts
//   tcp.c     the transport over TCP; tcp_send.c, tcp_receive.c, tcp_ring.c  its parts
//   verbs.c   thunks for the inline verbs
//   bell.c    the thread that wakes the event loop
// Exported functions return -errno. Arguments are i32 (handles, pages, counts) or f64 (addresses and byte
// counts, exact below 2^53), because those are what a foreign call costs least with.
#include "frames.c"
#include "ops.c"
#include "copies.c"
#include "arena.c"
#include "snapshot.c"
#include "swap.c"
#include "pools.c"
#include "mapped.c"
#include "chain.c"
#include "fault.c"
#include "bus.c"
#include "conn.c"
#include "bytes.c"
#include "uring.c"
#include "file.c"
#include "shm.c"
#include "rdma_post.c"
#include "rdma_send.c"
#include "rdma_receive.c"
#include "rdma.c"
#include "shm_message.c"
#include "tcp_send.c"
#include "tcp_ring.c"
#include "tcp_receive.c"
#include "tcp.c"
#include "verbs.c"
#include "bell.c"

static const struct transport *const transports[] = {
  [CONN_SHM] = &shm_transport, [CONN_RDMA] = &rdma_transport, [CONN_FILE] = &file_transport, [CONN_TCP] = &tcp_transport,
};
static const struct transport *transport_of(const struct conn *c) { return transports[c->kind]; }
