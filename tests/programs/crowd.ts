/**
 * Many connections at once, of one pool: `crowd.ts ADDRESS COUNT`. Each sends its number and is sent it back.
 * Prints how many were, and then, for each line it is given on the standard input, nothing until that ends.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import process from "node:process";
import { type Channel, connect, Pool } from "../../mod.ts";
import { say } from "../support/child.ts";

const [address, count] = process.argv.slice(2) as [string, string];
const pool = Pool.create({ bytes: 8 << 20 });
const channels: Channel[] = [];
const BATCH = 50;
for (let i = 0; i < Number(count); i += BATCH) {
  const some = Array.from(
    { length: Math.min(BATCH, Number(count) - i) },
    () => connect(address, { pool, timeout: 20_000 }),
  );
  channels.push(...await Promise.all(some));
}
const echoes = channels.map(async (channel, i) => {
  const text = `this is ${i}`, received = channel.recv();
  await channel.send(Buffer.from(text));
  using message = await received;
  return Buffer.from(message!.bytes).toString() === text;
});
say((await Promise.all(echoes)).filter((right) => right).length);

// All of them wait for a message, and none comes.
const ends = channels.map(async (channel) => {
  const nothing = await channel.recv();
  await channel.close();
  return nothing === null;
});
await new Promise((resolve) => setTimeout(resolve, 300)); // what was to be done after the echoes
const start = process.cpuUsage();
await new Promise((resolve) => setTimeout(resolve, 1000));
const { user, system } = process.cpuUsage(start);
say((user + system) / 1000);
say((await Promise.all(ends)).filter((right) => right).length);
await pool.close();
