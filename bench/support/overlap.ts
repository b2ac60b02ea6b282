/**
 * Computation and communication at once.
 *
 * @module
 */
import { median } from "../stats.ts";

/** Microseconds, round by round. */
export interface OverlapTimes {
  /** The transfer alone, from its beginning to its end. */
  transfer: number[];
  /** The computation alone. */
  compute: number[];
  /** The transfer begun, the computation, the transfer's end. */
  both: number[];
}

/** A transfer that was begun. */
export interface Begun {
  /** Ends it: at once if it has ended by itself. */
  finish(): void | Promise<unknown>;
  /** What is left to wait for and is not timed. */
  settle?: Promise<unknown>;
}

/**
 * The share of the transfer that the computation hides, as the OSU benchmarks define it: 1 if doing both takes no longer
 * than the computation, 0 if it takes as long as one after the other. Of medians, and cut off at 0 and 1.
 */
export function overlap({ transfer, compute, both }: OverlapTimes): number {
  const hidden = 1 - (median(both) - median(compute)) / median(transfer);
  return Math.max(0, Math.min(1, hidden));
}

let sink = 0;

/** Computes: nothing but the processor, and nothing is allocated. */
function spin(steps: number): void {
  let x = sink | 1;
  for (let i = 0; i < steps; i++) x = (Math.imul(x, 1664525) + 1013904223) | 0;
  sink = x;
}

/** How many steps take a microsecond, when they are compiled: of several tries the median. */
function stepsPerMicrosecond(): number {
  const STEPS = 200_000;
  for (let i = 0; i < 20; i++) spin(STEPS);
  return median(Array.from({ length: 9 }, () => {
    const start = performance.now();
    spin(STEPS);
    return STEPS / (performance.now() - start) / 1000;
  }));
}

/** Measures all three in turns; the computation is as long as the transfer was found to be. */
export async function measureOverlap(rounds: number, begin: () => Begun): Promise<OverlapTimes> {
  const speed = stepsPerMicrosecond();
  const run = async (steps: number, transfer: boolean): Promise<number> => {
    const start = performance.now();
    const begun = transfer ? begin() : undefined;
    if (steps > 0) spin(steps);
    const ending = begun?.finish();
    if (ending) await ending;
    const us = (performance.now() - start) * 1000;
    await begun?.settle;
    await new Promise((done) => setTimeout(done, 1)); // both sides come to rest: each begins from the same
    return us;
  };
  const warm: number[] = [];
  for (let i = 0; i < Math.max(10, rounds); i++) warm.push(await run(0, true));
  const times: OverlapTimes = { transfer: [], compute: [], both: [] };
  const steps = Math.max(1, Math.round(median(warm.slice(warm.length >> 1)) * speed));
  for (let round = 0; round < rounds; round++) {
    times.transfer.push(await run(0, true));
    times.compute.push(await run(steps, false));
    times.both.push(await run(steps, true));
  }
  return times;
}

/**
 * The same for a stream of messages, in microseconds a message: the program computes before each of them, and nothing
 * is awaited before the last.
 *
 * @param stream begins all of them in turn, calls the function before each, and resolves when all have ended
 */
export async function measureStream(
  rounds: number,
  messages: number,
  stream: (before: () => void) => Promise<void>,
): Promise<OverlapTimes> {
  const speed = stepsPerMicrosecond();
  const time = async (run: () => void | Promise<void>): Promise<number> => {
    const start = performance.now();
    await run();
    return (performance.now() - start) * 1000 / messages;
  };
  const alone = (): Promise<number> => time(() => stream(() => {}));
  const warm: number[] = [];
  for (let i = 0; i < 5; i++) warm.push(await alone());
  const steps = Math.max(1, Math.round(median(warm.slice(2)) * speed));
  const times: OverlapTimes = { transfer: [], compute: [], both: [] };
  for (let round = 0; round < rounds; round++) {
    times.transfer.push(await alone());
    times.compute.push(
      await time(() => {
        for (let i = 0; i < messages; i++) spin(steps);
      }),
    );
    times.both.push(await time(() => stream(() => spin(steps))));
  }
  return times;
}
