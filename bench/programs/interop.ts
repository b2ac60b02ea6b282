/**
 * The processes of the interoperation benchmark: a file server and its client.
 *
 *     interop.ts serve ADDRESS PLAN     listens, prints "ready", sends the file, prints its usage
 *     interop.ts fetch ADDRESS PLAN     connects, stores the file, prints its usage
 *
 * What is copied is what the plan says: between file and program, between program and network, both or neither.
 *
 * @module
 */
import { closeSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";
import process from "node:process";
import { type Channel, connect, listen, Pool, type PoolBuffer } from "../../mod.ts";

/** What is to be done. */
export interface InteropPlan {
  /** The file to be served, and where the client stores it. */
  source: string;
  target: string;
  bytes: number;
  /** Bytes of a message, and how many are under way at once. */
  message: number;
  depth: number;
  /** Data is copied between the page cache and the program, by read(2) and write(2). */
  copyFile: boolean;
  /** Data is copied before it is sent and after it was received. */
  copyNetwork: boolean;
}

/** What it took, as one JSON line. */
export interface InteropUsage {
  /** Of the process, in microseconds, user and system, while it was at work. */
  cpu: number;
  milliseconds: number;
  /** Bytes that went past the page cache, and that our own code copied. */
  direct: number;
  copied: number;
}

// What the work takes of a process: its threads, the kernel's on its behalf, and its waiting.
async function measured(pool: Pool, work: () => Promise<number>): Promise<InteropUsage> {
  const before = process.cpuUsage(), start = performance.now();
  const direct = await work();
  const { user, system } = process.cpuUsage(before);
  const { bytesCopiedIn, bytesCopiedOut } = pool.stats();
  return {
    cpu: user + system,
    milliseconds: performance.now() - start,
    direct,
    copied: bytesCopiedIn + bytesCopiedOut,
  };
}

// Sends the file in order. Reading is ahead of sending by as many buffers as there are; a buffer is used again when
// it has been sent.
async function serve(channel: Channel, pool: Pool, plan: InteropPlan): Promise<number> {
  const { bytes, message, depth, copyFile, copyNetwork } = plan;
  const buffers: PoolBuffer[] = Array.from({ length: depth }, () => pool.alloc(message));
  const fd = openSync(plan.source, "r"), guard = copyNetwork ? "copy" : "cow";
  await using file = pool.open(plan.source);
  const busy: Promise<unknown>[] = [];
  let direct = 0, turn: Promise<unknown> = Promise.resolve();
  for (let at = 0, i = 0; at < bytes; at += message, i++) {
    const slot = i % depth;
    await busy[slot];
    const data = buffers[slot]!.bytes.subarray(0, Math.min(message, bytes - at));
    const read = copyFile
      ? readSync(fd, data, 0, data.length, at)
      : file.read(data, at, { guard: "none" }).then((result) => direct += result.direct);
    const sent = Promise.all([read, turn]).then(() => ({ done: channel.send(data, { guard }) }));
    turn = sent;
    busy[slot] = sent.then(({ done }) => done);
  }
  await Promise.all(busy);
  closeSync(fd);
  return direct;
}

async function fetchFile(channel: Channel, pool: Pool, plan: InteropPlan): Promise<number> {
  const { bytes, message, depth, copyFile, copyNetwork } = plan;
  const fd = openSync(plan.target, "w");
  ftruncateSync(fd, bytes);
  await using file = pool.open(plan.target, { write: true });
  const copies = Array.from({ length: copyNetwork ? depth : 0 }, () => pool.alloc(message));
  const busy: Promise<unknown>[] = [];
  let direct = 0;
  for (let at = 0, i = 0; at < bytes; i++) {
    const slot = i % depth;
    await busy[slot];
    const received = (await channel.recv())!, part = received.byteLength;
    let data: Uint8Array = received.bytes;
    if (copyNetwork) {
      const copy = copies[slot]!.bytes.subarray(0, part);
      copy.set(received.bytes);
      received.release();
      data = copy;
    }
    if (copyFile) {
      writeSync(fd, data, 0, part, at);
      received.release();
    } else {
      busy[slot] = file.write(data, at, { guard: "none" }).then((result) => {
        direct += result.direct;
        received.release();
      });
    }
    at += part;
  }
  await Promise.all(busy);
  closeSync(fd);
  return direct;
}

if (import.meta.main) {
  const [role, address, text] = process.argv.slice(2) as [string, string, string];
  const plan: InteropPlan = JSON.parse(text), { message, depth } = plan;
  const pool = Pool.create({ bytes: 4 * message * depth, reserve: 2 * message * depth });
  let channel: Channel;
  if (role === "serve") {
    const listener = await listen(address, { pool });
    console.log(JSON.stringify({ ready: listener.address }));
    channel = await listener.accept();
    await listener.close();
  } else {
    channel = await connect(address, { pool });
  }
  const work = role === "serve" ? serve : fetchFile;
  const usage = await measured(pool, () => work(channel, pool, plan));
  console.log(JSON.stringify(usage));
  await channel.close();
  await pool.close();
}
