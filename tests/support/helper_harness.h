// What the harnesses of the native helper share: they load it, make pools, and stand in for what QEMU's user
// mode lacks.
#ifndef HELPER_HARNESS_H
#define HELPER_HARNESS_H
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wunused-function"  // each uses what it needs

#define CHECK(x) ((x) ? (void)0 : fail(__LINE__, #x))
#define EQUAL(a, b) equal(__LINE__, #a, (long)(a), (long)(b))
static void fail(int line, const char *what) {
  fprintf(stderr, "line %d: %s (%s)\n", line, what, strerror(errno));
  _exit(1);
}
static void equal(int line, const char *what, long a, long b) {
  if (a == b) return;
  fprintf(stderr, "line %d: %s is %ld, not %ld\n", line, what, a, b);
  _exit(1);
}

// ---- the helper

enum { NO_GUARD, WAIT, COW };
enum { Q_OPS, Q_STATS, Q_FAULTS, Q_NFAULTS, Q_FREE, Q_MAPS_USED, Q_MAPS_BUDGET, Q_OPS_LIVE };
enum { RESTORES = 3, PRIVATE = 4, WAITS = 5, TIMEOUTS = 7, DEGRADED = 9, FOREIGN_PRIVATE = 14 };

struct run { uint32_t frame, count; };
struct desc { uint32_t id, kind; uint64_t len; uint32_t off, nruns; struct run run[4]; uint32_t table, head; };
struct op {
  uint32_t state;
  uint8_t kind, guard;
  uint16_t flags;
  int32_t pool, conn;
  uint32_t page, pages, off;
  int32_t status;
  uint64_t len, got;
  struct desc d;
  uint64_t src;
  uint32_t next_free, last_table, seq, reads, head_len, head_frame;
};

#define FUNCTIONS(F) \
  F(int, moat_init, uint32_t, double, double) \
  F(int, moat_handler_before, void) \
  F(int, moat_handler_after, void) \
  F(int, moat_handler_ours, void) \
  F(double, moat_handler_address, void) \
  F(int, moat_pool_add, double, double, uint32_t, uint32_t, double) \
  F(int, moat_pool_remove, int) \
  F(int, moat_buf_open, int, uint32_t, uint32_t) \
  F(int, moat_out, int, uint32_t, uint32_t, uint32_t, double, int) \
  F(int, moat_in, int, uint32_t, uint32_t, uint32_t, double, int) \
  F(int, moat_op_done, int, int) \
  F(int, moat_op_free, int) \
  F(int, moat_op_header, int, const void *, uint32_t) \
  F(int, moat_op_header_staged, int, double, uint32_t) \
  F(double, moat_op_address, int) \
  F(double, moat_query, int, int) \
  F(int, moat_restore, int, uint32_t, uint32_t) \
  F(int, moat_out_copy, int, const void *, double) \
  F(int, moat_out_staged, int, double, double) \
  F(int, moat_set_maps_budget, double) \
  F(int, moat_take_new, int) \
  F(int, moat_shm_add, int, int, int, double, double, double, double, uint32_t, uint32_t, int) \
  F(int, moat_conn_remove, int) \
  F(int, moat_conn_eager, int, const void *, uint32_t) \
  F(int, moat_conn_send, int, int) \
  F(int, moat_conn_recv, int, int) \
  F(int, moat_conn_take, int, double) \
  F(int, moat_conn_next, int) \
  F(int, moat_conn_state, int) \
  F(int, moat_conn_busy, int) \
  F(int, moat_conn_end, int, int) \
  F(int, moat_conn_cancel, int) \
  F(int, moat_conn_arm, int) \
  F(double, moat_conn_report, int) \
  F(int, moat_rdma_add, int, int, const uint64_t *) \
  F(int, moat_rdma_begin, int, double, uint32_t, uint32_t, int) \
  F(int, moat_rdma_hangup, int) \
  F(double, moat_conn_wants, int) \
  F(int, moat_conn_land, int, int) \
  F(double, moat_rdma_query, int, int) \
  F(int, moat_rdma_kill, int) \
  F(int, moat_rdma_gone, int) \
  F(int, moat_bell_new, int, int, int) \
  F(int, moat_bell_watch, int, int, int) \
  F(int, moat_bell_answer, int) \
  F(double, moat_bell_main_address, void) \
  F(double, moat_msg_in_place, int, int) \
  F(double, moat_msg_alias, int, int, uint32_t) \
  F(int, moat_msg_copy, int, int, void *) \
  F(int, moat_msg_header, int, int, void *) \
  F(int, moat_msg_unpark, int, void *) \
  F(int, moat_msg_release, int, uint32_t, int, uint32_t, uint32_t)
#define POINTER(result, name, ...) static result (*name)(__VA_ARGS__);
FUNCTIONS(POINTER)

static size_t page_size;

static void load(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  if (!library) fail(__LINE__, dlerror());
#define FIND(result, name, ...) CHECK((name = (result (*)(__VA_ARGS__))dlsym(library, #name)) != NULL);
  FUNCTIONS(FIND)
  EQUAL(moat_init((uint32_t)page_size, 60000, 1000), 0);
}

static void install(void) {
  if (moat_handler_before() == 1) return;
  struct sigaction ours = { .sa_flags = SA_SIGINFO | SA_ONSTACK };
  ours.sa_sigaction = (void (*)(int, siginfo_t *, void *))(uintptr_t)moat_handler_address();
  CHECK(sigaction(SIGSEGV, &ours, NULL) == 0);
  EQUAL(moat_handler_after(), 0);
}

// ---- pools

struct pool {
  int fd, index;
  uint32_t pages, frames;
  volatile uint8_t *device, *window;
};
static struct pool pools[4];
static int pool_count;
static int stand_in;  // see below

// Not memset(3): QEMU's user mode gets the instruction wrong at which "dc zva" faults.
static void fill(volatile uint8_t *at, int value, size_t bytes) {
  while (bytes--) *at++ = (uint8_t)value;
}
static struct pool *new_pool(uint32_t pages, uint32_t reserve, double timeout_ms) {
  struct pool *p = &pools[pool_count++];
  p->pages = pages;
  p->frames = pages + reserve;
  p->fd = memfd_create("pool", MFD_ALLOW_SEALING);
  CHECK(p->fd >= 0 && ftruncate(p->fd, (off_t)(p->frames * page_size)) == 0);
  p->device = mmap(NULL, p->frames * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd, 0);
  p->window = mmap(NULL, p->pages * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd, 0);
  CHECK(p->device != MAP_FAILED && p->window != MAP_FAILED);
  if (!stand_in)
    CHECK(fcntl(p->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | 16 /* F_SEAL_FUTURE_WRITE */ | F_SEAL_SEAL) == 0);
  p->index = moat_pool_add((uintptr_t)p->window, (uintptr_t)p->device, pages, p->frames, timeout_ms * 1e6);
  CHECK(p->index >= 0);
  for (uint32_t i = 0; i < pages; i++) fill(p->window + i * page_size, (int)(i % 251 + 1), page_size);
  return p;
}
static long free_frames(struct pool *p) { return (long)moat_query(Q_FREE, p->index); }
static long stat(struct pool *p, int i) { return (long)((uint64_t *)(uintptr_t)moat_query(Q_STATS, p->index))[i]; }
static struct op *op_at(int i) { return (struct op *)(uintptr_t)moat_op_address(i); }
static void done(int op) {
  EQUAL(moat_op_done(op, 0), 0);
  EQUAL(moat_op_free(op), 0);
}
static int out(struct pool *p, uint32_t page, uint32_t n, int guard) {
  int op = moat_out(p->index, page, n, 0, (double)(n * page_size), guard);
  CHECK(op >= 0);
  return op;
}

// ---- a system call that QEMU's user mode refuses

// QEMU 7 does not pass on mremap(2) with an old size of 0, by which the helper puts frames behind the window.
// There the system call instructions are replaced by breakpoints, and this stands in for it: for a memfd
// that is not sealed a new mapping does the same.
#if defined(__aarch64__)
static void on_breakpoint(int sig, siginfo_t *info, void *context) {
  (void)sig, (void)info;
  mcontext_t *m = &((ucontext_t *)context)->uc_mcontext;
  CHECK(m->regs[8] == 216 && m->regs[1] == 0 && m->regs[3] == (MREMAP_MAYMOVE | MREMAP_FIXED));
  uintptr_t from = m->regs[0];
  m->regs[0] = (uint64_t)-EFAULT;
  for (int i = 0; i < pool_count; i++) {
    uintptr_t offset = from - (uintptr_t)pools[i].device;
    if (offset >= pools[i].frames * page_size) continue;
    void *at = mmap((void *)(uintptr_t)m->regs[4], m->regs[2], PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                    pools[i].fd, (off_t)offset);
    m->regs[0] = at == MAP_FAILED ? (uint64_t)-errno : (uint64_t)at;
  }
  m->pc += 4;
}
static void replace_mremap(void) {
  Dl_info where;
  CHECK(dladdr((void *)(uintptr_t)moat_init, &where));
  uint32_t *code = where.dli_fbase, calls = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  unsigned long start, end, size = 0;
  for (char line[512]; fgets(line, sizeof line, maps);)
    if (sscanf(line, "%lx-%lx r-xp", &start, &end) == 2 && start == (uintptr_t)code) size = end - start;
  fclose(maps);
  CHECK(size > 0);
  CHECK(mprotect(code, size, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
  for (uint32_t *at = code; at < code + size / 4; at++) {
    if (*at != 0xd2801b08 /* mov x8, #216 */) continue;
    uint32_t *call = at;
    while (*call != 0xd4000001 /* svc #0 */ && call < at + 16) call++;
    if (*call != 0xd4000001) continue;
    *call = 0xd4200000;  // brk #0
    __builtin___clear_cache((char *)call, (char *)(call + 1));
    calls++;
  }
  CHECK(calls > 0);
  CHECK(mprotect(code, size, PROT_READ | PROT_EXEC) == 0);
  struct sigaction action = { .sa_sigaction = on_breakpoint, .sa_flags = SA_SIGINFO | SA_ONSTACK };
  CHECK(sigaction(SIGTRAP, &action, NULL) == 0);
}
#else
static void replace_mremap(void) { fail(__LINE__, "mremap with an old size of 0"); }
#endif

static void probe(void) {
  char *page = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  char *twin = mremap(page, 0, page_size, MREMAP_MAYMOVE);
  stand_in = twin == MAP_FAILED;
  if (stand_in) replace_mremap();
}

static int sanitized;  // its code is not as small as it is by itself

// A signal stack no larger than the smallest that runtimes use, with nothing below it.
static void use_small_stack(void) {
  size_t size = getauxval(51 /* AT_MINSIGSTKSZ */), room = 64 << 10;
  if (size < 8192) size = 8192;
  if (stand_in) size += 16 << 10;  // a signal within a signal
  if (sanitized) size += 256 << 10;
  size = (size + page_size - 1) & ~(page_size - 1);
  char *stack = mmap(NULL, room + size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(stack != MAP_FAILED && mprotect(stack + room, size, PROT_READ | PROT_WRITE) == 0);
  stack_t s = { .ss_sp = stack + room, .ss_size = size };
  CHECK(sigaltstack(&s, NULL) == 0);
}

#endif
