/**
 * Collecting garbage, on either runtime.
 *
 * @module
 */
import assert from "node:assert/strict";

interface Collector {
  gc?: () => void;
  Bun?: { gc(now: boolean): void };
}

/** Collects garbage and lets finalizers run. */
export async function collect(): Promise<void> {
  const { gc, Bun } = globalThis as Collector;
  assert.ok(gc ?? Bun, "this test needs --expose-gc");
  if (Bun) Bun.gc(true);
  else gc!();
  await new Promise((resolve) => setTimeout(resolve, 1)); // finalizers run from the event loop
}

/** Collects garbage until a condition holds; false if it does not come to that. */
export async function collected(condition: () => boolean): Promise<boolean> {
  for (let i = 0; i < 200 && !condition(); i++) await collect();
  return condition();
}
