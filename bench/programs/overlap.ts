/**
 * How much of a transfer computation hides: `overlap.ts ADDRESS PLAN` prints one JSON line ({@linkcode OverlapResult})
 * for each size, side and end.
 *
 * A computation C is made as long as the transfer T alone. Then both are done at once, in code that does not wait:
 * the operation is begun, C is computed, and only then is the operation's end asked for; or, in a stream, C is computed
 * before each of many messages, and no end is asked for before the last. See `support/overlap.ts`.
 *
 * @module
 */
import process from "node:process";
import { type Channel, connect, Pool } from "../../mod.ts";
import type { PeerMode } from "./peer.ts";
import {
  type Begun,
  measureOverlap,
  measureStream,
  type OverlapTimes,
} from "../support/overlap.ts";

/** What is to be measured. */
export interface OverlapPlan {
  sizes: number[];
  rounds: number;
}

/** Which side computes. */
export type Side = "sender" | "receiver";
/**
 * How the program learns of the end: it awaits the promise, or touches the buffer, which waits at the guard, or it goes
 * on with the next message of a stream.
 */
export type End = "await" | "touch" | "stream";

/** What was measured with one size. */
export interface OverlapResult extends OverlapTimes {
  bytes: number;
  side: Side;
  end: End;
}

const GO = new Uint8Array(1);

async function open(address: string, pool: Pool, mode: PeerMode): Promise<Channel> {
  const channel = await connect(address, { pool });
  await channel.send(new TextEncoder().encode(JSON.stringify(mode)));
  return channel;
}

async function measure(
  address: string,
  { rounds }: OverlapPlan,
  bytes: number,
  side: Side,
  end: End,
): Promise<OverlapResult> {
  await using pool = Pool.create({ bytes: 2 * bytes, reserve: 2 * bytes });
  const mode = side === "sender" ? { read: true } : { serve: bytes };
  await using channel = await open(address, pool, mode);
  const buffer = pool.alloc(bytes);
  buffer.bytes.fill(1);
  const send = (): Begun => {
    // With "wait" the write finds the send in flight and waits for it; that is a program that cannot go on without.
    const sent = channel.send(buffer, { guard: end === "touch" ? "wait" : "cow" });
    if (end === "await") return { finish: () => sent };
    return { finish: () => void (buffer.bytes[bytes >> 1] = 1), settle: sent };
  };
  const receive = (): Begun => {
    const received = channel.recv(buffer);
    channel.send(GO);
    if (end === "await") return { finish: () => received };
    return {
      finish(): void {
        if (buffer.bytes[bytes >> 1] !== 1) {
          throw new Error("what was received is not what was sent");
        }
      },
      settle: received,
    };
  };
  const times = await measureOverlap(rounds, side === "sender" ? send : receive);
  return { bytes, side, end, ...times };
}

/** Buffers that take turns in a stream, and how many receives are posted ahead. */
const TURNS = 8, AHEAD = 4;

async function measureStreamOf(
  address: string,
  { rounds }: OverlapPlan,
  bytes: number,
  side: Side,
): Promise<OverlapResult> {
  const messages = Math.min(512, Math.max(32, (512 << 20) / bytes));
  await using pool = Pool.create({ bytes: TURNS * bytes });
  const channel = await open(
    address,
    pool,
    side === "sender" ? { read: true } : { flood: bytes },
  );
  const buffers = Array.from({ length: TURNS }, () => pool.alloc(bytes));
  for (const buffer of buffers) buffer.bytes.fill(1);
  const buffer = (i: number): typeof buffers[number] => buffers[i % TURNS]!;
  const send = async (before: () => void): Promise<void> => {
    const sent: Promise<unknown>[] = [];
    for (let i = 0; i < messages; i++) {
      before();
      sent.push(channel.send(buffer(i), { guard: "cow" }));
    }
    await Promise.all(sent);
  };
  const receive = async (before: () => void): Promise<void> => {
    const received: Promise<unknown>[] = [];
    for (let i = 0; i < AHEAD; i++) received.push(channel.recv(buffer(i)));
    for (let i = 0; i < messages; i++) {
      before();
      if (buffer(i).bytes[bytes >> 1] !== 1) {
        throw new Error("what was received is not what was sent");
      }
      if (i + AHEAD < messages) received.push(channel.recv(buffer(i + AHEAD)));
    }
    await Promise.all(received);
  };
  const few = Math.ceil(rounds / 3); // a round is many messages
  const times = await measureStream(few, messages, side === "sender" ? send : receive);
  if (side === "sender") await channel.close();
  else channel.abort();
  return { bytes, side, end: "stream", ...times };
}

if (import.meta.main) {
  const [address, text] = process.argv.slice(2);
  const plan: OverlapPlan = JSON.parse(text!);
  for (const bytes of plan.sizes) {
    for (const side of ["sender", "receiver"] as const) {
      for (const end of ["await", "touch"] as const) {
        console.log(JSON.stringify(await measure(address!, plan, bytes, side, end)));
      }
      console.log(JSON.stringify(await measureStreamOf(address!, plan, bytes, side)));
    }
  }
}
