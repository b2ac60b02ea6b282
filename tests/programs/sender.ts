/**
 * Sends what it is told, when it is told: a process, or a Worker.
 *
 *     sender.ts ADDRESS
 *
 * It is sent {@linkcode Order}s on the channel and ends when the channel does.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { isMainThread, workerData } from "node:worker_threads";
import { connect, type Guard, Pool } from "../../mod.ts";
import { fill } from "../support/bytes.ts";

/** What to send. */
export interface Order {
  /** Milliseconds to wait before the first message. */
  after: number;
  /** The messages, as `fill(…, seed)` makes them, and the offset in the page they are sent from. */
  messages: { seed: number; bytes: number; offset?: number }[];
  /** How they are sent. */
  guard?: Guard;
  /** Closes the channel afterwards. */
  close?: boolean;
}

const address = isMainThread ? process.argv[2]! : workerData as string;
const pool = Pool.create({ bytes: 64 << 20 });
const channel = await connect(address, { pool });

for (let message; (message = await channel.recv());) {
  const order = JSON.parse(Buffer.from(message.bytes).toString()) as Order;
  const { guard = "auto" } = order;
  const views = order.messages.map(({ seed, bytes, offset = 0 }) => {
    const view = pool.alloc(offset + bytes).bytes.subarray(offset);
    fill(view, seed);
    return view;
  });
  await sleep(order.after);
  // The buffers come back by collection, when they have been sent and nobody has a view any more.
  for (const view of views) channel.send(view, { guard }).catch(() => {});
  if (order.close) break;
}
await channel.close();
