/**
 * Where the ticks of logarithmic axes are.
 *
 * @module
 */

/** Powers of two from `least` to `most`, at most so many of them, evenly spread. */
export function bytesTicks(least: number, most: number, count: number): number[] {
  const first = Math.ceil(Math.log2(least)), last = Math.floor(Math.log2(most));
  // From KiB to MiB it is 10 powers: 4 KiB, 64 KiB, 1 MiB.
  const step = [1, 2, 4, 5, 10].find((each) => Math.floor((last - first) / each) < count) ?? 20;
  const ticks: number[] = [];
  for (let power = first; power <= last; power += step) ticks.push(2 ** power);
  return ticks;
}

/** Round numbers from `least` to `most`: as fine as they may be with at most so many of them. */
export function logTicks(least: number, most: number, count: number): number[] {
  for (const digits of [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const ticks = round(least, most, digits);
    if (ticks.length <= count) return ticks;
  }
  const powers = round(least, most, [1]);
  const step = Math.ceil(powers.length / Math.max(1, count));
  return powers.filter((_, i) => i % step === 0);
}

function round(least: number, most: number, digits: readonly number[]): number[] {
  const ticks: number[] = [];
  for (let power = Math.floor(Math.log10(least)); 10 ** power <= most; power++) {
    for (const digit of digits) {
      const value = Number((digit * 10 ** power).toPrecision(3));
      if (value >= least && value <= most) ticks.push(value);
    }
  }
  return ticks;
}
