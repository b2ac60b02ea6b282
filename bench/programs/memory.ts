/**
 * What idle connections take of two processes: a server, and a client with many connections to it.
 *
 *     memory.ts serve ADDRESS COUNT     listens, prints "ready" and its address, serves
 *     memory.ts connect ADDRESS COUNT   connects so often, prints what both took ({@linkcode MemoryResult})
 *
 * Each connection has carried a message in both directions and then waits for the next. What is counted is the growth
 * from the first {@linkcode FIRST} connections to those and COUNT more, so that what is there once is not counted.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import process from "node:process";
import { RDMA } from "../../ffi/layout.ts";
import { type Channel, connect, listen, Pool } from "../../mod.ts";

/** Of a process, in KiB. */
export interface Usage {
  /** Proportional set size: pages that are shared count for each process in parts. */
  pss: number;
  rss: number;
  /** Of the proportional size, what is in rings: shared memory of `shm://`; of `rdma://` the registered slots and the queues
   * that the device's driver has mapped. */
  ring: number;
  /** The kernel's page tables for it. */
  tables: number;
  /** Used in the runtime's heap, after a collection. */
  heap: number;
}

/** KiB a connection, on each side. */
export interface MemoryResult {
  connections: number;
  client: Usage;
  server: Usage;
}

/** The mappings of rings, by their names. */
const RINGS = /memfd:moat-ring|\/dev\/infiniband\//;
/** Connections that are there before anything is counted. */
const FIRST = 16;
const BATCH = 50;

async function usage(): Promise<Usage> {
  const { gc, Bun } = globalThis as { gc?: () => void; Bun?: { gc(force: boolean): void } };
  if (!gc && !Bun) throw new Error("run it with --v8-flags=--expose-gc");
  for (let i = 0; i < 5; i++) {
    if (Bun) Bun.gc(true);
    else gc!();
    await new Promise((done) => setTimeout(done, 50));
  }
  const kib = (text: string, name: string): number =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(text)?.[1] ?? NaN);
  const rollup = readFileSync("/proc/self/smaps_rollup", "utf8");
  const tables = kib(readFileSync("/proc/self/status", "utf8"), "VmPTE");
  // One mapping after the other, each with its name in its first line.
  let ring = 0;
  for (const mapping of readFileSync("/proc/self/smaps", "utf8").split(/^(?=[0-9a-f]+-)/m)) {
    if (RINGS.test(mapping.slice(0, mapping.indexOf("\n")))) {
      ring += kib(mapping, "Pss");
    }
  }
  const { heapUsed } = process.memoryUsage();
  const [pss, rss] = [kib(rollup, "Pss"), kib(rollup, "Rss")];
  return { pss, rss, ring, tables, heap: heapUsed / 1024 };
}

/** The slots of a connection over verbs: anonymous memory, which the device keeps where it is, so all of it counts. */
const SLOTS = Math.ceil(((RDMA.recvSlots + RDMA.sendSlots) * RDMA.slotBytes + 8) / 4096) * 4;

function growth(before: Usage, after: Usage, count: number, slots: boolean): Usage {
  const each = (key: keyof Usage): number => (after[key] - before[key]) / count;
  return {
    ...{ pss: each("pss"), rss: each("rss"), ring: each("ring") + (slots ? SLOTS : 0) },
    ...{ tables: each("tables"), heap: each("heap") },
  };
}

function bytesOf(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value));
}
function valueOf<T>(bytes: Uint8Array): T {
  return JSON.parse(new TextDecoder().decode(bytes)) as T;
}

/** Sends every message back; what asks for the usage is answered with it. */
async function echo(channel: Channel): Promise<void> {
  for await (using message of channel) {
    const asked = valueOf<string>(message.bytes);
    await channel.send(asked === "usage" ? bytesOf(await usage()) : message.bytes);
  }
}

async function serve(address: string): Promise<void> {
  const pool = Pool.create({ bytes: 8 << 20 });
  const listener = await listen(address, { pool, timeout: 60_000 });
  console.log(`ready ${listener.address}`);
  for await (const channel of listener) echo(channel);
}

async function ask<T>(channel: Channel, what: string): Promise<T> {
  await channel.send(bytesOf(what));
  using answer = await channel.recv();
  return valueOf<T>(answer!.bytes);
}

async function client(address: string, count: number): Promise<MemoryResult> {
  const pool = Pool.create({ bytes: 8 << 20 });
  const open = async (count: number): Promise<Channel[]> => {
    const channels: Channel[] = [];
    while (channels.length < count) {
      const some = Math.min(BATCH, count - channels.length);
      channels.push(
        ...await Promise.all(
          Array.from({ length: some }, () => connect(address, { pool, timeout: 60_000 })),
        ),
      );
    }
    for (const channel of channels) await ask(channel, "hello");
    return channels;
  };
  const [channel, ...others] = await open(FIRST);
  const idle = others.map((each) => each.recv());
  await ask<Usage>(channel!, "usage"); // once, for what asking itself takes
  const before = [await usage(), await ask<Usage>(channel!, "usage")] as const;
  idle.push(...(await open(count)).map((each) => each.recv()));
  const after = [await usage(), await ask<Usage>(channel!, "usage")] as const;
  for (const each of idle) each.catch(() => {});
  const slots = address.startsWith("rdma:");
  return {
    connections: count,
    client: growth(before[0], after[0], count, slots),
    server: growth(before[1], after[1], count, slots),
  };
}

const [role, address, count] = process.argv.slice(2) as [string, string, string];
if (role === "serve") await serve(address);
else {
  console.log(JSON.stringify(await client(address, Number(count))));
  process.exit(0);
}
