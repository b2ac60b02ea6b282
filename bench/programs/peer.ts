/**
 * The receiving process of the benchmarks: `peer.ts ADDRESS [SPIN [BYTES]]`. It prints "ready" and its address once it
 * listens, and serves channels until it is killed. BYTES is the size of its pool, where messages over
 * rdma:// come; 1 MiB by default.
 *
 * The first message of a channel says as JSON what is to be done with those that follow; a message of
 * one byte makes it let go of all it holds.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import process from "node:process";
import { type Channel, listen, type Message, Pool } from "../../mod.ts";

/** What a peer does with messages. */
export interface PeerMode {
  /** Each message is released when this many others have come after it. */
  hold?: number;
  /** Every byte of each message is read: see {@linkcode readAll}. */
  read?: boolean;
  /** Each message is sent back. */
  echo?: boolean;
  /** For each message one of so many bytes is sent, from one buffer. */
  serve?: number;
  /** Messages of so many bytes are sent until the channel is closed. */
  flood?: number;
}

/** How {@linkcode readAll} reads, to be printed with the results. */
export const READING = {
  deno: "Buffer.compare with an equal reference, 64 KiB at a time",
  bun: "Uint8Array.indexOf of an absent byte",
} as const;

// What memory of one value must be equal to. 64 KiB stay in the cache beside the message.
const REFERENCE = 64 << 10;
const references = new Map<number, Uint8Array>();

/**
 * Reads every byte of a message that is filled with one value, and checks it. Each runtime does it in
 * the fastest way it was found to have: V8's indexOf and loops over typed arrays read 4 to 32 GB/s where
 * memcmp reads 60, JavaScriptCore's indexOf 95 (measured on an EPYC 9005 from its cache).
 */
export function readAll(bytes: Uint8Array): void {
  const value = bytes[0]!;
  let right = true;
  if ("Bun" in globalThis) right = bytes.indexOf(value ^ 0xff) < 0;
  else {
    let reference = references.get(value);
    if (!reference) references.set(value, reference = new Uint8Array(REFERENCE).fill(value));
    for (let at = 0; at < bytes.length; at += REFERENCE) {
      const piece = bytes.subarray(at, at + REFERENCE);
      right &&= Buffer.compare(piece, reference.subarray(0, piece.length)) === 0;
    }
  }
  if (!right) throw new Error(`a message of ${bytes.length} bytes holds more than one value`);
}

async function answer(channel: Channel, bytes: number): Promise<void> {
  using buffer = channel.pool.alloc(bytes);
  buffer.bytes.fill(1);
  for await (const request of channel) {
    request.release();
    await channel.send(buffer, { guard: "none" });
  }
  await channel.close();
}

// The window is small, because what is measured is the other side.
async function flood(channel: Channel, bytes: number): Promise<void> {
  const WINDOW = 256, sent: Promise<unknown>[] = [];
  const buffer = channel.pool.alloc(bytes);
  buffer.bytes.fill(1);
  try {
    for (let i = 0;; i++) {
      await sent[i % WINDOW];
      sent[i % WINDOW] = channel.send(buffer);
    }
  } catch {
    await Promise.allSettled(sent); // the other side has closed: that is the end
  } finally {
    channel.abort();
    buffer.free();
  }
}

async function serve(channel: Channel): Promise<void> {
  using first = await channel.recv();
  if (first === null) return;
  const mode: PeerMode = JSON.parse(new TextDecoder().decode(first.bytes));
  const { hold = 0, read = false, echo = false } = mode;
  if (mode.serve) return await answer(channel, mode.serve);
  if (mode.flood) return await flood(channel, mode.flood);
  const held: Message[] = [];
  for (let message; (message = await channel.recv()) !== null;) {
    if (echo) {
      channel.send(message.bytes);
      message.release();
    } else if (message.byteLength === 1) {
      message.release();
      for (const each of held.splice(0)) each.release();
    } else {
      if (read) readAll(message.bytes);
      held.push(message);
      if (held.length > hold) held.shift()!.release();
    }
  }
  await channel.close();
}

if (import.meta.main) {
  const [address, spin = "0", bytes = "1048576"] = process.argv.slice(2);
  const pool = Pool.create({ bytes: Number(bytes) });
  const listener = await listen(address!, { pool, spin: Number(spin) });
  console.log(`ready ${listener.address}`);
  for await (const channel of listener) serve(channel);
}
