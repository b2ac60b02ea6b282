/**
 * What guards cost by size, in one process: `deno bench -A bench/guard_bench.ts`, `bun bench/guard_bench.ts`.
 *
 * Both ends of a channel are here, so there is no waiting: what is measured is the work of both. `deno task bench`
 * measures between processes.
 *
 * @module
 */
import process from "node:process";
import { connect, type Guard, listen, Pool } from "../mod.ts";
import { sizeName } from "./stats.ts";
import { group, run } from "./support/bench.ts";

const address = `shm://guard-bench-${process.pid}`;
const pool = Pool.create({ bytes: 128 << 20, reserve: 64 << 20 });
const listener = await listen(address, { pool });
const [client, server] = await Promise.all([connect(address, { pool }), listener.accept()]);

/** Sends a message from the buffer, does something to the buffer while it is in flight, and completes it. */
async function transfer(data: Uint8Array, guard: Guard, meanwhile?: () => void): Promise<void> {
  const sent = client.send(data, { guard });
  meanwhile?.();
  (await server.recv())!.release();
  await sent;
}

for (const bytes of [4 << 10, 64 << 10, 1 << 20, 4 << 20]) {
  const name = sizeName(bytes);
  const buffer = (): Uint8Array => pool.alloc(bytes).bytes.fill(1);

  const untouched = group(`${name} sent, received and released, untouched`);
  for (const guard of ["none", "copy", "cow", "wait", "auto"] as const) {
    const data = buffer();
    untouched.bench(guard, async () => await transfer(data, guard));
  }

  // A program that waits for the completion before it writes. Bytes that it takes anew are writable again; with a view
  // from before, its write makes them so.
  const after = group(`${name} sent, received and released, then written`);
  for (const guard of ["copy", "cow", "wait"] as const) {
    const kept = pool.alloc(bytes);
    kept.bytes.fill(1);
    after.bench(`${guard}, bytes taken anew`, async () => {
      await transfer(kept.bytes, guard);
      kept.bytes[0] = 1;
    });
    const data = buffer();
    after.bench(`${guard}, a view from before`, async () => {
      await transfer(data, guard);
      data[0] = 1;
    });
  }

  // A write that meets the send in flight.
  for (const what of ["a byte", "every byte"] as const) {
    const during = group(`${name} sent, ${what} rewritten in flight, received and released`);
    for (const guard of ["copy", "cow", "auto"] as const) {
      const data = buffer();
      let value = 0;
      during.bench(guard, async () => {
        await transfer(data, guard, () => {
          if (what === "a byte") data[bytes >> 1] = value++;
          else data.fill(value++);
        });
      });
    }
  }
}

await run();
