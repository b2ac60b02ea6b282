/**
 * Trying it: a message to ourselves, through a listener and a connection of this process, whose buffer is
 * overwritten in flight.
 *
 * @module
 */
import type { Channel } from "../channel.ts";
import { connect, listen, type Listener } from "../connect.ts";
import { Pool } from "../memory/pool.ts";
import { reason } from "./finding.ts";

// A message that is guarded, not copied, by every transport.
const BYTES = 64 << 10;
const SENT = 7, WRITTEN = 8;

/** How long a trial may take, in milliseconds. In an emulated machine one over soft-RoCE takes about one second. */
const LIMIT = 10_000;

/** How a trial ended. */
export interface Trial {
  readonly works: boolean;
  /** What was seen, or what went wrong, in one line. */
  readonly detail: string;
  /** True if a guard did not hold: worse than a transport that does not work. */
  readonly torn: boolean;
}

/** Sends a message to ourselves at an address that nobody listens at. */
export async function tryOut(address: string): Promise<Trial> {
  const late = new AbortController(), stop = late.signal;
  const timer = setTimeout(() => late.abort(), LIMIT);
  const open: { abort?(): void; close(): Promise<void> }[] = [];
  let pool: Pool | undefined;
  try {
    pool = Pool.create({ bytes: 1 << 20, guardTimeout: LIMIT, hugePages: false });
    const listener: Listener = await listen(address, { pool });
    open.push(listener);
    const [here, there] = await Promise.all([
      connect(listener.address, { pool, timeout: LIMIT, signal: stop }),
      listener.accept({ signal: stop }),
    ]);
    open.push(here, there);
    return await exchange(pool, here, there, stop);
  } catch (error) {
    const detail = stop.aborted ? `nothing came within ${LIMIT / 1000} s` : reason(error);
    return { works: false, detail, torn: false };
  } finally {
    clearTimeout(timer);
    for (const each of open) each.abort ? each.abort() : await each.close();
    pool?.close().catch(() => {});
  }
}

async function exchange(
  pool: Pool,
  here: Channel,
  there: Channel,
  signal: AbortSignal,
): Promise<Trial> {
  using buf = pool.alloc(BYTES);
  buf.bytes.fill(SENT);
  const sent = here.send(buf, { guard: "cow", signal });
  sent.catch(() => {});
  buf.bytes.fill(WRITTEN);
  using message = await there.recv({ signal });
  const arrived = message?.bytes;
  const torn = arrived?.byteLength !== BYTES || !arrived.every((byte) => byte === SENT) ||
    !buf.bytes.every((byte) => byte === WRITTEN);
  message?.release();
  const { guard } = await sent;
  const { privatePages } = pool.stats();
  if (torn) {
    return { works: false, detail: "a message that was overwritten in flight arrived torn", torn };
  }
  const how = guard !== "cow"
    ? `the guard became "${guard}"`
    : privatePages > 0
    ? `${privatePages} pages private`
    : "the kernel had taken it";
  return { works: true, detail: `a message arrived as sent, though overwritten (${how})`, torn };
}
