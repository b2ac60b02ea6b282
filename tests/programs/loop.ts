/**
 * Event loop cases, each in a process of its own so that the process's own life is what is observed.
 *
 * @module
 */
import { readFile } from "node:fs/promises";
import process from "node:process";
import { setTimeout as later } from "node:timers";
import { fileURLToPath } from "node:url";
import { type Channel, connect, listen, Pool } from "../../mod.ts";
import { freshAddress, say } from "../support/child.ts";

const pool = Pool.create({ bytes: 16 << 20 });

// Where to listen: the second argument, or over shared memory.
function address(): string {
  return process.argv[3] ?? freshAddress();
}

async function pair(): Promise<[Channel, Channel]> {
  const listener = await listen(address(), { pool });
  const channels = await Promise.all([connect(listener.address, { pool }), listener.accept()]);
  await listener.close();
  return channels;
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

const cases: Record<string, () => Promise<void>> = {
  /** How much CPU a connection with a pending receive takes while nothing happens. */
  async idle(): Promise<void> {
    const [a, b] = await pair();
    const received = b.recv();
    await a.send(new Uint8Array(8));
    await received;
    b.recv().catch(() => {});
    await sleep(300);
    const before = process.cpuUsage();
    await sleep(1000);
    const { user, system } = process.cpuUsage(before);
    say({ microseconds: user + system });
    process.exit(0);
  },
  /** A pending receive keeps the process alive, until its message has come. */
  async held(): Promise<void> {
    const [a, b] = await pair();
    b.recv().then((message) => say({ got: message?.byteLength }));
    later(() => a.send(new Uint8Array(5)), 400).unref();
  },
  /** An open channel with nothing pending does not. */
  async open(): Promise<void> {
    await pair();
    say("open");
  },
  /** Nor does a pending receive or accept after unref(). */
  async unref(): Promise<void> {
    const [a, b] = await pair();
    const listener = await listen(address(), { pool });
    listener.accept().catch(() => {});
    listener.unref();
    a.recv().catch(() => {});
    a.unref();
    b.unref();
    b.recv().catch(() => {});
    say("unreferenced");
  },
  /** After ref() it does again. */
  async reref(): Promise<void> {
    const [a, b] = await pair();
    b.unref();
    b.recv().then((message) => say({ got: message?.byteLength }));
    b.ref();
    later(() => a.send(new Uint8Array(6)), 300).unref();
  },
  /** Timers and files get their turn while messages go through without a pause. */
  async load(): Promise<void> {
    const [a, b] = await pair();
    let ticks = 0, files = 0, messages = 0, over = false;
    const timer = setInterval(() => ticks++, 5);
    const received = (async () => {
      for await (using message of b) messages += message.byteLength > 0 ? 1 : 0;
    })();
    const reading = (async () => {
      for (; !over; files++) await readFile(fileURLToPath(import.meta.url));
    })();
    const buf = pool.alloc(1 << 20), flying: Promise<unknown>[] = [];
    setTimeout(() => over = true, 1000);
    while (!over) {
      flying.push(a.send(buf, { guard: "cow" }), a.send(new Uint8Array(100)));
      if (flying.length > 16) await flying.shift();
    }
    await Promise.all(flying);
    await reading;
    clearInterval(timer);
    await a.close();
    await received;
    await b.close();
    await pool.close();
    say({ ticks, files, messages });
  },
};

await cases[process.argv[2]!]!();
