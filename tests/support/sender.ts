/**
 * The other side of tests of receives: a process that sends what it is told.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import type { Channel, Pool, PoolOptions } from "../../mod.ts";
import type { Order } from "../programs/sender.ts";
import { childChannel } from "./child_channel.ts";

/** A channel to a process that sends what it is told. */
export interface Sender {
  pool: Pool;
  channel: Channel;
  order(order: Order): void;
  close(): Promise<void>;
}

/** Starts it, and connects to it. */
export async function sender(
  scope: { after(fn: () => void): void },
  options: PoolOptions = { bytes: 16 << 20 },
): Promise<Sender> {
  const { pool, channel } = await childChannel(scope, "sender", options);
  return {
    pool,
    channel,
    // Published before this returns: the other side acts on it whatever this thread does next.
    order: (order) => void channel.send(Buffer.from(JSON.stringify(order))),
    async close(): Promise<void> {
      await channel.close();
      assertNothingHeld(pool);
      await pool.close();
    },
  };
}

/** Makes sure that every frame has come back. */
export function assertNothingHeld(pool: Pool): void {
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames, "free frames at the end");
}
