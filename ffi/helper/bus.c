// SIGBUS: somebody has cut off a file that is mapped, or its disk is full. The access gets a page of zeros instead,
// and every operation on the mapping ends with an error from then on. This may interrupt code of ours that holds
// the pool's lock (it copies from and to the file), so no lock is taken here.
#include "memory.h"

static struct chained bus = { .sig = SIGBUS };

static int map_fault(struct pool *p, u64 address) {
  if (!p->file_pages) return 0;
  u64 file = (u64)p->file_pages << G.page_shift;
  if (address - p->win >= file && address - p->dev >= file) return 0;
  u64 page = address & ~(u64)(G.page_size - 1);
  s64 got = sys6(NR_mmap, (s64)page, G.page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (got != (s64)page) return 0;
  store_rel(&p->broken, 1);
  return 1;
}

EXPORT void moat_on_bus(int sig, void *info, void *context) {
  (void)sig;
  u64 a = fault_address(info);
  if (fault_code(info) == 2 /* BUS_ADRERR */)
    for (u32 i = 0, n = load_acq(&G.pool_high); i < n; i++)
      if (load_acq(&G.pool[i].live) && map_fault(&G.pool[i], a)) return;
  chain(&bus, info, context);
}

// For threads of our own: they copy from and to mapped files as any handler does, and a fault whose signal is blocked
// ends the process.
static void block_signals(void) {
  u64 all = ~(1ul << (SIGBUS - 1));
  sys4(NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &all, 0, 8);
}

EXPORT s32 moat_bus_before(void) { return handler_before(&bus, moat_on_bus); }
EXPORT s32 moat_bus_after(void) { return handler_after(&bus, moat_on_bus); }
EXPORT s32 moat_bus_ours(void) { return handler_ours(&bus, moat_on_bus); }
EXPORT f64 moat_bus_address(void) { return (f64)(u64)moat_on_bus; }
