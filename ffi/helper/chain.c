// Sharing a signal with whoever had it before us: the runtime's crash handler, WebAssembly's traps, and whatever
// else. Everything that is not ours goes there, exactly as the kernel would have sent it.
#include "memory.h"

struct kaction { void (*handler)(int, void *, void *); u64 flags; void (*restorer)(void); u64 mask; };
#define SA_SIGINFO 4ul
#define SA_RESETHAND 0x80000000ul
#define SA_NODEFER 0x40000000ul

// One signal. `chaining`: threads that are inside the previous action right now. If that action was installed on
// top of ours and chains back to us, the fault goes to the action that was there before either.
struct chained {
  int sig, have_self, have_first;
  struct kaction previous, first_previous, self;
  s32 chaining[16];
};

static void get_action(const struct chained *s, struct kaction *a) { sys4(NR_rt_sigaction, s->sig, 0, a, 8); }
static void set_action(const struct chained *s, const struct kaction *a) { sys4(NR_rt_sigaction, s->sig, a, 0, 8); }

// ---- what the machine says about a fault

static inline u64 fault_address(void *info) { return *(u64 *)((u8 *)info + 16); }
static inline s32 fault_code(void *info) { return *(s32 *)((u8 *)info + 8); }
static inline u64 fault_pc(void *context) {
#if defined(__x86_64__)
  return *(u64 *)((u8 *)context + 40 + 16 * 8);  // gregs[REG_RIP]
#else
  return *(u64 *)((u8 *)context + 440);
#endif
}

static int fault_is_write(void *context) {
#if defined(__x86_64__)
  return (int)(*(u64 *)((u8 *)context + 40 + 19 * 8) >> 1 & 1);  // gregs[REG_ERR], bit 1
#else
  // Records of {magic, size} follow the registers; ESR has the "write, not read" bit 6.
  u8 *r = (u8 *)context + 464;
  for (int i = 0; i < 8; i++) {
    u32 magic = *(u32 *)r, size = *(u32 *)(r + 4);
    if (magic == 0x45535201) return (int)(*(u64 *)(r + 8) >> 6 & 1);
    if (!magic || !size) break;
    r += size;
  }
  return 0;
#endif
}

// ---- faults that are not ours

// 1 if the process is to end.
static int call_action(struct chained *s, struct kaction a, void *info, void *context) {
  static const struct kaction dfl;
  u64 old_mask;
  int sent = fault_code(info) <= 0;
  if ((u64)a.handler <= 1) {
    if ((u64)a.handler == 1 && sent) return 0;  // SIG_IGN: a sent signal is ignored, a real fault is not
    set_action(s, &dfl);  // returning re-executes the instruction, which now ends the process at the right address
    if (sent) sys3(NR_tgkill, sys0(NR_getpid), thread_id(), s->sig);
    return 1;
  }
  sys4(NR_rt_sigprocmask, 0 /* SIG_BLOCK */, &a.mask, &old_mask, 8);
  if (a.flags & SA_NODEFER) {
    u64 it = 1ul << (s->sig - 1);
    sys4(NR_rt_sigprocmask, 1 /* SIG_UNBLOCK */, &it, 0, 8);
  }
  if (a.flags & SA_RESETHAND) {  // it is theirs that is reset, not ours
    if (s->previous.handler == a.handler) s->previous = dfl;
    if (s->first_previous.handler == a.handler) s->first_previous = dfl;
  }
  if (a.flags & SA_SIGINFO)
    a.handler(s->sig, info, context);
  else
    ((void (*)(int))(void *)a.handler)(s->sig);
  sys4(NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &old_mask, 0, 8);
  return 0;
}

static void chain(struct chained *s, void *info, void *context) {
  s32 tid = thread_id(), none = 0;
  int slot = -1, again = 0;
  // A previous action that left by a jump has left our note behind; the next that returns takes it away.
  for (int i = 0; i < 16; i++)
    if (load_rlx(&s->chaining[i]) == tid) again = 1, slot = i;
  for (int i = 0; i < 16 && slot < 0; i++, none = 0)
    if (__atomic_compare_exchange_n(&s->chaining[i], &none, tid, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) slot = i;
  int fatal = call_action(s, again ? s->first_previous : s->previous, info, context);
  if (slot >= 0) __atomic_compare_exchange_n(&s->chaining[slot], &tid, 0, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  // A *sent* signal comes back here. Rust's handler, on its way, resets the action to the default, which would
  // leave every guarded page deadly: keep what it left as the previous action and stay in front.
  if (!fatal && fault_code(info) <= 0 && s->have_self) {
    struct kaction now;
    get_action(s, &now);
    if (now.handler != s->self.handler) {
      s->previous = now;
      set_action(s, &s->self);
    }
  }
}

// ---- installation: JavaScript calls before(), sigaction(2), after()

typedef void handler(int, void *, void *);
static s32 handler_before(struct chained *s, handler *ours) {
  struct kaction now;
  get_action(s, &now);
  if (now.handler == ours) return 1;  // already ours
  s->previous = now;
  if (!s->have_first) {
    s->first_previous = now;
    s->have_first = 1;
  }
  return 0;
}
static s32 handler_after(struct chained *s, handler *ours) {
  struct kaction now;
  get_action(s, &now);
  if (now.handler != ours) return -E_INVAL;
  s->self = now;
  s->have_self = 1;
  return 0;
}
// 1 while faults still come to us. Somebody else's action here means every guarded page would loop or kill.
static s32 handler_ours(const struct chained *s, handler *ours) {
  struct kaction now;
  get_action(s, &now);
  return now.handler == ours;
}
