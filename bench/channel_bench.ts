/**
 * What a message costs both ends together, by transport and size, beside the runtimes' own sockets:
 * `deno bench -A bench/channel_bench.ts`, `bun bench/channel_bench.ts`.
 *
 * Both ends are in this process; `deno task bench` measures between processes. With MOAT_RDMA_ADDRESS, the address of a
 * device, rdma:// is measured too.
 *
 * @module
 */
import { connect, listen, Pool } from "../mod.ts";
import { sizeName } from "./stats.ts";
import { group, run } from "./support/bench.ts";
import { nodeSockets, ownSockets, type PlainSocket, type PlainSockets } from "./support/plain.ts";
import { addresses } from "./support/addresses.ts";

const pool = Pool.create({ bytes: 64 << 20 });
const SIZES = [8, 4 << 10, 64 << 10, 1 << 20];

async function socketPair(
  sockets: PlainSockets,
  kind: "tcp" | "unix",
): Promise<[PlainSocket, PlainSocket]> {
  const { promise, resolve } = Promise.withResolvers<PlainSocket>();
  const where = await sockets.listen(kind, (socket) => {
    resolve(socket);
    return Promise.resolve();
  });
  const client = await sockets.connect(where);
  return [client, await promise];
}

for (const { transport, address } of addresses("channel")) {
  const listener = await listen(address, { pool });
  const [client, server] = await Promise.all([
    connect(listener.address, { pool }),
    listener.accept(),
  ]);
  const kind = transport === "shm" ? "unix" : "tcp";
  const plain = transport === "rdma"
    ? []
    : await Promise.all([ownSockets, nodeSockets].map(async (sockets) => {
      return { name: sockets.name, pair: await socketPair(sockets, kind) };
    }));

  for (const bytes of SIZES) {
    const name = sizeName(bytes), { bench } = group(`${transport}://, ${name}`);
    const data = new Uint8Array(bytes).fill(1), into = new Uint8Array(bytes);
    for (const { name: sockets, pair: [from, to] } of plain) {
      bench(`${sockets}, ${kind}`, async () => {
        await Promise.all([from.write(data), to.read(into)]);
      });
    }
    const buffer = pool.alloc(bytes), target = pool.alloc(bytes);
    buffer.bytes.fill(1);
    bench("moat", async () => {
      const sent = client.send(buffer);
      (await server.recv())!.release();
      await sent;
    });
    bench("moat, into a buffer", async () => {
      const received = server.recv(target);
      await client.send(buffer);
      await received;
    });
  }
}

await run();
