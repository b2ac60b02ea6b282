/**
 * Hands guarded buffers to the runtime's own functions and says what came of it, a JSON line each.
 *
 * A function that fills a buffer gets one that is in flight under "cow"; one that reads from a buffer gets one that
 * waits for its message. Where the runtime touches the memory itself the guard does its work; where it leaves that
 * to the kernel, the system call fails with EFAULT, and what the runtime makes of that is what is asked here.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { isMainThread, Worker, workerData } from "node:worker_threads";
import { connect, listen, Pool } from "../../mod.ts";
import { type CallName, SYSTEM_CALLS, type SystemCall } from "../../tools/docs/system_calls.ts";
import { fill, same } from "../support/bytes.ts";
import { freshAddress, here, say } from "../support/child.ts";
import { pair } from "../support/pair.ts";
import { makeProbes } from "../support/system_calls.ts";

const BYTES = 64 << 10;
/**
 * How long the message lets itself be waited for where the guard is said to do its work, in milliseconds. Elsewhere it
 * comes when the outcome is known, and nothing depends on how fast anybody is.
 */
const LATE = 15;
/** How long anything may take at most, in milliseconds. */
const PATIENCE = 20_000;

/** What was seen of one function. */
export interface Seen {
  name: CallName;
  outcome: string;
}

// A module of WebAssembly whose one section has no meaning: something that every function can take.
const CONTENT = new Uint8Array(BYTES);
fill(CONTENT, 1);
const section = BYTES - 12; // behind the id and the length, of three bytes
CONTENT.set([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]);
CONTENT.set([0, section & 127 | 128, (section >> 7) & 127 | 128, section >> 14, 1, 0x78], 8);

if (isMainThread) await main();
else await lateSender(workerData as Task);

interface Task {
  address: string;
  /** How many outcomes are known. */
  known: Int32Array<SharedArrayBuffer>;
}

async function lateSender({ address, known }: Task): Promise<void> {
  await using pool = Pool.create({ bytes: 1 << 20 });
  await using channel = await connect(address, { pool });
  const buf = pool.alloc(BYTES);
  buf.bytes.set(CONTENT);
  for await (using order of channel) {
    const [number, wait] = new Float64Array(order.bytes.slice().buffer);
    Atomics.wait(known, 0, number!, wait);
    channel.send(buf).catch(() => {});
  }
}

async function main(): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "moat-system-calls-"));
  const source = join(directory, "source"), old = CONTENT.slice().reverse();
  writeFileSync(source, CONTENT);
  const pool = Pool.create({ bytes: 16 << 20 });
  const listener = await listen(freshAddress(), { pool });
  const known = new Int32Array(new SharedArrayBuffer(4));
  const workerData: Task = { address: listener.address, known };
  const worker = new Worker(new URL(import.meta.url), { workerData });
  const late = await listener.accept(), loop = await pair(pool);
  const probes = await makeProbes(here, directory, source, CONTENT);

  for (const { name, fills, run } of probes.calls) {
    const buf = pool.alloc(BYTES);
    buf.bytes.set(old);
    if (fills) {
      const sent = loop.here.send(buf, { guard: "cow" });
      const message = await loop.there.recv();
      const outcome = await judge(() => run(buf.bytes), () => !same(buf.bytes, old));
      if (!same(message!.bytes, old)) throw new Error(`${name} wrote to what is being sent`);
      say({ name, outcome } satisfies Seen);
      message!.release();
      await sent;
    } else {
      const call: SystemCall = SYSTEM_CALLS[name];
      late.send(Float64Array.of(known[0]!, call[here] === "works" ? LATE : PATIENCE));
      const received = late.recv(buf);
      const outcome = await judge(() => run(buf.bytes), (got) => same(got!, CONTENT));
      Atomics.add(known, 0, 1);
      Atomics.notify(known, 0);
      say({ name, outcome } satisfies Seen);
      await received;
    }
    buf.free();
  }
  probes.end();
  late.abort();
  await worker.terminate();
  rmSync(directory, { recursive: true });
  process.exit(0); // sockets that never drain
}

async function judge(
  run: () => unknown,
  right: (got: Uint8Array | undefined) => boolean,
): Promise<string> {
  const waiting = new AbortController();
  try {
    const got = await Promise.race([
      (async () => await run())(),
      sleep(PATIENCE, waiting, { signal: waiting.signal }),
    ]);
    if (got === waiting) return "never ends";
    const bytes = ArrayBuffer.isView(got) || got instanceof ArrayBuffer
      ? new Uint8Array(Buffer.from(got as Uint8Array))
      : undefined;
    return right(bytes ?? new Uint8Array(0)) ? "works" : "silent";
  } catch (error) {
    const { code, message } = error as { code?: unknown; message?: string };
    return typeof code === "string" ? code : `${error}`.slice(0, 80) + (message ? "" : "!");
  } finally {
    waiting.abort();
  }
}
