import { test } from "node:test";
import { Harness, own } from "./support/harness.ts";

// QEMU's user mode has no io_uring, so this is tested on the processor that it runs on.
const harness = new Harness("uring_harness.c");

const TESTS: Record<string, string> = {
  nops: "a thousand requests come back, and the ring goes with its pool",
  overflow: "completions that find no room are not lost",
  fixed_read: "a read into a registered frame, at odd places",
  wakes: "a completion that somebody else has taken rings for who sleeps",
  hangs_up: "what a Worker had queued when it was terminated is not touched any more",
  removes: "a pool is closed while a handler of another thread waits for its last operation",
  closes: "a ring is closed while others look at it",
};
for (const [name, says] of Object.entries(TESTS)) test(says, () => harness.run(own, name));
