/**
 * What a small message costs both ends together: `deno bench -A bench/channel_bench.ts`.
 *
 * Both channels are in this process, so there is no waiting: what is measured is the work, in TypeScript
 * and in the helper. `deno task bench` measures between processes.
 *
 * @module
 */
import process from "node:process";
import { connect, listen, Pool } from "../mod.ts";
import { sizeName } from "./stats.ts";

const address = `shm://channel-bench-${process.pid}`;
const pool = Pool.create({ bytes: 16 << 20 });
const listener = await listen(address, { pool });
const [client, server] = await Promise.all([connect(address, { pool }), listener.accept()]);

for (const bytes of [8, 256, 4 << 10, 16 << 10]) {
  const data = new Uint8Array(bytes).fill(1), name = sizeName(bytes);
  const group = `send and receive, ${name}`;

  Deno.bench({ name: `a message, ${name}`, group, baseline: true }, async () => {
    client.send(data);
    (await server.recv())!.release();
  });

  const into = pool.alloc(bytes);
  Deno.bench({ name: `a message into a buffer, ${name}`, group }, async () => {
    client.send(data);
    await server.recv(into);
  });
}

for (const bytes of [64 << 10, 1 << 20]) {
  const buffer = pool.alloc(bytes), name = sizeName(bytes);
  buffer.bytes.fill(1);
  for (const guard of ["none", "cow", "copy"] as const) {
    Deno.bench({
      name: `${guard}, ${name}`,
      group: `send, receive and release, untouched, ${name}`,
      baseline: guard === "none",
    }, async () => {
      const sent = client.send(buffer, { guard });
      (await server.recv())!.release();
      await sent;
    });
  }
}
