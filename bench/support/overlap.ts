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
 * than the computation, 0 if it takes as long as one after the other. The median of the rounds, cut off at 0 and 1.
 *
 * Of each round by itself, because a machine is not as fast from one to the next: a computation that was as long as
 * another round's transfer may be shorter than this one's, and then nothing could hide all of it.
 */
export function overlap({ transfer, compute, both }: OverlapTimes): number {
  const hidden = transfer.map((time, i) => 1 - (both[i]! - compute[i]!) / time);
  return Math.max(0, Math.min(1, median(hidden)));
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

/** A single transfer now and then takes much longer than others. */
const RECENT = 9;

/** Measures all three in turns; the computation is as long as the last transfers were. */
export async function measureOverlap(rounds: number, begin: () => Begun): Promise<OverlapTimes> {
  let speed = stepsPerMicrosecond();
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
  const recent = warm.slice(-RECENT);
  for (let round = 0; round < rounds; round++) {
    const transfer = await run(0, true);
    recent.shift();
    recent.push(transfer);
    const steps = Math.max(1, Math.round(median(recent) * speed));
    const compute = await run(steps, false);
    speed = steps / compute; // it is not the same for long
    times.transfer.push(transfer);
    times.compute.push(compute);
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
  let speed = stepsPerMicrosecond();
  const time = async (run: () => void | Promise<void>): Promise<number> => {
    const start = performance.now();
    await run();
    return (performance.now() - start) * 1000 / messages;
  };
  const alone = (): Promise<number> => time(() => stream(() => {}));
  for (let i = 0; i < 5; i++) await alone();
  const times: OverlapTimes = { transfer: [], compute: [], both: [] };
  for (let round = 0; round < rounds; round++) {
    const transfer = await alone(), steps = Math.max(1, Math.round(transfer * speed));
    const compute = await time(() => {
      for (let i = 0; i < messages; i++) spin(steps);
    });
    speed = steps / compute;
    times.transfer.push(transfer);
    times.compute.push(compute);
    times.both.push(await time(() => stream(() => spin(steps))));
  }
  return times;
}
