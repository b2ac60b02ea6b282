/**
 * Runs random sequences of steps against the model, and shrinks one that fails to its shortest form.
 *
 *     properties.ts TRANSPORT RUNS STEPS [SEED [PATH]]
 *
 * A program of its own, because `bun run` gets packages from npm by itself and `bun test` does not. SEED and PATH
 * are what a failure prints: they repeat it. It prints `{ runs, steps }`, or `{ failure }`.
 *
 * @module
 */
import process from "node:process";
import fc from "fast-check@4.3.0";
import { say } from "../support/child.ts";
import { KINDS, type Step, World } from "../support/model.ts";

const transport = process.argv[2]!;
const [runs, length] = process.argv.slice(3, 5).map(Number) as [number, number];
const [seed, path] = process.argv.slice(5);

// Ten buffers first, or half of all sequences would have nothing to do.
const START: Step[] = Array.from({ length: 10 }, (_, i) => ["alloc", i, 0, 0, i]);

const number = fc.nat({ max: 1 << 20 });
const step: fc.Arbitrary<Step> = fc.tuple(
  fc.constantFrom(...KINDS),
  number,
  number,
  number,
  number,
);
let steps = 0;
const property = fc.asyncProperty(
  fc.array(step, { minLength: 1, maxLength: 2 * length, size: "max" }),
  async (sequence) => {
    await using world = await World.create(transport);
    for (const step of [...START, ...sequence]) {
      await world.step(step);
      steps++;
    }
    await world.end();
  },
);
const result = await fc.check(property, {
  numRuns: runs,
  ...(seed === undefined ? {} : { seed: Number(seed) }),
  ...(path === undefined ? {} : { path }),
});
if (result.failed) {
  const { stack } = result.errorInstance as Error;
  say({ failure: `${fc.defaultReportMessage(result)}\n${stack}` });
} else say({ runs: result.numRuns, steps });
