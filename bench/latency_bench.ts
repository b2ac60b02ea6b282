/**
 * Round trips to another process, and bursts of small messages, by transport, beside the runtimes' own sockets:
 * `deno bench -A bench/latency_bench.ts`, `bun bench/latency_bench.ts`. Both processes look for a message for up to 100 us
 * before they sleep.
 *
 * @module
 */
import process from "node:process";
import { connect, Pool } from "../mod.ts";
import { addresses } from "./support/addresses.ts";
import { group, run } from "./support/bench.ts";
import { nodeSockets, ownSockets, type Where } from "./support/plain.ts";
import { programOn, Running } from "./support/processes.ts";

const BURST = 100, BYTES = 8;
const name = "Bun" in globalThis ? "bun" : "deno";
const words = name === "bun" ? [process.execPath] : [process.execPath, "run", "-A", "--no-check"];

/** Starts the other end, which ends with this process; resolves to where it listens. */
async function echo<T>(what: string, where: string): Promise<T> {
  const child = new Running(
    programOn({ runtimes: { [name]: words } }, name, "echo", [what, where]),
  );
  const said = await child.json<T>();
  child.unref();
  return said;
}

const pool = Pool.create({ bytes: 1 << 20 });
const data = new Uint8Array(BYTES).fill(1), back = new Uint8Array(BYTES);
for (const { transport, address } of addresses("latency")) {
  const trip = group(`${transport}://, a round trip of ${BYTES} bytes`);
  const burst = group(`${transport}://, ${BURST} messages of ${BYTES} bytes, and all of them back`);
  const kind = transport === "shm" ? "unix" : "tcp";
  for (const [what, sockets] of [["own", ownSockets], ["node", nodeSockets]] as const) {
    if (transport === "rdma") break;
    const socket = await sockets.connect(await echo<Where>(what, kind));
    trip.bench(`${sockets.name}, ${kind}`, async () => {
      await Promise.all([socket.write(data), socket.read(back)]);
    });
    const many = new Uint8Array(BURST * BYTES);
    burst.bench(`${sockets.name}, ${kind}, a write each`, async () => {
      const received = socket.read(many);
      for (let i = 0; i < BURST; i++) await socket.write(data);
      await received;
    });
  }
  const channel = await connect(await echo<string>("moat", address), { pool, spin: 100 });
  trip.bench("moat", async () => {
    channel.send(data);
    (await channel.recv())!.release();
  });
  burst.bench("moat", async () => {
    for (let i = 0; i < BURST; i++) channel.send(data);
    for (let i = 0; i < BURST; i++) (await channel.recv())!.release();
  });
}

await run();
