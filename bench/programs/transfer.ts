/**
 * The sending process of the benchmarks of throughput, latency and message rate: `transfer.ts ADDRESS PLAN` prints its
 * result ({@linkcode TransferResult}, {@linkcode LatencyResult} or {@linkcode RateResult}) as one JSON line.
 *
 * @module
 */
import process from "node:process";
import { type Channel, connect, Pool } from "../../mod.ts";
import type { PeerMode } from "./peer.ts";
import { type Quantiles, quantiles } from "../results.ts";
import { median } from "../stats.ts";

/** What is to be measured. */
export interface TransferPlan {
  what: "throughput" | "latency" | "rate";
  /** Bytes of a message. */
  bytes: number;
  /** How long each part takes, in milliseconds. */
  time: number;
  /** Microseconds that recv() looks for a message before it sleeps; for the latency. */
  spin: number;
  /** Which throughputs; both by default. */
  touched?: boolean[];
}

/** Throughput in GB/s (10^9 bytes). */
export interface TransferResult {
  /** Neither side looks at the data. */
  untouched?: number;
  /** The sender writes every byte before it sends, the receiver reads every byte. */
  touched?: number;
}

/** Half round trips in microseconds. */
export interface LatencyResult {
  /** The median of batches of 500, in which looking at the clock (0.1 us with Deno) hardly counts. */
  typical?: number;
  us: Quantiles;
  samples: number;
}

/** Messages a second. */
export interface RateResult {
  rate: number;
}

/** Milliseconds until the runtimes have compiled what runs often; less in a run that is short. */
export function warmUp(time: number): number {
  return Math.min(250, 5 * time);
}

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
  await run(warmUp(time));
  return await run(time);
}

/** Round trips, one message at a time: half of the time in batches, half each for itself. */
async function latency(address: string, plan: TransferPlan): Promise<LatencyResult> {
  const BATCH = 500;
  await using pool = Pool.create({ bytes: 1 << 20 });
  await using channel = await open(address, pool, { echo: true }, plan.spin);
  const data = new Uint8Array(plan.bytes);
  const run = async (milliseconds: number, count: number): Promise<number[]> => {
    const halves: number[] = [], end = performance.now() + milliseconds;
    for (let start; (start = performance.now()) < end || halves.length === 0;) {
      for (let i = 0; i < count; i++) {
        channel.send(data);
        (await channel.recv())!.release();
      }
      halves.push((performance.now() - start) * 1000 / count / 2);
    }
    return halves;
  };
  await run(warmUp(plan.time), 1);
  const batches = await run(plan.time / 2, BATCH), each = await run(plan.time / 2, 1);
  return { typical: median(batches), us: quantiles(each), samples: each.length };
}

/** A stream of small messages, until the receiver has had the last of them. */
async function rate(address: string, plan: TransferPlan): Promise<RateResult> {
  const BATCH = 256;
  await using pool = Pool.create({ bytes: 1 << 20 });
  await using channel = await open(address, pool, {});
  const data = new Uint8Array(plan.bytes).fill(1), last = pool.alloc(64 << 10);
  const run = async (milliseconds: number): Promise<number> => {
    const start = performance.now();
    let messages = 0;
    while (performance.now() - start < milliseconds) {
      let sent;
      for (let i = 0; i < BATCH; i++) sent = channel.send(data);
      messages += BATCH;
      await sent; // at once if there was room for it
    }
    await channel.send(last, { guard: "none" }); // too large to be copied: it ends when it was received
    return messages / (performance.now() - start) * 1000;
  };
  await run(warmUp(plan.time));
  return { rate: await run(plan.time) };
}

if (import.meta.main) {
  const [address, text] = process.argv.slice(2);
  const plan: TransferPlan = JSON.parse(text!), { touched = [false, true] } = plan;
  if (plan.what === "latency") console.log(JSON.stringify(await latency(address!, plan)));
  else if (plan.what === "rate") console.log(JSON.stringify(await rate(address!, plan)));
  else {
    const result: TransferResult = {};
    for (const touch of touched) {
      const speed = await throughput(address!, plan.bytes, touch, plan.time);
      result[touch ? "touched" : "untouched"] = speed;
    }
    console.log(JSON.stringify(result));
  }
}
