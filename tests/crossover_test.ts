import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { draw, type Results } from "../tools/crossover.ts";

const KIB = 1 << 10;

// Copying takes as long as there are bytes; guarding takes `guard` microseconds whatever the size.
function results(guard: number): Results {
  const us: Record<string, (bytes: number) => number> = {
    copy: (bytes) => bytes / (4 * KIB),
    cow: () => guard,
    wait: () => guard,
    none: () => 1.5,
  };
  return {
    facts: { cpu: "a processor", cores: "4", kernel: "Linux 6.1.0-vendor", deno: "2.9.6" },
    date: "2026-01-02T03:04:05Z",
    results: [4, 16, 64, 256, 1024].flatMap((kib) =>
      ["untouched", "rewritten"].flatMap((touched) =>
        Object.entries(us).map(([series, of]) => ({
          part: "guards",
          series,
          runtime: "deno",
          at: { bytes: kib * KIB, touched },
          value: of(kib * KIB),
        }))
      )
    ),
  };
}

test("the picture of the crossover says from which size on a guard costs less, and on what", () => {
  const svg = draw(results(5), "deno");
  assert.equal(svg.match(/"cow" costs less from 64 KiB on/g)?.length, 2);
  assert.ok(svg.includes("Deno 2.9.6; a processor, 4 cores, Linux 6.1.0; 2026-01-02."));
  assert.doesNotMatch(svg, /NaN|undefined|Infinity/);
});

test("where a guard never costs less, the picture does not say that it does", () => {
  assert.doesNotMatch(draw(results(5000), "deno"), /costs less/);
});

test("what was not measured is not drawn", () => {
  assert.throws(() => draw(results(5), "bun"), /no results: copy, untouched, on bun/);
});

test("the picture that the README shows says on what it was measured", () => {
  const svg = readFileSync(new URL("../docs/images/crossover.svg", import.meta.url), "utf8");
  assert.match(
    svg,
    /(Deno|Bun) \d+\.\d+\.\d+; .+, \d+ cores, Linux \d+\.\d+\.\d+; \d{4}-\d\d-\d\d\./,
  );
});
