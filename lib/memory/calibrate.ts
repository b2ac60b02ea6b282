/**
 * Calibration: what copying and guarding cost on this machine.
 *
 * @module
 */
import { C, libc, map } from "../../ffi/libc.ts";
import { runtime } from "../../ffi/runtime.ts";

/** What was measured. */
export interface Calibration {
  /** Nanoseconds to copy a number of bytes that are not in the cache. */
  copyCost(bytes: number): number;
  /** Bytes above which closing and opening the pages costs less than a copy. */
  threshold: number;
}

/** The least bytes, of a power of two, whose copy takes longer than so many nanoseconds. */
export function worthNotCopying(nanoseconds: number): number {
  const { copyCost } = calibrate();
  let bytes = 32 << 10;
  while (bytes < 16 << 20 && copyCost(bytes) < nanoseconds) bytes *= 2;
  return bytes;
}

let measured: Calibration | undefined;

/** Measures at the first call of a process (3 ms on a Xeon at 2.6 GHz), and remembers. */
export function calibrate(): Calibration {
  return measured ??= measure();
}

const SIZES = [16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];

function measure(): Calibration {
  const largest = SIZES.at(-1)!;
  const from = new Uint8Array(largest).fill(1), to = new Uint8Array(largest).fill(2);
  const copies = SIZES.map((bytes) =>
    best(() => to.set(bytes === largest ? from : from.subarray(0, bytes)))
  );
  const prot = C.PROT_READ | C.PROT_WRITE;
  const at = map(1 << 20, prot, C.MAP_SHARED | C.MAP_ANONYMOUS, -1);
  const view = runtime().viewOf(at, 1 << 20);
  new Uint8Array(view).fill(1); // only pages that exist cost what pages cost
  view.transfer(0);
  const guards = SIZES.slice(0, 4).map((bytes) =>
    best(() => {
      libc().mprotect(at, bytes, C.PROT_READ);
      libc().mprotect(at, bytes, prot);
    })
  );
  libc().munmap(at, 1 << 20);
  // A guard costs the pair and at least one fault (about 4 us with the signal's delivery).
  const crossing = SIZES.findIndex((_, i) => (guards[i] ?? 0) + 4000 < copies[i]!);
  return {
    threshold: crossing < 0 ? largest : SIZES[crossing]!,
    copyCost: (bytes) => interpolate(SIZES, copies, bytes),
  };
}

function best(run: () => void): number {
  let least = Infinity;
  for (let i = 0; i < 5; i++) {
    const start = performance.now();
    run();
    least = Math.min(least, performance.now() - start);
  }
  return least * 1e6;
}

function interpolate(sizes: readonly number[], costs: readonly number[], bytes: number): number {
  const above = sizes.findIndex((size) => size >= bytes);
  if (above === 0) return costs[0]! * bytes / sizes[0]!;
  if (above < 0) return costs.at(-1)! * bytes / sizes.at(-1)!;
  const [x0, x1, y0, y1] = [sizes[above - 1]!, sizes[above]!, costs[above - 1]!, costs[above]!];
  return y0 + (y1 - y0) * (bytes - x0) / (x1 - x0);
}
