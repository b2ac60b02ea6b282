/**
 * The demo's sender: sends a file in messages and overwrites each buffer as soon as `send` has returned.
 *
 *     deno run --allow-ffi --allow-read examples/demo/sender.ts ADDRESS FILE SIZE GUARD overwrite
 *
 * SIZE is that of a message in bytes. Without `overwrite` the buffers are left alone until they have been
 * sent. Needs a receiver that listens, see receiver.ts.
 *
 * @module
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import process from "node:process";
import { connect, type Guard, Pool, type PoolBuffer, type SendResult } from "../../mod.ts";
import { endWithParent, tell } from "./child.ts";

/** Buffers in rotation: as many messages may be in flight. More than the receiver keeps waiting. */
const BUFFERS = 8;

const [address = "", file = "", sizeText, guardText, overwriteText] = process.argv.slice(2);
const size = Number(sizeText),
  guard = guardText as Guard,
  overwrite = overwriteText === "overwrite";

endWithParent();
await send();
process.exit(0);

async function send(): Promise<void> {
  // A pool likes to begin large buffers at multiples of 2 MiB. As much again in reserve as there is in buffers,
  // for a private page or a copy of every page in flight.
  const room = BUFFERS * Math.ceil(size / (2 << 20)) * (2 << 20);
  await using pool = Pool.create({ bytes: room, reserve: room });
  await using channel = await connect(address, { pool });

  const buffers = Array.from({ length: BUFFERS }, () => pool.alloc(size));
  const sends: (Promise<SendResult> | undefined)[] = [];
  const fd = openSync(file, "r");
  const total = fstatSync(fd).size;
  let messages = 0, milliseconds = 0;
  for (let sent = 0; sent < total; messages++) {
    const turn = messages % BUFFERS, bytes = Math.min(size, total - sent);
    // The kernel is about to write into the buffer, and for the kernel no guard waits. So its last send has
    // to be awaited, and `buf.bytes` taken again, which gives back the permission to write.
    await sends[turn];
    if (guard === "move") buffers[turn] = renew(pool, buffers[turn]!, bytes);
    const buf = buffers[turn]!;
    readWhole(fd, buf.bytes.subarray(0, bytes));
    const other = buf.bytes[0]! ^ 0xff;

    const start = performance.now();
    sends[turn] = channel.send(bytes < buf.byteLength ? buf.bytes.subarray(0, bytes) : buf, {
      guard,
    });
    // In flight, and overwritten all the same. What was moved is not ours to write to: its view is detached.
    if (overwrite && !buf.freed) buf.bytes.fill(other);
    milliseconds += performance.now() - start;
    sent += bytes;
  }
  closeSync(fd);
  // An empty message says that this was all: it comes after everything has been overwritten.
  sends.push(channel.send(new Uint8Array(0)));
  await Promise.all(sends);

  const stats = pool.stats();
  const pageSize = room / stats.reserveFrames;
  tell({
    report: {
      bytes: total,
      messages,
      milliseconds,
      faults: stats.faults.reads + stats.faults.writes,
      privatePages: stats.privatePages,
      bytesCopied: stats.bytesCopiedOut + (stats.privatePages + stats.mendedPages) * pageSize,
    },
  });
}

// Another buffer in the place of one that was given away (or has not been used yet).
function renew(pool: Pool, old: PoolBuffer, bytes: number): PoolBuffer {
  if (!old.freed) old.free();
  return pool.alloc(bytes);
}

// The kernel reads straight into the pool's pages.
function readWhole(fd: number, into: Uint8Array): void {
  for (let at = 0; at < into.length;) {
    const got = readSync(fd, into, at, into.length - at, null);
    if (got === 0) throw new Error(`${file} has become shorter while it was being read`);
    at += got;
  }
}
