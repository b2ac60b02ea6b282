/**
 * Says what it received: the SHA-256 of messages that it looks at late.
 *
 *     witness.ts ADDRESS [BYTES]
 *
 * BYTES is the size of its pool: over rdma:// messages come there.
 * It is sent an {@linkcode Order}, then the messages; a message more says that it may look at them. It
 * answers with an {@linkcode Answer} on the channel.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { connect, type Message, Pool } from "../../mod.ts";
import { sha256 } from "../support/bytes.ts";

/** What to do with the next messages. */
export interface Order {
  /** How many. */
  messages: number;
  /** When to look at them: after so many milliseconds, or when another message says so. */
  look: number | "go";
}

/** What the messages were when they were looked at. */
export interface Answer {
  sha256: string[];
}

const pool = Pool.create({ bytes: Number(process.argv[3] ?? 1 << 20) });
const channel = await connect(process.argv[2]!, { pool });

for (let order; (order = await channel.recv());) {
  const { messages, look } = JSON.parse(Buffer.from(order.bytes).toString()) as Order;
  const held: Message[] = [];
  while (held.length < messages) held.push((await channel.recv())!);
  if (look === "go") await channel.recv();
  else await sleep(look);
  const answer: Answer = { sha256: held.map(({ bytes }) => sha256(bytes)) };
  for (const message of held) message.release();
  await channel.send(Buffer.from(JSON.stringify(answer)));
}
await channel.close();
