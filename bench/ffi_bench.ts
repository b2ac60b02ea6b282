/**
 * What a call into C costs: `deno bench -A bench/ffi_bench.ts`, `bun bench/ffi_bench.ts`.
 *
 * The verbs themselves take a device (`verbs_bench.ts`). What a call of one costs before the device has anything to do is
 * measured here on any machine, with an empty verb behind the table of function pointers that a `struct ibv_context`
 * begins with. That, and a guard with no transport behind it, takes the inside of the library: there is no public way.
 *
 * @module
 */
import process from "node:process";
import { NativeMemory, Pool } from "../lib/verbs/mod.ts";
import { helper } from "../ffi/helper.ts";
import { addressIn } from "../ffi/library.ts";
import { libc } from "../ffi/libc.ts";
import { coreOf } from "../lib/memory/pool.ts";
import { resolveData } from "../lib/memory/resolve.ts";
import { write64 } from "../lib/verbs/native.ts";
import { sizeName } from "./stats.ts";
import { group, run } from "./support/bench.ts";

/** Keeps what is computed from being left out by the compiler. */
let sink = 0;
const c = helper();

// Offsets of ffi/helper/verbs.h. abs(3) does nothing to memory, and takes its first argument from where a verb does.
const OPS = { poll_cq: 96, req_notify_cq: 104, post_send: 208, post_recv: 216 };
const context = new NativeMemory(4096), object = new NativeMemory(4096);
const empty = addressIn({ handle: 0, path: "the C library" }, "abs");
const ops = new DataView(context.bytes.buffer, context.bytes.byteOffset);
for (const offset of Object.values(OPS)) write64(ops, offset, empty);
const first = new DataView(object.bytes.buffer, object.bytes.byteOffset);
write64(first, 0, context.address);
const at = object.address;

const calls = group("a call");
calls.bench("performance.now(), of the runtime", () => {
  sink += performance.now();
});
calls.bench("ibv_poll_cq, empty", () => {
  sink += c.moat_verbs_poll_cq(at, 16, at);
});
calls.bench("ibv_req_notify_cq, empty", () => {
  sink += c.moat_verbs_req_notify_cq(at, 0);
});
calls.bench("ibv_post_send, empty", () => {
  sink += c.moat_verbs_post_send(at, at, at);
});
calls.bench("ibv_post_recv, empty", () => {
  sink += c.moat_verbs_post_recv(at, at, at);
});
calls.bench("a call of the helper, f64 (i32, i32)", () => {
  sink += c.moat_query(-1, -1);
});
calls.bench("a system call, getppid(2)", () => {
  sink += process.ppid;
});
calls.bench("a system call by FFI, getpid(2)", () => {
  sink += libc().getpid();
});

const pool = Pool.create({ bytes: 64 << 20, reserve: 16 << 20 });
const core = coreOf(pool);
for (const bytes of [4 << 10, 64 << 10, 1 << 20]) {
  const name = sizeName(bytes);
  const steps = group(`a step of the pool, ${name}`);
  steps.bench(`alloc and free, ${name}`, () => pool.alloc(bytes).free());
  const one = pool.alloc(bytes), other = pool.alloc(bytes);
  one.bytes.fill(1);
  other.bytes.fill(2);
  steps.bench(`swap, ${name}`, () => pool.swap(one, other));
  const kept = pool.alloc(bytes);
  kept.bytes.fill(1);
  steps.bench(`snapshot and release, ${name}`, () => kept.snapshot().release());

  // The device is this program: it takes an operation's pages and gives them back at once. Once closed, pages that
  // nobody writes to stay closed; a byte written opens them.
  for (const guard of ["none", "cow", "wait"] as const) {
    for (const written of guard === "none" ? [false] : [false, true]) {
      const buffer = pool.alloc(bytes);
      buffer.bytes.fill(1);
      steps.bench(`guard "${guard}"${written ? ", then written" : ""}, ${name}`, () => {
        const { region, bytes: data } = resolveData(core, buffer, "send");
        const op = core.out(region!, data, guard);
        if (op < 0) throw new Error(`the guard is refused: ${op}`);
        c.moat_op_done(op, 0);
        c.moat_op_free(op);
        if (written) buffer.bytes[0] = 1;
      });
    }
  }
}

await run();
if (Number.isNaN(sink)) throw new Error("unreachable");
