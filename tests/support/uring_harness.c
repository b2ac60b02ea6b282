// Drives the ring of a pool (ffi/helper/uring.c) without JavaScript and without a transport. The helper's
// sources are part of this program, because a ring has no exported functions but to make it.
#include "../../ffi/helper/moat.c"

int dprintf(int fd, const char *format, ...);
int memfd_create(const char *name, unsigned flags);
int ftruncate(int fd, long length);
long pwrite(int fd, const void *from, unsigned long n, long at);
long write(int fd, const void *from, unsigned long n);
int pipe(int *ends);
int eventfd(unsigned count, int flags);
int epoll_create1(int flags);
int pthread_create(u64 *thread, const void *attributes, void *(*run)(void *), void *argument);
int pthread_join(u64 thread, void **result);
void _exit(int code);
void *mmap(void *at, unsigned long n, int prot, int flags, int fd, long offset);
int strcmp(const char *a, const char *b);

#define CHECK(x) ((x) ? (void)0 : (dprintf(2, "line %d: %s\n", __LINE__, #x), _exit(1)))

enum { PAGES = 16, FRAMES = 32 };

static s32 make_pool(void) {
  CHECK(moat_init(4096, 10000, 1000) == 0);
  s32 fd = memfd_create("pool", 0);
  CHECK(fd >= 0 && ftruncate(fd, FRAMES * 4096) == 0);
  u8 *dev = mmap(0, FRAMES * 4096, 3, MAP_SHARED, fd, 0), *win = mmap(0, PAGES * 4096, 3, MAP_SHARED, fd, 0);
  return moat_pool_add((f64)(u64)win, (f64)(u64)dev, PAGES, FRAMES, 1e9);
}

static void wait_for(s32 pool) {
  for (u64 until = now_ns() + 5000000000ul; moat_uring_query(pool, U_UNDER_WAY) > 0;) {
    CHECK(now_ns() < until);
    uring_reap(pool);
  }
}

static void nops(s32 pool) {
  struct uring *u = uring_of(pool);
  struct sqe nop = { .opcode = IORING_OP_NOP, .user_data = ~0ul };
  for (int i = 0; i < 1000; i++) CHECK(uring_submit(u, &nop) == 0);
  CHECK(moat_uring_query(pool, U_UNDER_WAY) == 1000);
  wait_for(pool);
}

// More completions than their ring has room for: the kernel keeps them, or refuses more requests meanwhile.
static void overflow(s32 pool) {
  struct uring *u = uring_of(pool);
  struct sqe nop = { .opcode = IORING_OP_NOP, .user_data = ~0ul };
  u32 n = 0;
  while (n < 3 * URING_CQ && uring_submit(u, &nop) == 0) n++;
  CHECK(n >= URING_CQ && moat_uring_query(pool, U_UNDER_WAY) == n);
  wait_for(pool);
  CHECK(uring_submit(u, &nop) == 0);
  wait_for(pool);
}

static void fixed_read(s32 pool) {
  struct uring *u = uring_of(pool);
  s32 fd = memfd_create("file", 0);
  CHECK(pwrite(fd, "what is in the file", 19, 5) == 19);
  u8 *to = frame_at(&G.pool[pool], 3) + 7;
  s32 buffer = uring_buffer(u, (u64)to, 19);
  CHECK(u->registered == FRAMES * 4096 && buffer == 0);
  CHECK(uring_buffer(u, (u64)frame_at(&G.pool[pool], FRAMES - 1), 4097) < 0 && uring_buffer(u, u->dev - 1, 1) < 0);
  struct sqe e = { .opcode = IORING_OP_READ_FIXED, .fd = fd, .off = 5, .addr = (u64)to, .len = 19, .user_data = ~0ul };
  CHECK(uring_submit(u, &e) == 0);
  wait_for(pool);
  to[19] = 0;
  CHECK(strcmp((char *)to, "what is in the file") == 0);
}

// Whoever reaps a completion tells the JavaScript that sleeps: the doorbell's thread, which its arrival woke, finds
// nothing any more.
static void wakes(s32 pool) {
  s32 ends[2], event = eventfd(0, 0x800 /* EFD_NONBLOCK */), bell = moat_bell_new(epoll_create1(0), event, eventfd(0, 0));
  CHECK(bell >= 0 && pipe(ends) == 0);
  s32 file = moat_file_add(pool, ends[0], -1, 0, 0), op = moat_in(pool, 0, 1, 0, 5, GUARD_NONE);
  CHECK(file >= 0 && op >= 0 && moat_bell_watch(bell, -1, file) == 0 && moat_file_start(file, op, 0) == 0);
  CHECK(moat_conn_arm(file) == 0);
  CHECK(write(ends[1], "bytes", 5) == 5);
  wait_for(pool);
  u64 rung;
  CHECK(G.op[op].state == OP_DONE);
  CHECK(sys3(NR_read, event, &rung, 8) == 8);
  CHECK(moat_conn_next(file) == op && moat_op_free(op) == 0 && moat_conn_remove(file) == 0);
}

// What a Worker had queued is in memory that goes with it.
static void hangs_up(s32 pool) {
  s32 bell = moat_bell_new(epoll_create1(0), eventfd(0, 0), eventfd(0, 0));
  s32 file = moat_file_add(pool, memfd_create("file", 0), -1, 0, 0);
  CHECK(bell >= 0 && file >= 0 && moat_bell_watch(bell, -1, file) == 0);
  static u8 bytes[(FRAMES - PAGES) * 4096];
  s32 all = moat_out_copy(pool, bytes, sizeof bytes);
  u8 *copy = mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  s32 op = moat_out_staged(pool, (f64)(u64)copy, 4096);
  CHECK(all >= 0 && op >= 0 && moat_file_start(file, op, 0) == 0);
  hang_up_for(bell);
  sys2(NR_munmap, copy, 4096);
  CHECK(moat_op_done(all, 0) == 0);
  progress_all();  // a handler of another Worker
  CHECK(G.op[op].state == OP_DONE && G.op[op].status == -E_CANCELED);
}

// A handler of another thread waits while the last operation of the pool ends, and the pool with it.
static void *toucher(void *pool) {
  u64 at = G.pool[(u64)pool].win;
  CHECK(pool_fault((s32)(u64)pool, at, 0));
  return 0;
}
static void removes(s32 first) {
  for (int i = 0; i < 20; i++) {
    s32 pool = i ? make_pool() : first, op = moat_in(pool, 0, 1, 0, 5, GUARD_WAIT);
    u64 thread, win = G.pool[pool].win;
    CHECK(op >= 0 && pthread_create(&thread, 0, toucher, (void *)(u64)pool) == 0);
    while (!load_acq(&G.pool[pool].guests)) sleep_ns(100000);
    sleep_ns((u64)(2 + i) * 1000000);  // it spins, then it sleeps
    CHECK(moat_op_done(op, 0) == 0 && moat_op_free(op) == 0 && moat_pool_remove(pool) == 0);
    sys2(NR_munmap, win, PAGES * 4096);
    CHECK(pthread_join(thread, 0) == 0);
  }
}

// A handler of another thread looks at every ring, also at one that its owner is about to close.
static u32 stop;
static void *reaper(void *pool) {
  while (!load_acq(&stop)) uring_reap((s32)(u64)pool);
  return 0;
}
static void closes(s32 pool) {
  u64 thread;
  CHECK(pthread_create(&thread, 0, reaper, (void *)(u64)pool) == 0);
  struct sqe nop = { .opcode = IORING_OP_NOP, .user_data = ~0ul };
  for (u64 until = now_ns() + 500000000ul; now_ns() < until;) {
    for (int i = 0; i < 4; i++) CHECK(uring_submit(uring_of(pool), &nop) == 0);
    wait_for(pool);
    uring_close(pool);
    CHECK(moat_uring_open(pool) >= 0);
  }
  store_rel(&stop, 1);
  CHECK(pthread_join(thread, 0) == 0);
}

int main(int argc, char **argv) {
  CHECK(argc == 3);
  s32 pool = make_pool();
  CHECK(moat_uring_query(pool, U_FD) == -E_INVAL);
  s32 fd = moat_uring_open(pool);
  CHECK(fd >= 0 && moat_uring_open(pool) == fd && uring_may_submit(uring_of(pool)));
  if (!strcmp(argv[2], "nops")) nops(pool);
  if (!strcmp(argv[2], "overflow")) overflow(pool);
  if (!strcmp(argv[2], "fixed_read")) fixed_read(pool);
  if (!strcmp(argv[2], "wakes")) wakes(pool);
  if (!strcmp(argv[2], "removes")) {
    removes(pool);
    fd = moat_uring_open(pool = make_pool());
  }
  if (!strcmp(argv[2], "hangs_up")) hangs_up(pool);
  if (!strcmp(argv[2], "closes")) {
    closes(pool);
    fd = moat_uring_open(pool);
  }
  CHECK(moat_pool_remove(pool) == 0 && !uring_of(pool));
  CHECK(sys1(NR_close, fd) == -9);
  _exit(0);
}
