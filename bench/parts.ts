/**
 * The parts of the benchmarks, in the order in which they run.
 *
 * @module
 */
import type { Part } from "./results.ts";

/** All of them. */
export const parts: readonly Part[] = [];
