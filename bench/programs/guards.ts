/**
 * The sending process of the guard benchmark: `guards.ts ADDRESS PLAN` prints one JSON line
 * ({@linkcode GuardResult}) for each size. What is timed is the whole path of a message, from the call
 * of send() to the promise it returned.
 *
 * @module
 */
import process from "node:process";
import { type Channel, connect, type Guard, Pool, type PoolBuffer } from "../../mod.ts";
import type { PeerMode } from "./peer.ts";

/** What is to be measured. */
export interface GuardPlan {
  /** Bytes of the messages. */
  sizes: number[];
  /** The receiver releases a message when so many have come after it. */
  hold: number;
  /** Rounds, in each of which every column has its turn. */
  rounds: number;
  /** About how long a column's turn takes, in milliseconds. */
  turn: number;
}

/** What becomes of a buffer right after send() returned. */
export type Use = "untouched" | "byte" | "whole";

/** Every column: a guard, and what the sender does to the buffer while it may be in flight. */
export const COLUMNS: readonly { guard: Guard; use: Use }[] = [
  { guard: "none", use: "untouched" },
  { guard: "copy", use: "untouched" },
  { guard: "cow", use: "untouched" },
  { guard: "cow", use: "byte" },
  { guard: "cow", use: "whole" },
  { guard: "wait", use: "whole" },
  { guard: "copy", use: "whole" },
  { guard: "auto", use: "untouched" },
  { guard: "auto", use: "byte" },
  { guard: "auto", use: "whole" },
];

/** What was measured with one column. */
export interface ColumnResult {
  guard: Guard;
  use: Use;
  /** Microseconds a message, by round. */
  us: number[];
  /** What the guards did in all rounds together, warm-up included. */
  messages: number;
  copied: number;
  restores: number;
  privatePages: number;
}

/** What was measured with one size. */
export interface GuardResult {
  bytes: number;
  buffers: number;
  inFlight: number;
  columns: ColumnResult[];
}

interface Column extends ColumnResult {
  pool: Pool;
  buffers: PoolBuffer[];
  inFlight: number;
  /** Messages in a turn. */
  count: number;
}

/**
 * Buffers that take turns, and how many of them are in flight: as many as 16 MiB of cache hold, or else what
 * would be measured is memory; but more than the receiver holds.
 */
export function rotation(bytes: number, hold: number): { buffers: number; inFlight: number } {
  const buffers = hold > 0 ? 2 * hold : Math.max(3, Math.min(16, (16 << 20) / bytes));
  return { buffers, inFlight: Math.max(hold + 1, Math.ceil(buffers * 3 / 4)) };
}

// Every column has a pool of its own, because a rewritten buffer and its pool's free frames stay
// scattered; and a connection of its own for each turn, so that those of the others cost it nothing.
function makeColumn(
  bytes: number,
  { buffers, inFlight }: { buffers: number; inFlight: number },
  { guard, use }: typeof COLUMNS[number],
): Column {
  const pool = Pool.create({ bytes: buffers * bytes, reserve: (buffers + 1) * bytes + (1 << 20) });
  return {
    guard,
    use,
    us: [],
    messages: 0,
    copied: 0,
    restores: 0,
    privatePages: 0,
    pool,
    buffers: Array.from({ length: buffers }, () => {
      const buffer = pool.alloc(bytes);
      buffer.bytes.fill(1);
      return buffer;
    }),
    inFlight,
    count: 0,
  };
}

const LET_GO = new Uint8Array(1);

/** Sends `count` messages; returns microseconds a message. */
async function send(channel: Channel, column: Column, count: number): Promise<number> {
  const { buffers, inFlight, guard, use } = column, options = { guard };
  const sent: Promise<unknown>[] = [];
  const start = performance.now();
  for (let i = 0; i < count; i++) {
    if (i >= inFlight) await sent[i % inFlight];
    const buffer = buffers[i % buffers.length]!;
    sent[i % inFlight] = channel.send(buffer, options);
    if (use === "byte") buffer.bytes[0] = i;
    else if (use === "whole") buffer.bytes.fill(i);
  }
  channel.send(LET_GO);
  await Promise.all(sent);
  return (performance.now() - start) * 1000 / count;
}

/** A column's turn; returns microseconds a message. The first finds out how many messages it takes. */
async function turn(address: string, plan: GuardPlan, column: Column): Promise<number> {
  const channel = await connect(address, { pool: column.pool });
  const mode: PeerMode = { hold: plan.hold };
  await channel.send(new TextEncoder().encode(JSON.stringify(mode)));
  const once = column.buffers.length;
  await send(channel, column, once);
  if (column.count === 0) {
    const us = await send(channel, column, 2 * once);
    column.count = Math.max(2 * once, Math.min(50_000, Math.round(plan.turn * 1000 / us)));
  }
  const us = await send(channel, column, column.count);
  await channel.close();
  return us;
}

async function measure(address: string, plan: GuardPlan, bytes: number): Promise<GuardResult> {
  const shape = rotation(bytes, plan.hold);
  const columns = COLUMNS
    // Who waits for a message that is released only after the next eight waits for himself.
    .filter(({ guard }) => plan.hold === 0 || guard !== "wait")
    .map((column) => makeColumn(bytes, shape, column));
  for (let round = -2; round < plan.rounds; round++) {
    for (const column of columns) {
      const us = await turn(address, plan, column);
      if (round >= 0) column.us.push(us); // before, "auto" is still learning
    }
  }
  const results = columns.map(({ guard, use, us, pool }) => {
    const { sends, restores, privatePages } = pool.stats();
    const messages = Object.values(sends).reduce((a, b) => a + b);
    return { guard, use, us, messages, copied: sends.copy, restores, privatePages };
  });
  for (const { pool } of columns) await pool.close();
  return { bytes, ...shape, columns: results };
}

if (import.meta.main) {
  const [address, text] = process.argv.slice(2);
  const plan: GuardPlan = JSON.parse(text!);
  // Not to be reported: until both runtimes have compiled what runs often.
  await measure(address!, { ...plan, rounds: 0 }, 64 << 10);
  for (const bytes of plan.sizes) console.log(JSON.stringify(await measure(address!, plan, bytes)));
}
