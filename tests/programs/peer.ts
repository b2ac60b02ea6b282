/**
 * The other side of many tests: connects to an address and does what it is told by its arguments.
 *
 *     peer.ts ADDRESS hold MS        receives and holds everything, and kills itself MS after the first message
 *     peer.ts ADDRESS release        receives and releases at once, until the end
 *     peer.ts ADDRESS silent MS      neither receives nor sends, and kills itself after MS
 *     peer.ts ADDRESS dribble MS     sends messages of 1 MiB without end, and kills itself after MS
 */
import process from "node:process";
import { connect, type Message, Pool } from "../../mod.ts";
import { say } from "../support/child.ts";

const [address, mode, ms] = process.argv.slice(2) as [string, string, string];
const pool = Pool.create({ bytes: 64 << 20 });
const channel = await connect(address, { pool });
say("connected");
const dieLater = (): unknown => setTimeout(() => process.kill(process.pid, "SIGKILL"), Number(ms));
if (ms && mode !== "hold") dieLater();
if (mode === "hold") {
  const held: Message[] = [];
  for await (const message of channel) {
    if (held.push(message) === 1) dieLater();
  }
} else if (mode === "release") {
  for await (using message of channel) void message.byteLength;
  await channel.close();
} else if (mode === "dribble") {
  const buf = pool.alloc(1 << 20);
  for (;;) {
    buf.bytes.fill(1);
    await channel.send(buf, { guard: "cow" });
  }
} else {
  await new Promise(() => setInterval(() => {}, 1000));
}
