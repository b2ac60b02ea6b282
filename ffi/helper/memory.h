// Pools, frames, windows and operations: the tables the fault handler reads.
//
// One memfd per pool, mapped twice. The device view is linear, always read-write, never protected and
// never remapped; devices and this helper use nothing else. The window is what JavaScript sees; only it
// is ever protected or remapped. A frame is one page of the memfd; `frame[]` says which frame is behind
// each page of the window.
//
// Who may touch what: every field of a pool is read and written under `pool.lock`, except `live`, `win`
// and `win_bytes`, which the handler reads without it to find out whose address it has.
#ifndef MOAT_MEMORY_H
#define MOAT_MEMORY_H
#include "sys.h"

#define MAX_POOLS 256
#define MAX_OPS (1u << 18)
#define NONE 0xffffffffu
#define HUGE 512u  // 4 KiB pages that one entry of the next level of the page table can map

enum guard { GUARD_NONE, GUARD_WAIT, GUARD_COW, GUARD_MOVE, GUARD_COPY };
enum prot { RW, RO, CLOSED };  // what the window page allows the program
enum outcome { DID_RESTORE = 1, DID_PRIVATE, DID_WAIT, DID_TIMEOUT, DID_DEADLOCK, DID_DEGRADE };
enum op_kind { OP_OUT = 1, OP_IN, OP_TAKE, OP_SNAP };
enum op_state { OP_FREE, OP_HELD, OP_QUEUED, OP_POSTED, OP_DONE };
enum op_flag { OP_STAGED = 1, OP_VIOLATED = 2, OP_PARKED = 4, OP_PULLED = 8, OP_BROKEN = 16, OP_AT_DEVICE = 32, OP_AHEAD = 64, OP_LENT = 128 };

// The order is mirrored in lib/memory/stats.ts.
enum stat {
  S_FAULTS, S_READ_FAULTS, S_WRITE_FAULTS, S_RESTORES, S_PRIVATE_PAGES, S_WAITS, S_WAIT_NS, S_TIMEOUTS, S_DEADLOCKS,
  S_DEGRADED, S_SPURIOUS, S_MENDED, S_ARMS, S_ARM_PAGES, S_FOREIGN_PRIVATE, S_HUGE, S_PATCHED,
  S_RING_SENDS, S_ZERO_COPIED, S_RING_COPIED, S_RING_RECEIVES, S_COUNT,
  S_HIST = 24, HIST_BUCKETS = 24  // waits by log2 of microseconds
};
#define STATS (S_HIST + HIST_BUCKETS)

struct run { u32 frame, count; };
#define MAX_RUNS (1u << 20)  // of a message. A peer can let its list go in a circle, and it is walked under a lock

// A message as a list of runs of frames. It is also the descriptor on the wire (64 bytes).
enum desc_kind { D_EAGER = 1, D_PAGES, D_TABLE, D_LANDED };  // D_LANDED: of a received message, in the pages of operation seq
struct desc {
  u32 id;      // the sender's operation; the receiver echoes it to release the message
  u32 kind;
  u64 len;     // bytes
  u32 off;     // D_EAGER: offset in the eager ring. Otherwise: first byte in the first frame
  u32 nruns;
  struct run run[4];
  u32 table;   // D_TABLE: first frame of the run list, which fills frames and links to the next by its last entry
  u32 head;    // shm: where the message's header is in the eager ring, and its length above that; 0: it has none
};

struct op {
  u32 state;
  u8 kind, guard;
  u16 flags;
  s32 pool, conn;
  u32 page, pages;  // the window pages the operation covers; page is NONE when it has none (eager copies)
  u32 off;          // first byte in the first page
  s32 status;       // 0 or -errno once done
  u64 len, got;     // bytes asked for, bytes received
  struct desc d;
  u64 src;          // OP_STAGED, OP_LENT: address of the bytes, kept as they are by JavaScript until the operation is done
  u32 next_free;
  u32 last_table;   // last frame of the run list, for appending
  u32 seq;          // receives: the peer's descriptor number, or what D_LANDED says
  u32 reads;        // receives over verbs: reads at the device; sends over TCP: requests at the ring
  u32 head_len;     // bytes of the message's header, and 1 + the frame they are in
  u32 head_frame;
  union {
    u64 at;         // files: where in the file
    u64 head_src;   // of a send, without a frame: their address, kept alive by JavaScript until it is done
  };
  u64 direct;       // files: bytes that went past the page cache
};
_Static_assert(sizeof(struct desc) == 64, "desc is the wire format");
_Static_assert(sizeof(struct op) == 160, "op is mirrored in ffi/layout.ts");

struct fault {  // what onFault is told; mirrored in lib/memory/faults.ts
  u32 start, page, offset;
  s32 op;
  u8 access, outcome;
  u16 pages;
  u32 thread;
  u64 ns;
};
#define FAULT_RING 1024

#define HEADER_MAX 1024u  // bytes of a message's header; mirrored in lib/channel.ts

struct queue { s32 head, tail; };  // of operations, linked by op.next_free

// Views of frames for JavaScript to read (arena.c).
struct arena {
  u64 view;
  u32 frames, aliases;  // pages: of all frames at their places, and behind them for scattered ones
  s32 fd;
  u8 *flags;            // [frames + aliases]
  u32 *alias;           // [aliases] frame behind the page
  u32 hint, chunk;      // next page a private copy is expected for, and the size of the last step
  u64 writes;           // times the program wrote to a page of it
};
enum { HELD = 1, PRIVATE = 2, FIRST = 4 };  // of a page: read by JavaScript; written; a private mapping begins here

struct pool {
  u32 live, lock;
  u32 guests;  // handlers that are at work in it
  u32 late;    // faults that came too late for it
  u64 win, win_bytes, dev;
  u32 pages, frames;
  u32 *frame;    // [pages] frame behind the page
  u8 *state;     // [pages] enum prot
  u8 *huge;      // [pages / 512 + 1] 1 if one page-table entry maps these 512 pages
  u32 *block;    // [pages / 512 + 1] the 512 frames these pages were made a huge page of, plus 1; or 0
  u8 *home;      // [frames / 512 + 1] 1 if these 512 frames are kept together for such pages
  u32 *start;    // [pages] first page of the buffer it belongs to, or NONE
  u32 *hint;     // [pages] at a buffer's first page: the page its next fault is expected at
  u32 *chunk;    // [pages] at a buffer's first page: pages the last fault was worth
  u32 *from;     // [pages] at a buffer's first page: where the last walk of faults through it began,
  u32 *walk;     // [pages] and how many pages it went through
  u32 *haste;    // [pages] at a buffer's first page: looks for a completion in vain, one after the other
  u32 *cost;     // [pages] at a buffer's first page: ns spent on guards since JavaScript last asked
  u32 *out;      // [frames] operations that send it
  u32 *hold;     // [frames] of those, how many make a writer wait
  u32 *in;       // [frames] operations that receive into it
  u32 *owner;    // [frames] window page it is behind, or NONE
  s32 *last;     // [frames] the latest operation on it, for reports
  u64 *free;     // bitmap, 1 = free
  u32 nfree, cursor;
  u32 shared, shared_at;  // 1 + the frame that small copies are put into, and where the next goes; or 0
  u32 nkept;     // frames nobody uses that are kept for the huge page they belong to
  u64 timeout_ns;
  s32 thread;    // that made it, and whose JavaScript has its snapshots
  s32 starved;   // 1 + the bell of a connection that found no frame: to be rung when one is free
  u32 notify;    // ring the bell for every fault (an onFault hook is set)
  s32 bell;
  struct arena views;  // of snapshots; made with the first
  u64 *stat;
  struct fault *faults;
  u64 nfaults;
  // A mapped file (mapped.c): the first frames are the file's own pages, each at home behind the window page of its
  // number, and are never free. The others are for private pages.
  u32 file_pages, read_only;
  u32 due, due_end;   // pages that may be away from home and can perhaps go back
  u32 broken;         // the file has been cut off: what was read behind its end were zeros
  u32 scribbled;      // it was written to though it is read-only
};

static struct {
  u32 page_size, page_shift;
  struct pool pool[MAX_POOLS];
  u32 pool_high;     // no pool at or above
  struct op *op;
  u32 op_lock, op_free, op_high, ops_live;
  s64 maps_used, maps_budget;
  u64 spin_page_ns;  // how long a write may wait for a completion instead of copying one page
} G;

#endif
