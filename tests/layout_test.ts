import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { errnoName } from "../ffi/errors.ts";
import { MAP_QUERY, QUERY, RDMA_QUERY, URING_QUERY } from "../ffi/helper.ts";
import {
  DESC,
  DESC_KIND,
  FAULT,
  MSGHDR,
  OP,
  OP_PARKED,
  RDMA,
  RING,
  SIGACTION,
  SOCKADDR_UN,
  STATFS,
  STATX,
  STATX_DIRECT,
  TCP,
  UCRED,
} from "../ffi/layout.ts";
import { C } from "../ffi/libc.ts";
import { GUARD_NUMBER } from "../lib/memory/guard.ts";

// What a compiler is asked for: names and C expressions.
type Questions = Record<string, string>;

// The compilers of both architectures, where both sets of headers can be had.
const COMPILERS: Record<string, string> = process.arch === "x64"
  ? { "x86-64": "gcc", "aarch64": "aarch64-linux-gnu-gcc" }
  : { "aarch64": "gcc" };

const HELPER_DIR = fileURLToPath(new URL("../ffi/helper", import.meta.url));
// The whole helper, because some of its numbers stand in its sources.
const HELPER = '#include "moat.c"';
// The C library's own struct statx lacks the latest fields.
const LINUX_STAT = "#include <linux/stat.h>";
const SYSTEM = `
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <linux/io_uring.h>
#include <linux/mman.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/file.h>
#include <sys/vfs.h>
#include <linux/magic.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>`;

// Asks a compiler for the values of constant expressions: it writes them into its assembly, so that those of
// another architecture are known without running anything.
function ask(compiler: string, headers: string, expressions: string[]): Record<string, number> {
  const lines = expressions.map((expression, i) =>
    `  __asm__ volatile("\\n->${i} %c0" : : "i"((long)(${expression})));`
  );
  const source = [headers, "void answers(void) {", ...lines, "}", ""].join("\n");
  const args = ["-S", "-O1", "-w", "-ffreestanding", `-I${HELPER_DIR}`, "-x", "c", "-o", "-", "-"];
  const { status, stdout, stderr, error } = spawnSync(compiler, args, {
    input: source,
    encoding: "utf8",
    maxBuffer: 64 << 20,
  });
  assert.equal(status, 0, `${compiler} cannot compile: ${error ?? stderr}`);
  const values = [...stdout.matchAll(/^->(\d+) (-?\d+)$/gm)].map(([, i, value]) =>
    [expressions[Number(i)], Number(value)] as const
  );
  assert.equal(values.length, expressions.length, "answers in the assembly");
  return Object.fromEntries(values);
}

// The size of a struct and the offsets of its members, where the table has them by another name.
function layout(struct: string, table: object, members: Record<string, string> = {}): Questions {
  const questions: Questions = {};
  for (const name of Object.keys(table)) {
    questions[name] = name === "size"
      ? `sizeof(struct ${struct})`
      : `__builtin_offsetof(struct ${struct}, ${members[name] ?? name})`;
  }
  return questions;
}

function prefixed(prefix: string, members: string[]): Record<string, string> {
  return Object.fromEntries(members.map((name) => [name, prefix + name]));
}

// Our tables, and what C is to be asked about them.
const TABLES: [string, string, object, Questions][] = [
  [
    "struct sigaction",
    SYSTEM,
    SIGACTION,
    layout("sigaction", SIGACTION, prefixed("sa_", ["handler", "mask", "flags"])),
  ],
  [
    "struct sockaddr_un",
    SYSTEM,
    SOCKADDR_UN,
    layout("sockaddr_un", SOCKADDR_UN, prefixed("sun_", ["family", "path"])),
  ],
  [
    "struct msghdr",
    SYSTEM,
    MSGHDR,
    layout("msghdr", MSGHDR, prefixed("msg_", Object.keys(MSGHDR))),
  ],
  ["struct ucred", SYSTEM, UCRED, layout("ucred", UCRED)],
  [
    "struct statx",
    LINUX_STAT,
    STATX,
    layout("statx", STATX, {
      mask: "stx_mask",
      mode: "stx_mode",
      bytes: "stx_size",
      memoryAlign: "stx_dio_mem_align",
      offsetAlign: "stx_dio_offset_align",
    }),
  ],
  ["flags of statx", LINUX_STAT, { STATX_DIRECT }, { STATX_DIRECT: "STATX_DIOALIGN" }],
  ["struct statfs", SYSTEM, STATFS, layout("statfs", STATFS, { type: "f_type" })],
  [
    "the constants of the C library",
    SYSTEM,
    C,
    Object.fromEntries(
      Object.keys(C).map((name) => [name, name.startsWith("SC_") ? `_${name}` : name]),
    ),
  ],
  ["what tcp:// is made of", HELPER, TCP, { eagerMax: "TCP_EAGER_MAX" }],
  ["struct op", HELPER, OP, layout("op", OP, { desc: "d", headLength: "head_len" })],
  ["struct desc", HELPER, DESC, layout("desc", DESC, { runs: "run" })],
  [
    "struct fault",
    HELPER,
    FAULT,
    { ...layout("fault", FAULT), entries: "FAULT_RING" },
  ],
  [
    "struct ring",
    HELPER,
    RING,
    { ...layout("ring", RING), open: "RING_OPEN", eagerMax: "EAGER_MAX" },
  ],
  [
    "kinds of descriptors",
    HELPER,
    DESC_KIND,
    { eager: "D_EAGER", pages: "D_PAGES", table: "D_TABLE", landed: "D_LANDED" },
  ],
  ["flags of operations", HELPER, { OP_PARKED }, { OP_PARKED: "OP_PARKED" }],
  [
    "numbers of guards",
    HELPER,
    GUARD_NUMBER,
    Object.fromEntries(
      Object.keys(GUARD_NUMBER).map((name) => [name, `GUARD_${name.toUpperCase()}`]),
    ),
  ],
  [
    "numbers of queries",
    HELPER,
    QUERY,
    {
      ops: "Q_OPS",
      stats: "Q_STATS",
      faults: "Q_FAULTS",
      faultCount: "Q_NFAULTS",
      freeFrames: "Q_FREE",
      mapsUsed: "Q_MAPS_USED",
      mapsBudget: "Q_MAPS_BUDGET",
      opsLive: "Q_OPS_LIVE",
      viewWrites: "Q_VIEW_WRITES",
    },
  ],
  [
    "numbers of queries about verbs",
    HELPER,
    RDMA_QUERY,
    {
      byeDone: "R_BYE_DONE",
      dead: "R_DEAD",
      stuck: "R_STUCK",
      events: "R_EVENTS",
      error: "R_ERROR",
      hasError: "R_HAS_ERROR",
    },
  ],
  [
    "numbers of queries about mapped files",
    HELPER,
    MAP_QUERY,
    { broken: "MAP_BROKEN", scribbled: "MAP_SCRIBBLED", away: "MAP_AWAY" },
  ],
  [
    "numbers of queries about rings",
    HELPER,
    URING_QUERY,
    { fd: "U_FD", registered: "U_REGISTERED", refused: "U_REFUSED", underWay: "U_UNDER_WAY" },
  ],
  [
    "numbers of the transport over verbs",
    HELPER,
    RDMA,
    {
      slotBytes: "SLOT_BYTES",
      headerBytes: "sizeof(struct header)",
      recvSlots: "RECV_SLOTS",
      sendSlots: "SEND_SLOTS",
      sendQueue: "SQ_DEPTH",
      rawReceives: "RAW_RECEIVES",
      maxSge: "MAX_SGE",
    },
  ],
];

// The helper has no system headers: it brings its own numbers.
const named = (pattern: RegExp, file = "sys.h"): string[] => {
  const text = readFileSync(`${HELPER_DIR}/${file}`, "utf8");
  return [...new Set([...text.matchAll(pattern)].map(([, name]) => name!))];
};
const CALLS = named(/\bNR_(\w+) = \d+/g);
const ERRNOS = named(/\bE_(\w+) = \d+/g);
const FLAGS = named(/^#define ((?:PROT|MAP|MREMAP|MADV|SIG)\w+) /gm);
const each = (names: string[], prefix = ""): Questions =>
  Object.fromEntries(names.map((name) => [name, prefix + name]));

// The structs of io_uring, field by field: ours and the kernel's names for them.
function fields(struct: string, names: string[]): Questions {
  const offsets = names.map((name) => [name, `__builtin_offsetof(struct ${struct}, ${name})`]);
  return { size: `sizeof(struct ${struct})`, ...Object.fromEntries(offsets) };
}
const SQE = ["opcode", "flags", "ioprio", "fd", "off", "addr", "len", "user_data", "buf_index"];
const PARAMS = ["sq_entries", "cq_entries", "flags", "features", "sq_off", "cq_off"].concat(
  ["head", "tail", "ring_mask", "flags", "array"].map((name) => `sq_off.${name}`),
  ["head", "tail", "ring_mask", "cqes"].map((name) => `cq_off.${name}`),
);
const OPCODES = named(/\b(IORING_\w+) = \d+/g, "uring.h");

// Pairs of the helper's own numbers with the system's.
const PAIRS: [string, Questions, Questions][] = [
  ["system call numbers", each(CALLS, "NR_"), each(CALLS, "SYS_")],
  ["errnos", each(ERRNOS, "E_"), each(ERRNOS, "E")],
  ["flags for memory", each(FLAGS), each(FLAGS)],
  ["numbers of io_uring", each(OPCODES), each(OPCODES)],
  ["requests of io_uring", fields("sqe", SQE), fields("io_uring_sqe", SQE)],
  [
    "settings of io_uring",
    fields("uring_params", PARAMS),
    fields("io_uring_params", PARAMS),
  ],
];

const CONTROL: Questions = {
  iovec: "sizeof(struct iovec)",
  length: "__builtin_offsetof(struct cmsghdr, cmsg_len)",
  level: "__builtin_offsetof(struct cmsghdr, cmsg_level)",
  type: "__builtin_offsetof(struct cmsghdr, cmsg_type)",
  data: "CMSG_LEN(0)",
  space: "CMSG_SPACE(8)",
};

const OUR_ERRNOS = Array.from({ length: 134 }, (_, i) => [errnoName(i), i] as const)
  .filter(([name]) => name.startsWith("E"));
const ERRNO_NAMES = each(OUR_ERRNOS.map(([name]) => name));

// Compiling the helper takes half a second, so each compiler is asked everything at once.
const EVERYTHING: [string, Questions][] = [
  ...TABLES.map(([, headers, , questions]): [string, Questions] => [headers, questions]),
  ...PAIRS.flatMap(([, ours, theirs]): [string, Questions][] => [[HELPER, ours], [SYSTEM, theirs]]),
  [SYSTEM, CONTROL],
  [SYSTEM, ERRNO_NAMES],
];
const asked = new Map<string, Record<string, number>>();

function answers(
  compiler: string,
  headers: string,
  questions: Questions,
): Record<string, number | undefined> {
  const key = `${compiler} ${headers}`;
  let known = asked.get(key);
  if (!known) {
    const all = EVERYTHING.filter(([each]) => each === headers)
      .flatMap(([, questions]) => Object.values(questions));
    known = ask(compiler, headers, [...new Set(all)]);
    asked.set(key, known);
  }
  return Object.fromEntries(
    Object.entries(questions).map(([name, expression]) => [name, known[expression]]),
  );
}

for (const [arch, compiler] of Object.entries(COMPILERS)) {
  for (const [name, headers, table, questions] of TABLES) {
    test(`${name}: what JavaScript has is what C has on ${arch}`, () => {
      assert.deepEqual({ ...table }, answers(compiler, headers, questions));
    });
  }

  for (const [name, ours, theirs] of PAIRS) {
    test(`the helper's ${name} are the kernel's on ${arch}`, () => {
      assert.ok(Object.keys(ours).length > 5, "names were found in sys.h");
      assert.deepEqual(answers(compiler, HELPER, ours), answers(compiler, SYSTEM, theirs));
    });
  }

  test(`a control message's header and data are where JavaScript puts them on ${arch}`, () => {
    assert.deepEqual(
      answers(compiler, SYSTEM, CONTROL),
      { iovec: 16, length: 0, level: 8, type: 12, data: 16, space: 24 },
    );
  });

  test(`the names of errnos are those of the C library on ${arch}`, () => {
    assert.ok(OUR_ERRNOS.length > 20, "names of errnos");
    assert.deepEqual(answers(compiler, SYSTEM, ERRNO_NAMES), Object.fromEntries(OUR_ERRNOS));
  });
}
