/**
 * Sends buffers and overwrites them at once; receives into buffers and touches them at once. It does what it
 * is told on one channel, by an {@linkcode Order}, with the data of another, and says how it went.
 *
 *     overwriter.ts ADDRESS [ERRNO]
 *
 * With ERRNO io_uring_setup(2) fails with that.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import process from "node:process";
import { connect, type Guard, Pool } from "../../mod.ts";
import { coreOf } from "../../lib/memory/pool.ts";
import { ringOf } from "../../lib/ring.ts";
import { fill, sha256 } from "../support/bytes.ts";
import { forbidIoUring } from "../support/no_io_uring.ts";

/** What to do. */
export type Order =
  | { act: "send"; guard: Guard; size: number; offset: number; plug: number }
  | { act: "receive"; size: number; offset: number };

/** How it went. Hashes of the bytes at the call, and after the program wrote; or as it read them. */
export interface Result {
  before?: string;
  written?: string;
  read?: string;
  waits: number;
  privatePages: number;
  freeFrames: number;
  reserveFrames: number;
  bytesAvailable: number;
  transport: string;
}

const [address, errno] = process.argv.slice(2) as [string, string | undefined];
if (errno) forbidIoUring(Number(errno));
const MIB = 1 << 20;
const pool = Pool.create({ bytes: 80 * MIB, reserve: 48 * MIB });
// A ring that is there is used, also where it is of no use.
if (!errno) ringOf(coreOf(pool));
const control = await connect(address, { pool }), data = await connect(address, { pool });
const plug = pool.alloc(16 * MIB);
fill(plug.bytes, 9);
const say = (value: unknown): unknown => control.send(Buffer.from(JSON.stringify(value)));

async function send(
  { guard, size, offset, plug: pieces }: Order & { act: "send" },
): Promise<object> {
  const buf = pool.alloc(offset + size), view = buf.bytes.subarray(offset);
  fill(buf.bytes, 3);
  fill(view, 1);
  const before = sha256(guard === "move" ? buf.bytes : view);
  // What the sockets' buffers take, and more, is in the way.
  const plugs = Array.from({ length: pieces }, () => data.send(plug, { guard: "none" }));
  const sent = data.send(guard === "move" ? buf : view, { guard });
  say("posted");
  if (guard === "move") {
    using next = pool.alloc(offset + size);
    next.bytes.fill(0xee);
  } else {
    fill(view, 2);
  }
  say("written");
  await Promise.all([...plugs, sent]);
  const written = guard === "move" ? "" : sha256(view);
  if (guard !== "move") buf.free();
  return { before, written };
}

async function receive({ size, offset }: Order & { act: "receive" }): Promise<object> {
  using buf = pool.alloc(offset + size);
  const view = buf.bytes.subarray(offset);
  const got = data.recv(view);
  say("posted");
  const read = sha256(view); // waits here, and nothing of JavaScript runs meanwhile
  await got;
  return { read };
}

for (let message; (message = await control.recv());) {
  const order = JSON.parse(Buffer.from(message.bytes).toString()) as Order, start = pool.stats();
  const result = order.act === "send" ? await send(order) : await receive(order);
  const { waits, privatePages, freeFrames, reserveFrames, bytesAvailable } = pool.stats();
  say({
    ...result,
    waits: waits.count - start.waits.count,
    privatePages: privatePages - start.privatePages,
    freeFrames,
    reserveFrames,
    bytesAvailable,
    transport: data.transport,
  });
}
await Promise.all([control.close(), data.close()]);
