/**
 * What an operation costs with so many in flight: `inflight.ts ADDRESS PLAN` prints one JSON line
 * ({@linkcode InFlightResult}) for each number of them.
 *
 * An operation is in flight from the call of send() or recv() until its promise is settled. The program keeps `inFlight`
 * of them: it awaits the oldest, then starts the next. How many of these the transport has under way at a time is its
 * own affair: over `shm://` 1,024 descriptors and 16,384 messages not yet released; the others queue, guarded.
 *
 * @module
 */
import process from "node:process";
import { type Channel, connect, Pool } from "../../mod.ts";
import type { PeerMode } from "./peer.ts";

/** What is to be measured. */
export interface InFlightPlan {
  what: "send" | "recv";
  bytes: number;
  /** Of sends. With "auto", a small one is copied into the ring and has completed if there is room; else it queues. */
  guard: "auto" | "cow";
  inFlight: number[];
  rounds: number;
  /** Operations of a round at least; it is never fewer than are in flight. */
  atLeast: number;
}

/** What was measured, by round. */
export interface InFlightResult {
  inFlight: number;
  /** Nanoseconds an operation: of the clock, and of the processor in this process (all its threads). */
  ns: number[];
  cpu: number[];
  /** Different buffers that took turns. */
  buffers: number;
}

/**
 * Different buffers that take turns, whatever is in flight, so that nothing else changes with it; what they have together
 * fits the cache. A buffer can be in flight several times.
 */
const BUFFERS = 1024, MEMORY = 16 << 20;

type Start = (i: number) => Promise<unknown>;

async function open(address: string, pool: Pool, mode: PeerMode): Promise<Channel> {
  const channel = await connect(address, { pool });
  await channel.send(new TextEncoder().encode(JSON.stringify(mode)));
  return channel;
}

async function steady(
  start: Start,
  inFlight: number,
  { rounds, atLeast }: InFlightPlan,
): Promise<Pick<InFlightResult, "ns" | "cpu">> {
  const pending: Promise<unknown>[] = [];
  let i = 0;
  const run = async (count: number): Promise<void> => {
    for (const end = i + count; i < end; i++) {
      const slot = i % inFlight;
      await pending[slot];
      pending[slot] = start(i);
    }
  };
  const count = Math.max(inFlight, atLeast);
  await run(2 * count); // the window is filled, and what runs often is compiled
  const ns: number[] = [], cpu: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const before = process.cpuUsage(), begin = performance.now();
    await run(count);
    ns.push((performance.now() - begin) * 1e6 / count);
    const { user, system } = process.cpuUsage(before);
    cpu.push((user + system) * 1000 / count);
  }
  await Promise.all(pending);
  return { ns, cpu };
}

async function sends(
  address: string,
  plan: InFlightPlan,
  inFlight: number,
): Promise<InFlightResult> {
  const { bytes } = plan, page = 4096;
  const buffers = Math.min(BUFFERS, MEMORY / Math.max(bytes, page));
  const size = buffers * Math.ceil(bytes / page) * page;
  await using pool = Pool.create({ bytes: size, reserve: size });
  await using channel = await open(address, pool, {});
  const data = Array.from({ length: buffers }, () => pool.alloc(bytes));
  for (const buffer of data) buffer.bytes.fill(1);
  const { guard } = plan;
  const start: Start = (i) => channel.send(data[i % buffers]!, { guard });
  return { inFlight, buffers, ...await steady(start, inFlight, plan) };
}

// Each receive has a place of its own, as it must; they are parts of one buffer.
async function receives(
  address: string,
  plan: InFlightPlan,
  inFlight: number,
): Promise<InFlightResult> {
  const { bytes } = plan;
  await using pool = Pool.create({ bytes: inFlight * bytes });
  const channel = await open(address, pool, { flood: bytes });
  const { bytes: memory } = pool.alloc(inFlight * bytes);
  const places = Array.from(
    { length: inFlight },
    (_, i) => memory.subarray(i * bytes, (i + 1) * bytes),
  );
  const start: Start = (i) => channel.recv(places[i % inFlight]!, { guard: "none" });
  const measured = await steady(start, inFlight, plan);
  channel.abort();
  return { inFlight, buffers: inFlight, ...measured };
}

if (import.meta.main) {
  const [address, text] = process.argv.slice(2);
  const plan: InFlightPlan = JSON.parse(text!);
  const measure = plan.what === "send" ? sends : receives;
  // Not to be reported: until both runtimes have compiled what runs often.
  await measure(address!, { ...plan, rounds: 1, atLeast: 5000 }, 100);
  for (const inFlight of plan.inFlight) {
    console.log(JSON.stringify(await measure(address!, plan, inFlight)));
  }
}
