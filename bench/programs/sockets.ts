/**
 * The same measurements with the runtime's own sockets:
 *
 *     sockets.ts serve KIND          listens on "tcp" or "unix", prints where as JSON, serves
 *     sockets.ts measure WHERE PLAN  prints its results as `transfer.ts` and `overlap.ts` do
 *
 * The first 16 bytes of a connection say what it is for: a {@linkcode Service} and a number of bytes.
 *
 * @module
 */
import process from "node:process";
import { quantiles } from "../results.ts";
import { type Begun, measureOverlap } from "../support/overlap.ts";
import { type Kind, ownSockets, type PlainSocket, type Where } from "../support/plain.ts";
import type { OverlapPlan, OverlapResult } from "./overlap.ts";
import { readAll } from "./peer.ts";
import {
  type LatencyResult,
  type RateResult,
  type TransferPlan,
  type TransferResult,
  warmUp,
} from "./transfer.ts";

/** What is measured: see {@linkcode TransferPlan} and {@linkcode OverlapPlan}. */
export type SocketPlan = TransferPlan | (OverlapPlan & { what: "overlap" });

/** What the server does. */
enum Service {
  /** Reads and does not look. */
  Drain,
  /** Reads messages and looks at every byte. */
  Read,
  /** Sends messages back. */
  Echo,
  /** Reads a message, looks at every byte, answers with one. */
  Acknowledge,
  /** For each byte sends a message. */
  Send,
}

const BYTE = new Uint8Array(1);

async function serve(socket: PlainSocket): Promise<void> {
  const head = new Uint8Array(16);
  if (!await socket.read(head)) return;
  const view = new DataView(head.buffer);
  const service: Service = view.getUint32(0, true), bytes = view.getUint32(8, true);
  if (service === Service.Drain) return await socket.drain();
  const message = new Uint8Array(bytes).fill(1);
  if (service === Service.Send) {
    while (await socket.read(BYTE)) await socket.write(message);
    return;
  }
  while (await socket.read(message)) {
    if (service !== Service.Echo) readAll(message);
    if (service === Service.Echo) await socket.write(message);
    else if (service === Service.Acknowledge) await socket.write(BYTE);
  }
}

async function open(where: Where, service: Service, bytes: number): Promise<PlainSocket> {
  const socket = await ownSockets.connect(where), head = new DataView(new ArrayBuffer(16));
  head.setUint32(0, service, true);
  head.setUint32(8, bytes, true);
  await socket.write(new Uint8Array(head.buffer));
  return socket;
}

async function stream(
  where: Where,
  bytes: number,
  touch: boolean,
  time: number,
): Promise<number> {
  const socket = await open(where, touch ? Service.Read : Service.Drain, bytes);
  const buffer = new Uint8Array(bytes).fill(1);
  const run = async (milliseconds: number): Promise<number> => {
    const start = performance.now();
    let count = 0;
    for (; count === 0 || performance.now() - start < milliseconds; count++) {
      if (touch) buffer.fill(count);
      await socket.write(buffer);
    }
    return count * bytes / (performance.now() - start) / 1e6;
  };
  await run(warmUp(time));
  const speed = await run(time);
  socket.close();
  return speed;
}

async function throughput(where: Where, plan: TransferPlan): Promise<TransferResult> {
  const result: TransferResult = {};
  for (const touch of plan.touched ?? [false, true]) {
    result[touch ? "touched" : "untouched"] = await stream(where, plan.bytes, touch, plan.time);
  }
  return result;
}

async function latency(where: Where, { bytes, time }: TransferPlan): Promise<LatencyResult> {
  const socket = await open(where, Service.Echo, bytes);
  const data = new Uint8Array(bytes), back = new Uint8Array(bytes), halves: number[] = [];
  const warm = performance.now() + warmUp(time), end = warm + time;
  for (let start; (start = performance.now()) < end || halves.length === 0;) {
    const answer = socket.read(back);
    await Promise.all([socket.write(data), answer]);
    if (start > warm) halves.push((performance.now() - start) * 1000 / 2);
  }
  socket.close();
  return { us: quantiles(halves), samples: halves.length };
}

// A write for each message: what a program does that has them one at a time.
async function rate(where: Where, { bytes, time }: TransferPlan): Promise<RateResult> {
  const socket = await open(where, Service.Read, bytes), data = new Uint8Array(bytes).fill(1);
  const run = async (milliseconds: number): Promise<number> => {
    const start = performance.now();
    let messages = 0;
    while (performance.now() - start < milliseconds) {
      for (let i = 0; i < 64; i++) await socket.write(data);
      messages += 64;
    }
    return messages / (performance.now() - start) * 1000;
  };
  await run(warmUp(time));
  const result = await run(time);
  socket.close();
  return { rate: result };
}

async function overlaps(where: Where, { sizes, rounds }: OverlapPlan): Promise<OverlapResult[]> {
  const results: OverlapResult[] = [];
  for (const bytes of sizes) {
    const buffer = new Uint8Array(bytes).fill(1), answer = new Uint8Array(1);
    for (const side of ["sender", "receiver"] as const) {
      const sends = side === "sender";
      const socket = await open(where, sends ? Service.Acknowledge : Service.Send, bytes);
      const times = await measureOverlap(rounds, (): Begun => {
        const received = socket.read(sends ? answer : buffer);
        const sent = socket.write(sends ? buffer : BYTE);
        return { finish: () => Promise.all([received, sent]) };
      });
      results.push({ bytes, side, end: "await", ...times });
      socket.close();
    }
  }
  return results;
}

const [role, first, second] = process.argv.slice(2) as [string, string, string];
if (role === "serve") {
  console.log(JSON.stringify(await ownSockets.listen(first as Kind, serve)));
} else {
  const where: Where = JSON.parse(first), plan: SocketPlan = JSON.parse(second);
  const results = plan.what === "overlap"
    ? await overlaps(where, plan)
    : plan.what === "latency"
    ? [await latency(where, plan)]
    : plan.what === "rate"
    ? [await rate(where, plan)]
    : [await throughput(where, plan)];
  for (const result of results) console.log(JSON.stringify(result));
  process.exit(0);
}
