/**
 * Receives messages in which every 64-bit word but the last of each page must be the message's number,
 * counts the words that are not, and echoes small ones.
 *
 *     checker.ts ADDRESS
 *
 * @module
 */
import process from "node:process";
import { connect, type Message, Pool } from "../../mod.ts";
import { say } from "../support/child.ts";

const pool = Pool.create({ bytes: 16 << 20 });
const channel = await connect(process.argv[2]!, { pool });
let messages = 0, words = 0, wrong = 0;

function check(message: Message): void {
  if (message.byteLength < 4096) {
    void channel.send(message.bytes);
    message.release();
    return;
  }
  const view = new Float64Array(message.bytes.buffer, 0, message.byteLength / 8);
  for (let at = 0; at < view.length; at++) {
    if (at % 512 === 511) continue;
    words++;
    if (view[at] !== messages) wrong++;
  }
  messages++;
  message.release();
}

// Messages are looked at a little after they came, in order, so that the sender has long gone on; but they
// are not held for longer, because it may be waiting for one of them.
const held: Message[] = [];
const timer = setInterval(() => held.splice(0).forEach(check), 1);
for await (const message of channel) {
  held.push(message);
  if (message.byteLength < 4096 || held.length > 8) held.splice(0).forEach(check);
}
clearInterval(timer);
held.forEach(check);
say({ messages, words, wrong });
await channel.close();
