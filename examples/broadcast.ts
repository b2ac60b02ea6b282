/**
 * One version to many, while the producer goes on: a picture of 4 MiB that changes all the time is sent to
 * three subscribers, one of which is slow. Each gets whole pictures; nobody waits for anybody.
 *
 *     deno run --allow-ffi --allow-read examples/broadcast.ts
 *     bun examples/broadcast.ts
 *     bun examples/broadcast.ts torn
 *
 * With "torn" there are no snapshots: what they are for.
 *
 * @module
 */
import { once } from "node:events";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { isMainThread, Worker, workerData } from "node:worker_threads";
import { parseArgs } from "node:util";
import { type Channel, connect, listen, Pool, type PoolBuffer } from "../mod.ts";
import { oneOf, run } from "./support/program.ts";

const PICTURES = 40;
const ROWS = 1024, ROW = 4096;
// Milliseconds each subscriber takes to look at a picture.
const DELAYS = [0, 1, 20];

const ADDRESS = `shm://broadcast-${process.pid}`;
const HELP = `
broadcast.ts          sends versions of a picture that changes to three subscribers
broadcast.ts torn     the same without snapshots, which tears pictures: what they are for
`;

const torn = process.argv[2] === "torn";
if (!isMainThread) {
  await subscribe();
} else {
  await run("broadcast", HELP, async () => {
    const { positionals } = parseArgs({ allowPositionals: true });
    if (positionals.length > 0) oneOf("the mode", positionals.join(" "), ["torn"]);
    await produce();
  });
}

async function produce(): Promise<void> {
  await using pool = Pool.create({ bytes: 16 << 20, reserve: 256 << 20 });
  await using listener = await listen(ADDRESS, { pool });
  const channels: Channel[] = [], subscribers: Promise<unknown>[] = [];
  for (const delay of DELAYS) {
    const subscriber = new Worker(new URL(import.meta.url), { workerData: delay });
    const ended = once(subscriber, "exit"); // rejects at an error
    subscribers.push(ended);
    const failed = ended.then(() => {
      throw new Error("a subscriber has ended early");
    });
    channels.push(await Promise.race([listener.accept(), failed]));
  }

  using picture = pool.alloc(ROWS * ROW);
  const sent: Promise<unknown>[] = [], start = performance.now();
  for (let number = 1; number <= PICTURES; number++) {
    await draw(picture, number);
    if (torn) {
      for (const channel of channels) sent.push(channel.send(picture, { guard: "none" }));
    } else {
      using version = picture.snapshot(); // nothing is copied, and nobody is waited for
      for (const channel of channels) sent.push(channel.send(version));
    }
  }
  const drawn = performance.now() - start;
  await Promise.all(sent);
  const all = performance.now() - start, { bytesCopiedOut, privatePages } = pool.stats();
  console.log(
    `producer: ${PICTURES} pictures drawn in ${
      drawn.toFixed(0)
    } ms; the last was let go of after ` +
      `${all.toFixed(0)} ms\n` +
      `producer: ${bytesCopiedOut} bytes copied to send them, ${privatePages} pages because they changed`,
  );
  await Promise.all(channels.map((channel) => channel.close()));
  await Promise.all(subscribers);
}

// Every row says which picture it belongs to. Some rows change, then others get a chance to look.
async function draw(picture: PoolBuffer, number: number): Promise<void> {
  for (let row = 0; row < ROWS; row++) {
    picture.bytes[row * ROW] = number;
    if (row % 256 === 255) await sleep(0);
  }
}

async function subscribe(): Promise<void> {
  const delay = workerData as number;
  await using pool = Pool.create({ bytes: 1 << 20 });
  await using channel = await connect(ADDRESS, { pool });
  let whole = 0, count = 0;
  for await (using message of channel) {
    await sleep(delay);
    count++;
    const { bytes } = message;
    let same = true;
    for (let row = 1; row < ROWS; row++) same &&= bytes[row * ROW] === bytes[0];
    if (same && (bytes[0] === count || torn)) whole++;
  }
  console.log(`subscriber (${delay} ms each): ${count} pictures, ${whole} of them whole`);
}
