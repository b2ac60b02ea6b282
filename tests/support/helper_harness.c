// Runs the native helper without JavaScript: what it does on a processor is checked on that processor, or
// in an emulation of it.
//
//     helper_harness HELPER.so CASE [PAGE SIZE]
//
// A page size that is a multiple of the machine's shows that the helper does not count on 4 KiB. Prints "ok"
// and exits with 0, or says what was expected and exits with 1.
#include "helper_harness.h"

// The frames of an operation, as a device would read them.
static uint32_t frames_of(struct pool *p, int op, uint32_t *frames, uint32_t *runs) {
  struct desc *d = &op_at(op)->d;
  uint32_t n = 0, slot = 0, last = (uint32_t)(page_size / 8 - 1);
  const struct run *list = d->kind == 3 ? (struct run *)(p->device + d->table * page_size) : d->run;
  CHECK(d->kind == 2 ? d->nruns <= 4 : d->kind == 3);
  for (uint32_t i = 0; i < d->nruns; i++) {
    if (d->kind == 3 && slot == last) {
      list = (struct run *)(p->device + list[last].frame * page_size);
      slot = 0;
    }
    struct run r = list[slot++];
    CHECK(r.count > 0 && r.frame + r.count <= p->frames);
    for (uint32_t k = 0; k < r.count; k++) frames[n++] = r.frame + k;
  }
  *runs = d->nruns;
  return n;
}

// ---- guards

static void case_cow(void) {
  struct pool *p = new_pool(16, 16, 1000);
  int op = out(p, 2, 8, COW);
  p->window[3 * page_size + 5] = 99;
  EQUAL(p->window[3 * page_size + 5], 99);
  EQUAL(p->window[3 * page_size + 6], 4);
  for (uint32_t i = 0; i < page_size; i++) EQUAL(p->device[3 * page_size + i], 4);
  EQUAL(stat(p, PRIVATE), 1);
  EQUAL(free_frames(p), 15);
  p->window[3 * page_size + 6] = 98;  // the page is the program's own now
  EQUAL(stat(p, PRIVATE), 1);
  done(op);
  EQUAL(free_frames(p), 16);
}

static void case_restore(void) {
  struct pool *p = new_pool(16, 16, 1000);
  done(out(p, 0, 16, COW));
  p->window[5 * page_size] = 77;
  EQUAL(p->device[5 * page_size], 77);
  EQUAL(stat(p, RESTORES), 1);
  EQUAL(stat(p, PRIVATE), 0);
  EQUAL(free_frames(p), 16);
}

struct completer { struct pool *pool; int op; uint32_t frame; volatile int came; };
static void *complete(void *arg) {
  struct completer *c = arg;
  usleep(50000);
  if (op_at(c->op)->kind == 2 /* a receive */)
    fill(c->pool->device + c->frame * page_size, 200, page_size);
  else
    EQUAL(c->pool->device[c->frame * page_size], c->frame + 1);
  c->came = 1;
  EQUAL(moat_op_done(c->op, 0), 0);
  return NULL;
}
static void case_wait(void) {
  struct pool *p = new_pool(16, 16, 60000);
  pthread_t thread;
  struct completer c = { p, out(p, 0, 4, WAIT), 1, 0 };
  pthread_create(&thread, NULL, complete, &c);
  p->window[page_size] = 88;  // held here until the thread has completed it
  EQUAL(c.came, 1);
  EQUAL(p->device[page_size], 88);
  EQUAL(stat(p, WAITS), 1);
  EQUAL(stat(p, PRIVATE), 0);
  pthread_join(thread, NULL);
  EQUAL(moat_op_free(c.op), 0);
}

static void case_receive(void) {
  struct pool *p = new_pool(16, 16, 60000);
  for (int write = 0; write < 2; write++) {
    pthread_t thread;
    int op = moat_in(p->index, 4, 2, 0, (double)(2 * page_size), WAIT);
    CHECK(op >= 0);
    EQUAL(moat_out(p->index, 4, 1, 0, (double)page_size, COW), -EBUSY);
    struct completer c = { p, op, 5, 0 };
    pthread_create(&thread, NULL, complete, &c);
    if (write)
      p->window[5 * page_size + 9] = 7;
    else
      EQUAL(p->window[5 * page_size + 9], 200);
    EQUAL(c.came, 1);
    EQUAL(p->window[5 * page_size + 8], 200);
    EQUAL(p->window[5 * page_size + 9], write ? 7 : 200);
    EQUAL(stat(p, WAITS), write + 1);
    pthread_join(thread, NULL);
    EQUAL(moat_op_free(op), 0);
  }
}

static void case_receive_into_sent(void) {
  struct pool *p = new_pool(16, 16, 1000);
  int op = out(p, 0, 4, NO_GUARD), in = moat_in(p->index, 1, 2, 0, (double)(2 * page_size), WAIT);
  CHECK(in >= 0);
  EQUAL(free_frames(p), 14);  // the program was moved to other frames; the device still sends the old
  done(in);
  fill(p->window + page_size, 0, 2 * page_size);
  EQUAL(p->device[page_size], 2);
  EQUAL(p->device[2 * page_size], 3);
  done(op);
  EQUAL(free_frames(p), 16);
}

static void case_timeout(void) {
  struct pool *p = new_pool(16, 16, 20);
  int op = out(p, 0, 1, WAIT);
  p->window[0] = 99;  // after the time a private page
  EQUAL(p->device[0], 1);
  EQUAL(stat(p, TIMEOUTS), 1);
  EQUAL(moat_op_done(op, 0), 0);
  EQUAL(op_at(op)->status, 0);
  int in = moat_in(p->index, 4, 1, 0, (double)page_size, WAIT);
  EQUAL(p->window[4 * page_size], 5);  // after the time the page opens, and the operation knows
  EQUAL(stat(p, TIMEOUTS), 2);
  EQUAL(moat_op_done(in, 0), 0);
  EQUAL(op_at(in)->status, -ETIMEDOUT);
  struct pool *full = new_pool(4, 0, 20);
  int last = out(full, 0, 1, COW);
  full->window[0] = 99;  // neither a frame nor a completion: the page opens, and the operation knows
  EQUAL(stat(full, DEGRADED), 2);
  EQUAL(moat_op_done(last, 0), 0);
  EQUAL(op_at(last)->status, -ETIMEDOUT);
}

// A wait that was followed by the want of a frame is not the end of the time.
static void case_wait_then_no_frame(void) {
  struct pool *p = new_pool(4, 0, 60000);
  pthread_t first, second;
  struct completer wait = { p, out(p, 0, 1, WAIT), 0, 0 }, cow = { p, out(p, 0, 1, COW), 0, 0 };
  pthread_create(&first, NULL, complete, &wait);
  usleep(50000);
  pthread_create(&second, NULL, complete, &cow);
  p->window[0] = 99;
  EQUAL(wait.came, 1);
  EQUAL(cow.came, 1);
  pthread_join(first, NULL);
  pthread_join(second, NULL);
  EQUAL(op_at(wait.op)->status, 0);
  EQUAL(op_at(cow.op)->status, 0);
}

// Every second page moved: as many runs as pages.
static void scatter(struct pool *p, uint32_t pages) {
  static int ops[4096];
  for (uint32_t i = 1; i < pages; i += 2) ops[i] = out(p, i, 1, COW);
  for (uint32_t i = 1; i < pages; i += 2) p->window[i * page_size] = (uint8_t)(i % 251 + 1);
  for (uint32_t i = 1; i < pages; i += 2) done(ops[i]);
}
static void long_list(uint32_t pages, uint32_t kind) {
  struct pool *p = new_pool(pages, pages + 8, 1000);
  scatter(p, pages);
  long before = free_frames(p);
  static uint32_t frames[4096];
  uint32_t runs;
  int op = out(p, 0, pages, COW);
  EQUAL(op_at(op)->d.kind, kind);
  EQUAL(frames_of(p, op, frames, &runs), pages);
  EQUAL(runs, pages);
  for (uint32_t i = 0; i < pages; i++) p->window[i * page_size + 1] = 0;  // all move once more
  for (uint32_t i = 0; i < pages; i++) {
    EQUAL(p->device[frames[i] * page_size], i % 251 + 1);
    EQUAL(p->device[frames[i] * page_size + 1], i % 251 + 1);
    EQUAL(p->window[i * page_size + 1], 0);
  }
  done(op);
  EQUAL(free_frames(p), before);
  EQUAL(before, pages + 8);
}
static void case_runs_4(void) { long_list(4, 2); }
static void case_runs_5(void) { long_list(5, 3); }
static void case_runs_511(void) { long_list((uint32_t)(page_size / 8 - 1), 3); }
static void case_runs_512(void) { long_list((uint32_t)(page_size / 8), 3); }
static void case_runs_1200(void) { long_list(1200, 3); }

static void case_no_frame_for_the_list(void) {
  struct pool *p = new_pool(16, 8, 1000);
  scatter(p, 16);
  int rest[8], n = 0;
  while (free_frames(p) > 0) {
    rest[n] = out(p, (uint32_t)(n * 2), 1, COW);
    p->window[n++ * 2 * page_size] = 1;
  }
  EQUAL(moat_out(p->index, 0, 16, 0, (double)(16 * page_size), COW), -ENOBUFS);
  while (n) done(rest[--n]);
  EQUAL(free_frames(p), 8);
  done(out(p, 0, 16, COW));
  EQUAL(free_frames(p), 8);
}

static void case_no_mapping(void) {
  struct pool *p = new_pool(16, 16, 60000);
  int ends = out(p, 0, 4, COW), middle = out(p, 4, 1, COW), more = out(p, 5, 4, COW);
  moat_set_maps_budget(moat_query(Q_MAPS_USED, 0));
  EQUAL(moat_out(p->index, 12, 1, 0, (double)page_size, COW), -ENOMEM);
  done(middle);
  p->window[4 * page_size] = 99;  // opens between pages that stay closed, though the budget is spent
  EQUAL(p->device[4 * page_size], 99);
  pthread_t thread;
  struct completer c = { p, more, 6, 0 };
  pthread_create(&thread, NULL, complete, &c);
  p->window[6 * page_size] = 98;  // waits instead of being moved
  EQUAL(c.came, 1);
  EQUAL(p->device[6 * page_size], 98);
  EQUAL(stat(p, PRIVATE), 0);
  pthread_join(thread, NULL);
  EQUAL(moat_op_free(more), 0);
  done(ends);
}

struct writer { struct pool *pool; uint32_t from; };
static pthread_barrier_t barrier;
static void *write_half(void *arg) {
  struct writer *w = arg;
  pthread_barrier_wait(&barrier);
  for (uint32_t page = 0; page < w->pool->pages; page++)
    for (uint32_t i = w->from; i < page_size; i += 2) w->pool->window[page * page_size + i] = (uint8_t)(page + i);
  return NULL;
}
static void case_two_writers(void) {
  struct pool *p = new_pool(64, 64, 1000);
  for (int round = 0; round < 10; round++) {
    pthread_t threads[2];
    struct writer writers[2] = { { p, 0 }, { p, 1 } };
    pthread_barrier_init(&barrier, NULL, 2);
    int op = out(p, 0, 64, COW);
    for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, write_half, &writers[i]);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < 64 * page_size; i++)
      if (p->window[i] != (uint8_t)(i / page_size + i % page_size)) EQUAL(i, -1);
    done(op);
    EQUAL(free_frames(p), 64);
    for (uint32_t i = 0; i < 64; i++) p->window[i * page_size] = 0;
  }
}

// ---- faults that are not the helper's

static sigjmp_buf jump;
static volatile int jumps;
static void *volatile jumped_for;
static void on_fault(int sig, siginfo_t *info, void *context) {
  (void)context;
  EQUAL(sig, SIGSEGV);
  jumped_for = info->si_addr;
  jumps++;
  siglongjmp(jump, 1);
}
static void on_fault_plain(int sig) {
  EQUAL(sig, SIGSEGV);
  jumps++;
  siglongjmp(jump, 1);
}
static void handle(void (*siginfo)(int, siginfo_t *, void *), void (*plain)(int), int flags) {
  struct sigaction action = { .sa_flags = flags | (siginfo ? SA_SIGINFO : 0) };
  if (siginfo)
    action.sa_sigaction = siginfo;
  else
    action.sa_handler = plain;
  CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
}
static void guard_holds(struct pool *p) {
  int op = out(p, 0, 1, COW);
  long before = stat(p, PRIVATE);
  p->window[0]++;
  EQUAL(stat(p, PRIVATE), before + 1);
  done(op);
}
static volatile uint32_t *volatile nothing = (uint32_t *)8;
static void stray(void) {
  int before = jumps;
  if (!sigsetjmp(jump, 1)) *nothing = 1;
  EQUAL(jumps, before + 1);
}

static void case_null(void) {
  handle(on_fault, NULL, 0);
  install();
  struct pool *p = new_pool(4, 4, 1000);
  for (int i = 0; i < 40; i++) {
    stray();
    CHECK(jumped_for == nothing);
    guard_holds(p);
  }
}
static void case_null_plain(void) {
  handle(NULL, on_fault_plain, 0);
  install();
  struct pool *p = new_pool(4, 4, 1000);
  stray();
  guard_holds(p);
}
// Somebody puts an action in front of ours that passes on to ours what it does not know; we go in front of that.
static struct sigaction below;
static int passed;
static void pass_on(int sig, siginfo_t *info, void *context) {
  passed++;
  below.sa_sigaction(sig, info, context);
}
static void case_in_front(void) {
  handle(on_fault, NULL, 0);
  install();
  CHECK(sigaction(SIGSEGV, NULL, &below) == 0);
  handle(pass_on, NULL, 0);
  EQUAL(moat_handler_ours(), 0);
  install();
  EQUAL(moat_handler_ours(), 1);
  struct pool *p = new_pool(4, 4, 1000);
  for (int i = 0; i < 20; i++) {
    stray();
    guard_holds(p);
  }
  CHECK(passed >= 1);
}
static void case_jump_into_window(void) {
  handle(on_fault, NULL, 0);
  install();
  struct pool *p = new_pool(4, 4, 1000);
  for (int i = 0; i < 3; i++) {  // open, closed to writes, closed
    volatile int op = i == 1 ? out(p, 0, 1, COW) : i == 2 ? moat_in(p->index, 0, 1, 0, 1, WAIT) : -1;
    int before = jumps;
    if (!sigsetjmp(jump, 1)) ((void (*)(void))(uintptr_t)p->window)();
    EQUAL(jumps, before + 1);
    if (op >= 0) done(op);
    p->window[0] = 1;
  }
}
static void case_freed_pool(void) {
  handle(on_fault, NULL, 0);
  install();
  struct pool *p = new_pool(4, 4, 1000);
  int op = out(p, 0, 1, COW);
  done(op);
  EQUAL(moat_pool_remove(p->index), 0);
  nothing = (uint32_t *)p->window;  // still read-only, and nobody's
  stray();
}

// What Rust's standard library does.
static void reset_to_default(int sig, siginfo_t *info, void *context) {
  (void)sig, (void)info, (void)context;
  struct sigaction dfl = { .sa_handler = SIG_DFL };
  sigaction(SIGSEGV, &dfl, NULL);
}
static int status_of(void (*run)(void)) {
  int status = 0;
  pid_t pid = fork();
  if (pid == 0) {
    alarm(20);
    run();
    _exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}
static void send_signal(void) { raise(SIGSEGV); }
static void case_sent(void) {
  handle(reset_to_default, NULL, 0);
  install();
  struct pool *p = new_pool(4, 4, 1000);
  raise(SIGSEGV);
  EQUAL(moat_handler_ours(), 1);
  guard_holds(p);
  EQUAL(status_of(send_signal), -SIGSEGV);  // the second ends the process, as it does without the helper
}
static void case_sent_by_default(void) {
  install();
  EQUAL(status_of(send_signal), -SIGSEGV);
  EQUAL(status_of(stray), -SIGSEGV);
}
static void case_sent_to_ignore(void) {
  handle(NULL, SIG_IGN, 0);
  install();
  struct pool *p = new_pool(4, 4, 1000);
  raise(SIGSEGV);
  EQUAL(moat_handler_ours(), 1);
  guard_holds(p);
  EQUAL(status_of(stray), -SIGSEGV);
}
static volatile int once;
static void mend_once(int sig, siginfo_t *info, void *context) {
  (void)sig, (void)context;
  if (once++) _exit(3);
  CHECK(mprotect((void *)((uintptr_t)info->si_addr & ~(page_size - 1)), page_size, PROT_READ | PROT_WRITE) == 0);
}
static char *closed_page;
static void touch_twice(void) {
  closed_page[0] = 1;
  CHECK(mprotect(closed_page, page_size, PROT_NONE) == 0);
  closed_page[0] = 2;
}
static void case_reset_hand(void) {
  handle(mend_once, NULL, SA_RESETHAND);
  install();
  struct pool *p = new_pool(4, 4, 1000);
  closed_page = mmap(NULL, page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EQUAL(status_of(touch_twice), -SIGSEGV);  // called once; then the default
  closed_page[0] = 1;
  EQUAL(once, 1);
  guard_holds(p);  // it is the previous action that was reset
}

// ---- the shared-memory transport, both ends in this process

#define RING_SIZE (4096 + 65536 + 65536 + (256 << 10))
struct end {
  struct pool *pool;
  int fd, conn, ring_fd;
  uint8_t *ring, *view;
};
static void meet(struct end *a, struct end *b, int self) {
  int fds[2];
  CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fds) == 0);
  struct end *ends[2] = { a, b };
  for (int i = 0; i < 2; i++) {
    struct end *e = ends[i];
    e->pool = new_pool(1024, 1024, self ? 1000 : 60000);
    e->fd = fds[i];
    e->ring_fd = memfd_create("ring", 0);
    CHECK(ftruncate(e->ring_fd, RING_SIZE) == 0);
    e->ring = mmap(NULL, RING_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, e->ring_fd, 0);
    CHECK(e->ring != MAP_FAILED);
    *(uint32_t *)(e->ring + 256) = 1;  // open
  }
  for (int i = 0; i < 2; i++) {
    struct end *e = ends[i], *o = ends[!i];
    size_t bytes = o->pool->frames * page_size;
    uint8_t *theirs = mmap(NULL, RING_SIZE, PROT_READ, MAP_SHARED, o->ring_fd, 0);
    uint8_t *device = mmap(NULL, bytes, PROT_READ, MAP_SHARED, o->pool->fd, 0);
    e->view = mmap(NULL, bytes * 2, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(theirs != MAP_FAILED && device != MAP_FAILED && e->view != MAP_FAILED);
    CHECK(mmap(e->view, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, o->pool->fd, 0) == e->view);
    e->conn = moat_shm_add(e->pool->index, e->fd, o->pool->fd, (uintptr_t)e->ring, (uintptr_t)theirs,
                            (uintptr_t)device, (uintptr_t)e->view, o->pool->frames, o->pool->frames,
                            self ? getpid() : 0);
    CHECK(e->conn >= 0);
  }
}
static struct op *taken(struct end *e) { return (struct op *)(uintptr_t)moat_conn_report(e->conn); }
static void part(struct end *a, struct end *b) {
  struct end *ends[2] = { a, b };
  for (int i = 0; i < 2; i++) {
    EQUAL(moat_conn_busy(ends[i]->conn), 0);
    moat_conn_end(ends[i]->conn, 0);
    EQUAL(moat_conn_remove(ends[i]->conn), 0);
    close(ends[i]->fd);
    EQUAL(free_frames(ends[i]->pool), 1024);
  }
}

static void case_eager(void) {
  struct end a, b;
  meet(&a, &b, 1);
  char text[20000];
  for (int round = 0; round < 100; round++) {  // around the ring several times
    for (int i = 0; i < 10; i++) {
      memset(text, round + i, sizeof text);
      EQUAL(moat_conn_eager(a.conn, text, (uint32_t)(i * 1600)), 0);
    }
    for (int i = 0; i < 10; i++) {
      EQUAL(moat_conn_take(b.conn, 0), 1);
      EQUAL(taken(&b)->len, i * 1600);
      EQUAL(moat_msg_copy(b.conn, -1, text), 0);
      for (int k = 0; k < i * 1600; k++) EQUAL((uint8_t)text[k], round + i);
    }
    EQUAL(moat_conn_take(b.conn, 0), 0);
  }
  part(&a, &b);
}

static void case_in_place(void) {
  struct end a, b;
  meet(&a, &b, 1);
  long maps = (long)moat_query(Q_MAPS_USED, 0);
  moat_buf_open(a.pool->index, 0, 64);
  for (int round = 0; round < 5; round++) {
    int op = out(a.pool, 0, 64, COW);
    EQUAL(moat_conn_send(a.conn, op), 0);
    EQUAL(moat_conn_take(b.conn, 0), 1);
    struct desc d = taken(&b)->d;
    EQUAL(d.nruns, 1);
    volatile uint8_t *message = (uint8_t *)(uintptr_t)moat_msg_in_place(b.conn, -1);
    CHECK((uint8_t *)message == b.view + d.run[0].frame * page_size);
    EQUAL(moat_msg_in_place(b.conn, -1), 0);  // once at a time
    for (uint32_t i = 0; i < 64; i++) EQUAL(message[i * page_size], i % 251 + 1);
    for (uint32_t i = 0; i < 64; i++) message[i * page_size] = 255;  // private, step by step
    for (uint32_t i = 0; i < 64; i++) EQUAL(message[i * page_size + 1], i % 251 + 1);
    for (uint32_t i = 0; i < 64; i++) EQUAL(a.pool->device[(d.run[0].frame + i) * page_size], i % 251 + 1);
    EQUAL(stat(b.pool, FOREIGN_PRIVATE), 64 * (round + 1));
    EQUAL(moat_conn_next(a.conn), -1);  // not released yet
    EQUAL(moat_msg_release(b.conn, d.id, (int)d.run[0].frame, 64, 1), 0);
    for (uint32_t i = 0; i < 64; i++) EQUAL(message[i * page_size], i % 251 + 1);  // the peer's pages again
    EQUAL(moat_conn_next(a.conn), op);
    EQUAL(op_at(op)->status, 0);
    EQUAL(moat_op_free(op), 0);
  }
  for (uint32_t i = 0; i < 64; i++) a.pool->window[i * page_size] = (uint8_t)(i % 251 + 1);
  EQUAL(moat_query(Q_MAPS_USED, 0), maps);
  part(&a, &b);
}

static void case_alias(void) {
  struct end a, b;
  meet(&a, &b, 1);
  scatter(a.pool, 600);
  long maps = (long)moat_query(Q_MAPS_USED, 0);
  for (uint32_t n = 3; n <= 600; n += 199) {
    int op = moat_out(a.pool->index, 0, n, 3, (double)(n * page_size - 3), NO_GUARD);
    CHECK(op >= 0);
    EQUAL(moat_conn_send(a.conn, op), 0);
    EQUAL(moat_conn_take(b.conn, 0), 1);
    struct desc d = taken(&b)->d;
    EQUAL(d.nruns, n);
    EQUAL(d.kind, n > 4 ? 3 : 2);
    EQUAL(moat_msg_in_place(b.conn, -1), 0);
    uint8_t *copy = malloc(n * page_size);
    EQUAL(moat_msg_copy(b.conn, -1, copy), 0);
    volatile uint8_t *message = (uint8_t *)(uintptr_t)moat_msg_alias(b.conn, -1, 100);
    int page = (int)a.pool->frames + 100;
    CHECK((uint8_t *)message == b.view + (uint32_t)page * page_size + 3);
    CHECK(memcmp((void *)message, copy, n * page_size - 3) == 0);
    message -= 3;
    for (uint32_t i = 0; i < n; i++) EQUAL(message[i * page_size + 3], i % 251 + 1);
    for (uint32_t i = 0; i < n; i++) message[i * page_size + 3] = 0;
    for (uint32_t i = 0; i < n; i++) EQUAL(message[i * page_size + 4], i % 251 + 1);
    for (uint32_t i = 0; i < n; i++) EQUAL(a.pool->window[i * page_size + 3], i % 251 + 1);
    EQUAL(moat_msg_release(b.conn, d.id, page, n, n), 0);
    EQUAL(moat_conn_next(a.conn), op);
    EQUAL(moat_op_free(op), 0);
    EQUAL(moat_query(Q_MAPS_USED, 0), maps);
    free(copy);
  }
  part(&a, &b);
}

static void case_into_receive(void) {
  struct end a, b;
  meet(&a, &b, 1);
  scatter(a.pool, 600);
  scatter(b.pool, 601);
  int in = moat_in(b.pool->index, 0, 601, 7, (double)(600 * page_size), WAIT);
  EQUAL(moat_conn_recv(b.conn, in), 0);
  int op = out(a.pool, 0, 600, WAIT);
  EQUAL(moat_conn_send(a.conn, op), 0);
  // Only this thread can move either end: the handler does.
  for (uint32_t i = 0; i < 600; i++) EQUAL(b.pool->window[i * page_size + 7], i % 251 + 1);
  EQUAL(stat(b.pool, WAITS), 1);
  a.pool->window[0] = 9;
  EQUAL(stat(a.pool, PRIVATE), 300);  // those of scatter(): it was released
  EQUAL(moat_conn_next(b.conn), in);
  EQUAL(op_at(in)->got, 600 * page_size);
  EQUAL(moat_conn_next(a.conn), op);
  EQUAL(moat_op_free(in), 0);
  EQUAL(moat_op_free(op), 0);
  part(&a, &b);
}

static void case_deadlock(void) {
  struct end a, b;
  meet(&a, &b, 1);
  int in = moat_in(b.pool->index, 0, 1, 0, 1, WAIT);
  EQUAL(moat_conn_recv(b.conn, in), 0);
  EQUAL(b.pool->window[0], 1);  // nobody but this thread could send it: no time is spent
  EQUAL(moat_conn_next(b.conn), in);
  EQUAL(op_at(in)->status, -EBUSY);
  EQUAL(moat_op_free(in), 0);
  part(&a, &b);
}

struct receiver { struct end *end; int messages; };
static void *receive(void *arg) {
  struct receiver *r = arg;
  for (int i = 0; i < r->messages;) {
    int got = moat_conn_take(r->end->conn, 1e6);
    CHECK(got >= 0);
    if (!got) continue;
    struct op *o = taken(r->end);
    struct desc d = o->d;
    static uint8_t bytes[3 << 16];
    EQUAL(moat_msg_copy(r->end->conn, -1, bytes), 0);
    for (uint32_t k = 0; k < d.len; k++)
      if (bytes[k] != (uint8_t)i) EQUAL(bytes[k], i & 255);
    if (d.kind != 1) EQUAL(moat_msg_release(r->end->conn, d.id, -1, 0, 0), 0);
    i++;
  }
  return NULL;
}
static void case_two_threads(void) {
  struct end a, b;
  meet(&a, &b, 0);
  struct receiver r = { &b, 2000 };
  pthread_t thread;
  pthread_create(&thread, NULL, receive, &r);
  moat_buf_open(a.pool->index, 0, 3);
  static uint8_t small[100];
  for (int i = 0; i < r.messages;) {
    if (i % 3 == 0) {
      memset(small, i, sizeof small);
      int sent = moat_conn_eager(a.conn, small, sizeof small);
      CHECK(sent == 0 || sent == -EAGAIN);
      i += sent == 0;
    } else {
      fill(a.pool->window, i, 3 * page_size);  // in flight, most of the time
      int op = out(a.pool, 0, 3, i % 3 == 1 ? COW : WAIT);
      EQUAL(moat_conn_send(a.conn, op), 0);
      i++;
    }
    for (int ended; (ended = moat_conn_next(a.conn)) >= 0;) {
      EQUAL(op_at(ended)->status, 0);
      EQUAL(moat_op_free(ended), 0);
    }
  }
  pthread_join(thread, NULL);
  while (moat_conn_busy(a.conn)) {
    int ended = moat_conn_next(a.conn);
    if (ended >= 0) EQUAL(moat_op_free(ended), 0);
  }
  part(&a, &b);
}

#define CASE(name) { #name, case_##name, 1 }
#define OVER(name) { #name, case_##name, 0 }  // installs the handler itself, over an action of its own
static const struct { const char *name; void (*run)(void); int install; } cases[] = {
  CASE(cow), CASE(restore), CASE(wait), CASE(receive), CASE(receive_into_sent), CASE(timeout),
  CASE(wait_then_no_frame), CASE(runs_4), CASE(runs_5), CASE(runs_511), CASE(runs_512), CASE(runs_1200),
  CASE(no_frame_for_the_list), CASE(no_mapping), CASE(two_writers), OVER(null), OVER(null_plain), OVER(in_front),
  OVER(jump_into_window), OVER(freed_pool), OVER(sent), OVER(sent_by_default), OVER(sent_to_ignore),
  OVER(reset_hand), CASE(eager), CASE(in_place), CASE(alias), CASE(into_receive), CASE(deadlock),
  CASE(two_threads),
};

int main(int argc, char **argv) {
  CHECK(argc == 3 || argc == 4);
  alarm(60);
  page_size = (size_t)(argc == 4 ? atol(argv[3]) : sysconf(_SC_PAGESIZE));
  load(argv[1]);
  probe();
  use_small_stack();
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    if (strcmp(argv[2], cases[i].name) != 0) continue;
    if (cases[i].install) install();
    cases[i].run();
    printf("ok\n");
    return 0;
  }
  fail(__LINE__, "no such case");
}
