// The helper of Moat: what cannot be TypeScript. One translation unit, freestanding, no libc.
//   memory.c  pools, frames, reference counts, guards
//   fault.c   the SIGSEGV handler
//   shm.c     the shared-memory transport (a handler that waits must be able to move it on)
//   verbs.c   thunks for the inline verbs
//   bell.c    the thread that wakes the event loop
// Exported functions return -errno. Arguments are i32 (handles, pages, counts) or f64 (addresses and byte
// counts, exact below 2^53), because those are what a foreign call costs least with.
#include "memory.c"
#include "fault.c"
#include "shm.c"
#include "verbs.c"
#include "bell.c"
