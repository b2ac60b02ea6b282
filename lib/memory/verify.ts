/**
 * Finding writes to unguarded memory after they happened, by checksums.
 *
 * @module
 */
import { describe, MoatError } from "../../ffi/errors.ts";
import { runtime } from "../../ffi/runtime.ts";
import type { PoolCore, Region } from "./core.ts";
import { GUARD_NUMBER } from "./guard.ts";
import type { Outgoing } from "./outgoing.ts";
import { Posted } from "./posted.ts";
import { type Run, runsOf } from "./runs.ts";

/** How writes to unguarded memory in flight are found. */
export type Verify = "checksum";

/** Checks the setting. */
export function assertVerify(what: string, verify: unknown): asserts verify is Verify | undefined {
  if (verify === undefined || verify === "checksum") return;
  throw new MoatError("INVALID_ARGUMENT", `${what} with verify: ${describe(verify)}`, {
    hint: 'use "checksum", or leave it out',
  });
}

/** Sums up what is about to be sent, if that is asked for and if it can change at all. */
export function sealed(
  core: PoolCore,
  { op, guard }: Outgoing,
  region: Region | undefined,
  verify: Verify | undefined,
  what: string,
): Seal | undefined {
  if ((verify ?? core.verify) === undefined || guard !== "none") return undefined;
  return region && region.state.version === undefined ? new Seal(region, op, what) : undefined;
}

/**
 * The checksums of an operation's pages. They are those that the device reads: it does not matter where in the
 * program they are by the end.
 */
export class Seal {
  readonly #region: Region;
  readonly #what: string;
  readonly #frames: Uint32Array;
  readonly #runs: Run[];
  readonly #sums: Int32Array;
  readonly #posted = new Posted();

  /** Sums up an operation that has been started, and that no device has been given yet. */
  constructor(region: Region, op: number, what: string) {
    this.#region = region;
    this.#what = what;
    this.#runs = runsOf(region.state.core, op);
    this.#frames = framesOf(this.#runs);
    this.#sums = this.#sum();
  }

  /**
   * To be called when it has ended, before its number is given back.
   *
   * @throws {MoatError} `BUFFER_MODIFIED`
   */
  check(): void {
    const now = this.#sum(), { core } = this.#region.state;
    if (now.every((sum, i) => sum === this.#sums[i])) return;
    core.mapping?.assertUsable(this.#what);
    // Where a guard of another operation has moved the program to other frames since, these have perhaps been
    // given to somebody else, who wrote to them.
    const frames = this.#framesNow();
    const changed = [...now.keys()].filter((i) =>
      now[i] !== this.#sums[i] && frames?.[i] === this.#frames[i]
    );
    if (changed.length > 0) throw this.#error(changed);
  }

  #error(changed: number[]): MoatError {
    const { length } = this.#region, [from, to] = this.#span(changed[0]!);
    const others = changed.length - 1;
    const more = others > 0 ? ` and ${others} more page${others > 1 ? "s" : ""} of them` : "";
    const cause = new Error(`the ${this.#what} was started here`);
    cause.stack = `${cause.name}: ${cause.message}\n${this.#posted.stack}`;
    return new MoatError(
      "BUFFER_MODIFIED",
      `${this.#what} of ${length} bytes with the guard "none": bytes ${from} to ${to - 1}${more} ` +
        "were written to before it ended, so what has arrived is not certain",
      {
        cause,
        hint: `use the guard "cow" or "wait", or await the ${this.#what} before writing`,
      },
    );
  }

  // The bytes of the operation that are in its page number i.
  #span(i: number): [number, number] {
    const { state: { core: { pageSize } }, offset, length } = this.#region;
    const start = i * pageSize - offset % pageSize;
    return [Math.max(0, start), Math.min(length, start + pageSize)];
  }

  #sum(): Int32Array {
    const { core: { device, pageSize } } = this.#region.state, { offset } = this.#region;
    const within = offset % pageSize, sums = new Int32Array(this.#frames.length);
    let i = 0;
    for (const { frame, count } of this.#runs) {
      const memory = runtime().viewOf(device + frame * pageSize, count * pageSize);
      const words = new Int32Array(memory), bytes = new Uint8Array(memory);
      for (let k = 0; k < count; k++, i++) {
        const [from, to] = this.#span(i), shift = k * pageSize - (i * pageSize - within);
        sums[i] = checksum(words, bytes, from + shift, to + shift);
      }
      memory.transfer(0);
    }
    return sums;
  }

  // The frames that are behind the region now; undefined while a receive is pending there, which may write to them.
  #framesNow(): Uint32Array | undefined {
    const { state: { core, page }, offset, length } = this.#region, { helper, pageSize } = core;
    const first = Math.floor(offset / pageSize), pages = this.#frames.length;
    const at = page + first, within = offset % pageSize;
    const op = helper.moat_out(core.index, at, pages, within, length, GUARD_NUMBER.none);
    if (op < 0) return undefined;
    const frames = framesOf(runsOf(core, op));
    helper.moat_op_done(op, 0);
    helper.moat_op_free(op);
    return frames;
  }
}

function framesOf(runs: Run[]): Uint32Array {
  return Uint32Array.from(
    runs.flatMap(({ frame, count }) => Array.from({ length: count }, (_, i) => frame + i)),
  );
}

/**
 * A checksum of some bytes, by words. Each step can be undone, so two pieces of memory that differ in one word
 * never have the same; four sums side by side keep the multiplier of the processor busy.
 */
export function checksum(words: Int32Array, bytes: Uint8Array, from: number, to: number): number {
  let sum = to - from, at = from;
  for (; at < to && at % 16 !== 0; at++) sum = mix(sum, bytes[at]!);
  let a = 1, b = 2, c = 3, d = 4;
  for (let i = at / 4; at + 16 <= to; at += 16, i += 4) {
    a = mix(a, words[i]!);
    b = mix(b, words[i + 1]!);
    c = mix(c, words[i + 2]!);
    d = mix(d, words[i + 3]!);
  }
  for (; at < to; at++) sum = mix(sum, bytes[at]!);
  return mix(mix(mix(mix(sum, a), b), c), d);
}

// The constant is the golden ratio's, as in Knuth's multiplicative hashing; the shift brings high bits down, or
// a change of the sign of two words would cancel out.
function mix(sum: number, word: number): number {
  const product = Math.imul(sum ^ word, 0x9e3779b1);
  return product ^ (product >>> 15);
}
