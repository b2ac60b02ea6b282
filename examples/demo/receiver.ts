/**
 * The demo's receiver: hashes a file that arrives in messages: over shared memory in the sender's own pages,
 * over RDMA in pages of its pool.
 *
 *     deno run --allow-ffi examples/demo/receiver.ts ADDRESS BEHIND SIZE
 *
 * BEHIND is how many messages it lets pass before it looks at one, SIZE what a message has at most in bytes.
 * Needs a sender, see sender.ts.
 *
 * @module
 */
import { createHash } from "node:crypto";
import process from "node:process";
import { type Channel, listen, type Message, Pool } from "../../mod.ts";
import { endWithParent, tell } from "./child.ts";

const [address = "", behindText, sizeText] = process.argv.slice(2);
const behind = Number(behindText), size = Number(sizeText);

endWithParent();
await receive();
process.exit(0);

async function receive(): Promise<void> {
  // Over shared memory messages are read where they lie, in the sender's pool: this one is then only for what
  // would be sent back. Over RDMA they come here: those that wait to be looked at, and one more that arrives.
  const room = (behind + 2) * Math.ceil(size / (2 << 20)) * (2 << 20);
  await using pool = Pool.create({ bytes: address.startsWith("shm:") ? 1 << 20 : room });
  await using channel = await acceptOne(pool);

  const start = performance.now(), hash = createHash("sha256");
  let bytes = 0, messages = 0, told = start;
  const digest = (message: Message): void => {
    using _ = message; // released at the end: only then has its send completed
    hash.update(message.bytes);
    bytes += message.byteLength;
    messages++;
    const now = performance.now();
    if (now - told < 50) return;
    told = now;
    tell({ received: bytes });
  };

  // To be late for certain: a message is looked at only when `behind` others have come after it. The sender
  // overwrites each buffer before it sends the next one, so with one or more it has been overwritten in any
  // case, and without a guard the hash cannot be that of the file. No clock is involved.
  const waiting: Message[] = [];
  for await (const message of channel) {
    if (message.byteLength === 0) break; // that was all, and all of it has been overwritten
    waiting.push(message);
    if (waiting.length > behind) digest(waiting.shift()!);
  }
  for (const message of waiting) digest(message);

  const milliseconds = performance.now() - start, stats = pool.stats();
  tell({
    report: {
      bytes,
      messages,
      milliseconds,
      sha256: hash.digest("hex"),
      bytesCopied: stats.bytesCopiedIn,
    },
  });
}

async function acceptOne(pool: Pool): Promise<Channel> {
  await using listener = await listen(address, { pool });
  tell({ listening: listener.address });
  return await listener.accept();
}
