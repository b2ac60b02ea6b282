/**
 * The ends of a transfer between two hosts.
 *
 *     transfer.ts receive ADDRESS          listens, and says the SHA-256 of all that came
 *     transfer.ts send ADDRESS BYTES       sends so many in messages of 1 MiB, each overwritten at once
 *     transfer.ts survive ADDRESS          listens, keeps sends and receives in flight, and says how they ended
 *     transfer.ts wait ADDRESS             listens, and touches a buffer whose message does not come
 *     transfer.ts silent ADDRESS           connects, and neither sends nor receives
 *
 * @module
 */
import { createHash } from "node:crypto";
import process from "node:process";
import { type Channel, connect, listen, MoatError, Pool } from "../../mod.ts";
import { fill } from "../support/bytes.ts";
import { say } from "../support/child.ts";

const MIB = 1 << 20, BUFFERS = 8;
const [role = "", address = "", bytesText] = process.argv.slice(2);
const pool = Pool.create({ bytes: 32 * MIB });

const roles: Record<string, () => Promise<void>> = {
  async receive(): Promise<void> {
    const channel = await acceptOne(), hash = createHash("sha256");
    let bytes = 0;
    for await (using message of channel) {
      hash.update(message.bytes);
      bytes += message.byteLength;
    }
    say({ bytes, sha256: hash.digest("hex") });
    await channel.close();
  },

  async send(): Promise<void> {
    const channel = await connect(address, { pool }), total = Number(bytesText);
    const buffers = Array.from({ length: BUFFERS }, () => pool.alloc(MIB));
    const hash = createHash("sha256"), flying: Promise<unknown>[] = [];
    for (let sent = 0, i = 0; sent < total; sent += MIB, i++) {
      const buf = buffers[i % BUFFERS]!;
      fill(buf.bytes, i);
      const view = buf.bytes.subarray(0, Math.min(MIB, total - sent));
      hash.update(view);
      flying.push(channel.send(view, { guard: "cow" }));
      view.fill(0xee); // in flight
      if (flying.length >= BUFFERS) await flying.shift();
    }
    await Promise.all(flying);
    await channel.close();
    say({ bytes: total, sha256: hash.digest("hex") });
  },

  async survive(): Promise<void> {
    const channel = await acceptOne(), codes = new Set<string>();
    const into = pool.alloc(MIB), buf = pool.alloc(MIB);
    const count = (error: unknown): void => {
      codes.add(error instanceof MoatError ? error.code : String(error));
    };
    const pending: Promise<void>[] = [channel.recv(into).then(() => {}, count)];
    say("in flight");
    let failed = false;
    while (!failed) {
      fill(buf.bytes, 1);
      const sent = channel.send(buf, { guard: "cow" }).then(() => {}, (error) => {
        failed = true;
        count(error);
      });
      pending.push(sent);
      await new Promise((resolve) => setTimeout(resolve, 20));
      if (pending.length > 40) await Promise.race([sent, new Promise((r) => setTimeout(r, 100))]);
    }
    await Promise.all(pending);
    await report(channel, codes, [into, buf]);
  },

  async wait(): Promise<void> {
    const channel = await acceptOne(), codes = new Set<string>();
    const into = pool.alloc(MIB);
    const received = channel.recv(into).then(() => {}, (error) => void codes.add(error.code));
    say("in flight");
    await new Promise((resolve) => setTimeout(resolve, 100));
    const start = performance.now();
    const first = into.bytes[0]; // until the connection is given up
    const milliseconds = Math.round(performance.now() - start);
    await received;
    await report(channel, codes, [into], { first, milliseconds, waits: pool.stats().waits.count });
  },

  async silent(): Promise<void> {
    const channel = await connect(address, { pool });
    say("connected");
    await new Promise((resolve) => setTimeout(resolve, 300_000)); // or until its host is no more
    await channel.close();
  },
};

// Everything has to be writable again, and no frame be missing.
async function report(
  channel: Channel,
  codes: Set<string>,
  buffers: { bytes: Uint8Array; free(): void }[],
  more: object = {},
): Promise<void> {
  for (const buf of buffers) buf.bytes.fill(3);
  const { freeFrames, reserveFrames } = pool.stats();
  for (const buf of buffers) buf.free();
  const { bytesAvailable, bytes } = pool.stats();
  await channel.close();
  say({
    codes: [...codes],
    frames: reserveFrames - freeFrames,
    bytes: bytes - bytesAvailable,
    ...more,
  });
}

async function acceptOne(): Promise<Channel> {
  await using listener = await listen(address, { pool });
  say({ listening: listener.address });
  return await listener.accept();
}

await roles[role]!();
await pool.close();
process.exit(0);
