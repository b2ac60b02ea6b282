/**
 * The parts of the benchmarks, in the order in which they run.
 *
 * @module
 */
import { ffi } from "./parts/ffi.ts";
import { guards } from "./parts/guards.ts";
import { inflight } from "./parts/inflight.ts";
import { interop } from "./parts/interop.ts";
import { latency, rate } from "./parts/latency.ts";
import { memory } from "./parts/memory.ts";
import { overlap } from "./parts/overlap.ts";
import { rdma } from "./parts/rdma.ts";
import { throughput } from "./parts/throughput.ts";
import type { Part } from "./results.ts";

/** All of them. */
export const parts: readonly Part[] = [
  ...[ffi, guards, throughput, latency, rate, overlap, inflight, memory, interop, rdma],
];
