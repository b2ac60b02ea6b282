/**
 * One thread sends a buffer and goes on using it; another reads a buffer before its message is there.
 *
 *     deno run --allow-ffi --allow-read examples/quickstart.ts
 *     bun examples/quickstart.ts
 *
 * The two could as well be two processes. (Reading files is permitted for the Worker's program.)
 *
 * @module
 */
import process from "node:process";
import { isMainThread, Worker } from "node:worker_threads";
import { connect, listen, Pool } from "../mod.ts";

const ADDRESS = `shm://quickstart-${process.pid}`;

await (isMainThread ? receive() : send());

async function receive(): Promise<void> {
  await using pool = Pool.create({ bytes: 16 << 20 });
  await using listener = await listen(ADDRESS, { pool });
  const fail = (error: Error): never => {
    throw error;
  };
  new Worker(new URL(import.meta.url)).on("error", fail);
  await using channel = await listener.accept();

  using buf = pool.alloc(1 << 20);
  const received = channel.recv(buf); // returns at once
  const first = buf.bytes[0]; // waits, in the middle of this line, until the message is there
  console.log(`received: ${(await received)?.bytes} bytes, each of them ${first}`);
}

async function send(): Promise<void> {
  await using pool = Pool.create({ bytes: 16 << 20 });
  await using channel = await connect(ADDRESS, { pool });

  using buf = pool.alloc(1 << 20);
  buf.bytes.fill(7);
  const sent = channel.send(buf, { guard: "cow" }); // returns at once
  buf.bytes.fill(8); // goes to private copies of the pages: what is sent stays 7
  const { bytes, zeroCopy } = await sent;
  console.log(`sent: ${bytes} bytes, ${zeroCopy ? "from where they were" : "copied"}`);
}
