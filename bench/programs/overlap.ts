/**
 * How much of a transfer computation hides: `overlap.ts ADDRESS PLAN` prints one JSON line ({@linkcode OverlapResult})
 * for each size, side and end.
 *
 * A computation C is made as long as the transfer T alone. Then both are done at once, in code that does not wait:
 * the operation is begun, C is computed, and only then is the operation's end asked for. See `support/overlap.ts`.
 *
 * @module
 */
import process from "node:process";
import { type Channel, connect, Pool } from "../../mod.ts";
import type { PeerMode } from "./peer.ts";
import { type Begun, measureOverlap, type OverlapTimes } from "../support/overlap.ts";

/** What is to be measured. */
export interface OverlapPlan {
  sizes: number[];
  rounds: number;
}

/** Which side computes. */
export type Side = "sender" | "receiver";
/** How the program learns of the end: it awaits the promise, or touches the buffer, which waits at the guard. */
export type End = "await" | "touch";

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

if (import.meta.main) {
  const [address, text] = process.argv.slice(2);
  const plan: OverlapPlan = JSON.parse(text!);
  for (const bytes of plan.sizes) {
    for (const side of ["sender", "receiver"] as const) {
      for (const end of ["await", "touch"] as const) {
        console.log(JSON.stringify(await measure(address!, plan, bytes, side, end)));
      }
    }
  }
}
