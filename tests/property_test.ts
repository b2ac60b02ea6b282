import assert from "node:assert/strict";
import process from "node:process";
import { test } from "node:test";
import { Child } from "./support/child.ts";

const STEPS = 200;
const RUNS = process.env["MOAT_SOAK"] ? 5000 : 250;

for (const transport of ["shm", "tcp"]) {
  test(`random steps over ${transport}:// do what copying everything would have done, and leave nothing`, async (t) => {
    const args = [transport, `${RUNS}`, `${STEPS}`];
    const child = new Child({ after: (fn) => t.after(fn) }, "properties", args);
    const { failure, runs, steps } = await child.next<
      { failure?: string; runs?: number; steps?: number }
    >();
    assert.equal(failure, undefined, failure);
    assert.equal(runs, RUNS);
    assert.ok(steps! > RUNS * STEPS * 0.8, `${steps} steps`);
    assert.equal((await child.exit).code, 0);
  });
}
