/**
 * The sending process of the throughput and latency benchmarks: `transfer.ts ADDRESS PLAN` prints its
 * result ({@linkcode TransferResult} or {@linkcode LatencyResult}) as one JSON line.
 *
 * @module
 */
import process from "node:process";
import { type Channel, connect, Pool } from "../mod.ts";
import type { PeerMode } from "./peer.ts";
import { median } from "./stats.ts";

/** What is to be measured: throughput with messages of `bytes`, or latency if `bytes` is 8. */
export interface TransferPlan {
  bytes: number;
  /** How long each part takes, in milliseconds. */
  time: number;
  /** Microseconds that recv() looks for a message before it sleeps; for the latency. */
  spin: number;
}

/** Throughput in GB/s (10^9 bytes). */
export interface TransferResult {
  /** Neither side looks at the data. */
  untouched: number;
  /** The sender writes every byte before it sends, the receiver reads every byte. */
  touched: number;
}

/** Half a round trip in microseconds: the median of batches. */
export interface LatencyResult {
  us: number;
}

/** The size that stands for the latency. */
const LATENCY_BYTES = 8;
/** Milliseconds until the runtimes have compiled what runs often. */
const WARM_UP = 250;

async function open(address: string, pool: Pool, mode: PeerMode, spin = 0): Promise<Channel> {
  const channel = await connect(address, { pool, spin });
  await channel.send(new TextEncoder().encode(JSON.stringify(mode)));
  return channel;
}

/** As many buffers as fit 16 MiB of cache, 2 to 16 of them; each is used again when it was released. */
async function throughput(
  address: string,
  bytes: number,
  touch: boolean,
  time: number,
): Promise<number> {
  const count = Math.max(2, Math.min(16, (16 << 20) / bytes));
  await using pool = Pool.create({ bytes: count * bytes });
  await using channel = await open(address, pool, { read: touch });
  const buffers = Array.from({ length: count }, () => pool.alloc(bytes));
  for (const buffer of buffers) buffer.bytes.fill(1);

  const run = async (milliseconds: number): Promise<number> => {
    const sent: Promise<unknown>[] = [];
    const start = performance.now();
    let messages = 0;
    for (; messages < count || performance.now() - start < milliseconds; messages++) {
      const slot = messages % count, buffer = buffers[slot]!;
      await sent[slot];
      if (touch) buffer.bytes.fill(messages);
      sent[slot] = channel.send(buffer);
    }
    await Promise.all(sent);
    return messages * bytes / (performance.now() - start) / 1e6;
  };
  await run(WARM_UP);
  return await run(time);
}

/** Batches of round trips, one message at a time. */
async function latency(address: string, plan: TransferPlan): Promise<number> {
  const BATCH = 500;
  await using pool = Pool.create({ bytes: 1 << 20 });
  await using channel = await open(address, pool, { echo: true }, plan.spin);
  const data = new Uint8Array(LATENCY_BYTES), batches: number[] = [];
  const warm = performance.now() + WARM_UP, end = warm + plan.time;
  for (let start; (start = performance.now()) < end || batches.length === 0;) {
    for (let i = 0; i < BATCH; i++) {
      channel.send(data);
      (await channel.recv())!.release();
    }
    if (start > warm) batches.push((performance.now() - start) * 1000 / BATCH / 2);
  }
  return median(batches);
}

if (import.meta.main) {
  const [address, text] = process.argv.slice(2);
  const plan: TransferPlan = JSON.parse(text!);
  const result: TransferResult | LatencyResult = plan.bytes === LATENCY_BYTES
    ? { us: await latency(address!, plan) }
    : {
      untouched: await throughput(address!, plan.bytes, false, plan.time),
      touched: await throughput(address!, plan.bytes, true, plan.time),
    };
  console.log(JSON.stringify(result));
}
