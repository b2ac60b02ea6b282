/**
 * Page swapping, and what is made of it: copying without copying.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { runtime } from "../../ffi/runtime.ts";
import type { BufferState } from "./buffer.ts";
import { calibrate } from "./calibrate.ts";
import { PoolCore, type Region } from "./core.ts";
import { resolveData } from "./resolve.ts";

const EBUSY = 16;

/** Exchanges two ranges of pages. See {@linkcode Pool.swap}. */
export function swap(core: PoolCore, a: unknown, b: unknown): void {
  const one = pagesOf(core, a, "the first"), two = pagesOf(core, b, "the second");
  if (one.length !== two.length) {
    throw new MoatError(
      "INVALID_ARGUMENT",
      `swap of ${one.length} bytes with ${two.length}`,
      { hint: "both parts must have the same length" },
    );
  }
  if (one.page < two.page + two.pages && two.page < one.page + one.pages) {
    throw new MoatError("INVALID_ARGUMENT", "swap of two parts that overlap", {
      hint: "pass two different buffers, or parts that share no page",
    });
  }
  const r = core.exchange(one.page, two.page, one.pages);
  if (r === -EBUSY) {
    throw new MoatError("BUFFER_BUSY", `swap of ${one.length} bytes that an operation holds`, {
      hint: 'await the receive, or the send guarded by "wait" or "none", first',
    });
  }
  if (r < 0) throw core.refusal("swap", r);
  shareGuard(one.state, two.state);
}

// What a guard has left closed to writes came along: whoever takes the bytes of either opens it.
function shareGuard(a: BufferState, b: BufferState): void {
  a.guarded = b.guarded = a.guarded || b.guarded;
}

function pagesOf(
  core: PoolCore,
  data: unknown,
  which: string,
): { state: BufferState; page: number; pages: number; length: number } {
  const { region } = resolveData(core, data, "swap"), { pageSize } = core;
  if (!region || region.state.version !== undefined) {
    throw new MoatError(
      "INVALID_ARGUMENT",
      `swap: ${which} argument is ${region ? "a snapshot" : "not memory of the pool"}`,
      { hint: "pass buffers of pool.alloc(), or views of them" },
    );
  }
  core.assertLive(region.state);
  const { offset, length, state } = region, end = offset + length;
  if (length === 0 || offset % pageSize || (end % pageSize && end !== state.byteLength)) {
    throw new MoatError(
      "INVALID_ARGUMENT",
      `swap: ${which} argument is ${length} bytes at offset ${offset}, which are not whole pages`,
      { hint: `use multiples of ${pageSize}, or whole buffers` },
    );
  }
  const page = state.page + offset / pageSize;
  return { state, page, pages: Math.ceil(length / pageSize), length };
}

/** Bytes that were copied, and that came by exchanging pages. */
export interface Moved {
  copied: number;
  exchanged: number;
}

/**
 * Gives `to` the bytes of `from`, of the same length, by exchanging whole pages where that is cheaper, and copying
 * the rest (Brustoloni's emulated copy on input). What `from` holds afterwards is undefined.
 *
 * Where the first or the last page of `to` is filled by more than half, it is exchanged as well, and what it
 * held besides is copied into the new page instead ("reverse copyout"): so at most half a page is copied at
 * either end. `spare` says how many bytes before and behind `from` nobody needs any more.
 */
export function moveBytes(
  core: PoolCore,
  to: Region,
  target: Uint8Array,
  from: Region,
  source: Uint8Array,
  spare: { before: number; behind: number },
): Moved {
  const { pageSize } = core, { length } = to, within = to.offset % pageSize;
  const copyAll = (): Moved => {
    target.set(source);
    return { copied: length, exchanged: 0 };
  };
  if (within !== from.offset % pageSize || length < exchangeThreshold(core)) return copyAll();
  // In pages relative to the start of the first page that is touched.
  const end = within + length, tail = end % pageSize, pages = Math.ceil(end / pageSize);
  let first = 0, last = pages, headBack = 0, tailBack = 0;
  if (within > 0) {
    if (pageSize - within > pageSize / 2 && spare.before >= within) headBack = within;
    else first = 1;
  }
  if (tail > 0) {
    const rest = Math.min(pageSize, to.state.byteLength - (to.offset + length - tail)) - tail;
    if (tail > pageSize / 2 && spare.behind >= rest) tailBack = rest;
    else last = pages - 1;
  }
  if (last <= first) return copyAll();
  const a = to.state.page + Math.floor(to.offset / pageSize);
  const b = from.state.page + Math.floor(from.offset / pageSize);
  const whole = (region: Region): Uint8Array => new Uint8Array(region.state.memory!.deref()!);
  const mine = whole(to), theirs = whole(from);
  // Reverse copyout comes first: what stays is put into the pages that are about to come.
  if (headBack) theirs.set(mine.subarray(to.offset - headBack, to.offset), from.offset - headBack);
  if (tailBack) {
    const at = to.offset + length;
    theirs.set(mine.subarray(at, at + tailBack), from.offset + length);
  }
  if (core.exchange(a + first, b + first, last - first) < 0) return copyAll();
  shareGuard(to.state, from.state);
  let copied = headBack + tailBack;
  const head = first * pageSize - within, cut = last * pageSize - within;
  if (head > 0) {
    target.set(source.subarray(0, head));
    copied += head;
  }
  if (cut < length) {
    target.set(source.subarray(cut), cut);
    copied += length - cut;
  }
  return { copied, exchanged: length - Math.max(0, head) - Math.max(0, length - cut) };
}

let threshold: number | undefined;
const SIZES = [16 << 10, 64 << 10, 256 << 10, 1 << 20];

/** Bytes from which exchanging pages costs less than copying them, measured once a process. */
export function exchangeThreshold(core: PoolCore): number {
  return threshold ??= measure(core);
}

function measure({ pool, pageSize }: PoolCore): number {
  const largest = SIZES.at(-1)!, options = { bytes: 2 * largest, reserve: 0, guardTimeout: 0 };
  const scratch = new PoolCore(pool, {
    ...options,
    copyThreshold: 0,
    trace: false,
    hugePages: false,
  });
  try {
    const { page, pages } = scratch.takePages(2 * largest);
    const memory = runtime().viewOf(scratch.window, 2 * largest);
    new Uint8Array(memory).fill(1); // only pages that exist cost what pages cost
    memory.transfer(0);
    const exchanged = SIZES.map((bytes) => {
      let least = Infinity;
      for (let i = 0; i < 5; i++) {
        const start = performance.now();
        scratch.exchange(page, page + pages / 2, bytes / pageSize);
        least = Math.min(least, performance.now() - start);
      }
      return least * 1e6;
    });
    const copyCost = calibrate().copyCost;
    const index = SIZES.findIndex((bytes, i) => exchanged[i]! < copyCost(bytes));
    return index < 0 ? 2 * largest : SIZES[index]!;
  } finally {
    scratch.destroy();
  }
}
