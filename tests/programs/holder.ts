/**
 * Receives messages, and holds each until a line comes on its standard input: the sender decides what happens
 * meanwhile.
 *
 *     holder.ts ADDRESS     for every line: receives, says the length; at the next line, releases and says so
 */
import process from "node:process";
import { createInterface } from "node:readline";
import { connect, type Message, Pool } from "../../mod.ts";
import { say } from "../support/child.ts";

await using pool = Pool.create({ bytes: 64 << 20 });
await using channel = await connect(process.argv[2]!, { pool });
say("connected");
let held: Message | null = null;
for await (const _ of createInterface({ input: process.stdin })) {
  if (held) {
    held.release();
    held = null;
    say("released");
  } else {
    held = await channel.recv();
    say(held!.byteLength);
  }
}
