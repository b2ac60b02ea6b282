/**
 * What single steps of the pool cost: `deno bench -A bench/guard_bench.ts`.
 *
 * The device is this program itself: it takes an operation's pages and gives them back at once, so that
 * nothing but the guard is measured. That needs the inside of the pool; a transport does the same.
 *
 * @module
 */
import { Pool, type PoolBuffer } from "../mod.ts";
import { resolveData } from "../lib/memory/resolve.ts";
import { coreOf } from "../lib/memory/pool.ts";
import { sizeName } from "./stats.ts";

type Armed = "none" | "cow" | "wait";

const pool = Pool.create({ bytes: 64 << 20, reserve: 64 << 20 });
const core = coreOf(pool), helper = core.helper;

/** Starts a send; the guard is up when it returns. */
function post(buffer: PoolBuffer, guard: Armed): number {
  const { region, bytes } = resolveData(core, buffer, "send");
  const op = core.out(region!, bytes, guard);
  if (op < 0) throw new Error(`the guard is refused: ${op}`);
  return op;
}

/** The device is done with it. The pages stay closed until somebody writes to them. */
function done(op: number): void {
  helper.moat_op_done(op, 0);
  helper.moat_op_free(op);
}

function filled(bytes: number): PoolBuffer {
  const buffer = pool.alloc(bytes);
  buffer.bytes.fill(1);
  return buffer;
}

for (const bytes of [4 << 10, 64 << 10, 1 << 20, 4 << 20]) {
  const name = sizeName(bytes);

  Deno.bench({ name: `alloc and free, ${name}`, group: "alloc and free" }, () => {
    pool.alloc(bytes).free();
  });

  // Once closed, pages that nobody writes to stay closed: a further send only counts references.
  for (const guard of ["none", "cow", "wait"] as const) {
    const buffer = filled(bytes);
    Deno.bench({
      name: `${guard}, untouched, ${name}`,
      group: `send and completion, untouched, ${name}`,
      baseline: guard === "none",
    }, () => done(post(buffer, guard)));
  }

  // A program that waits for the completion before it writes: no fault, only the permission to and fro.
  const group = `send and completion, then written, ${name}`;
  const source = filled(bytes);
  Deno.bench({ name: `copy, ${name}`, group, baseline: true }, () => {
    const op = core.outCopy(source.bytes);
    if (op < 0) throw new Error(`the copy is refused: ${op}`);
    done(op);
  });
  for (const guard of ["cow", "wait"] as const) {
    const buffer = filled(bytes);
    Deno.bench({ name: `${guard}, bytes taken anew, ${name}`, group }, () => {
      done(post(buffer, guard));
      buffer.bytes[0] = 1;
    });
    const { bytes: kept } = filled(bytes), owner = resolveData(core, kept, "send").region!;
    Deno.bench({ name: `${guard}, a fault restores, ${name}`, group }, () => {
      const op = core.out(owner, kept, guard);
      done(op);
      kept[0] = 1;
    });
  }

  // A write that meets the send in flight. The old frame is free again when the send is done.
  const buffer = filled(bytes);
  Deno.bench({ name: `private page, ${name}`, group: "a byte written in flight" }, (b) => {
    const op = post(buffer, "cow");
    b.start();
    buffer.bytes[bytes >> 1] = 1;
    b.end();
    done(op);
  });
  const rewritten = filled(bytes), value = { now: 0 };
  Deno.bench({ name: `private pages, ${name}`, group: "all rewritten in flight" }, (b) => {
    const op = post(rewritten, "cow");
    b.start();
    rewritten.bytes.fill(value.now++);
    b.end();
    done(op);
  });
}
