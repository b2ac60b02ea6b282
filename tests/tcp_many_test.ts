import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import process from "node:process";
import { test } from "node:test";
import { type Channel, listen, Pool } from "../mod.ts";
import { Child, other } from "./support/child.ts";

const MIB = 1 << 20;

// What the processor may do for connections on which nothing happens, and for the runtime, in a second.
// Milliseconds; a look of the doorbell's thread at all of them twice a second is 0.2.
const IDLE = 25;

/** Serves `count` connections that each want one message back. */
async function crowd(t: { after(fn: () => void): void }, count: number): Promise<void> {
  const pool = Pool.create({ bytes: 8 * MIB });
  const listener = await listen("tcp://127.0.0.1:0", { pool, timeout: 20_000 });
  const child = new Child(t, "crowd", [listener.address, String(count)], other());
  const channels: Channel[] = [], served: Promise<void>[] = [];
  const ended = child.exit.then(({ stderr, code }) => {
    if (code !== 0) throw new Error(stderr);
  });
  ended.catch(() => {});
  const accepting = (async () => {
    while (channels.length < count) {
      const channel = await listener.accept();
      channels.push(channel);
      served.push((async () => {
        using message = await channel.recv();
        await channel.send(message!.bytes);
      })());
    }
  })();
  await Promise.race([accepting, ended]);
  await Promise.race([Promise.all(served), ended]);
  assert.equal(await child.next(), count, "messages that came back");
  const idle = await child.next<number>();
  if (count <= 100) assert.ok(idle < IDLE, `${idle} ms of the processor in an idle second`);
  await Promise.all(channels.map((channel) => channel.close()));
  assert.equal(await child.next(), count, "connections that ended as they should");
  await ended;
  const { freeFrames, reserveFrames, bytesAvailable } = pool.stats();
  assert.deepEqual([freeFrames, bytesAvailable], [reserveFrames, 8 * MIB]);
  await listener.close();
  await pool.close();
}

test("100 idle connections cost the processor nothing", (t) => crowd(t, 100));

test("1,000 connections between two processes, one pool each, with a message both ways", async (t) => {
  // Of this process, and so of the one it starts.
  spawnSync("prlimit", ["--pid", String(process.pid), "--nofile=8192:"]);
  await crowd(t, 1000);
});
