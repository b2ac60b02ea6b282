/**
 * One end of a file's way over a network into another file.
 *
 *     pipeline.ts send ADDRESS FILE         listens, says where, sends the mapped file
 *     pipeline.ts store ADDRESS FILE        connects and stores what comes
 *     pipeline.ts plain-send 0 FILE         the same as people write it without Moat: read into a buffer,
 *     pipeline.ts plain-store PORT FILE     write from it to a socket; and the other way round
 *
 * Each prints a {@linkcode Usage} at its end.
 *
 * @module
 */
import { once } from "node:events";
import { open } from "node:fs/promises";
import { readFileSync, statSync } from "node:fs";
import { type AddressInfo, createServer, Socket } from "node:net";
import process from "node:process";
import { connect, listen, Pool } from "../../mod.ts";
import { say } from "../support/child.ts";

/** What it took. */
export interface Usage {
  /** Microseconds of the processor, user and system, from the connection to the end. */
  cpu: number;
  /** The largest resident set, in bytes, without the pools, which count once for each of their mappings. */
  peak: number;
}

const MESSAGE = 1 << 20, WINDOW = 8 << 20, DEPTH = 6, POOL = 16 << 20;

function resident(): number {
  const status = readFileSync("/proc/self/status", "utf8");
  const of = (what: string): number =>
    Number(new RegExp(`^${what}:\\s*(\\d+) kB$`, "m").exec(status)![1]) * 1024;
  return of("RssAnon") + of("RssFile");
}

async function measured(work: () => Promise<void>): Promise<void> {
  const before = process.cpuUsage();
  let peak = resident();
  const timer = setInterval(() => peak = Math.max(peak, resident()), 10);
  await work();
  clearInterval(timer);
  const { user, system } = process.cpuUsage(before);
  say({ cpu: user + system, peak: Math.max(peak, resident()) } satisfies Usage);
}

async function send(address: string, path: string): Promise<void> {
  await using pool = Pool.create({ bytes: POOL, reserve: POOL });
  await using listener = await listen(address, { pool });
  say(listener.address);
  await using channel = await listener.accept();
  await measured(async () => {
    const { size } = statSync(path);
    for (let offset = 0; offset < size; offset += WINDOW) {
      const length = Math.min(WINDOW, size - offset), sent: Promise<unknown>[] = [];
      await using mapped = pool.map(path, { offset, length });
      for (let at = 0; at < length; at += MESSAGE) {
        sent.push(channel.send(mapped.bytes.subarray(at, at + MESSAGE), { guard: "cow" }));
      }
      await Promise.all(sent);
    }
  });
}

async function store(address: string, path: string): Promise<void> {
  await using pool = Pool.create({ bytes: POOL, reserve: POOL });
  await using file = pool.open(path, { create: true });
  await using channel = await connect(address, { pool });
  await measured(async () => {
    const writing: Promise<unknown>[] = [];
    let at = 0, i = 0;
    for await (const message of channel) {
      await writing[i % DEPTH];
      writing[i++ % DEPTH] = file.write(message.bytes, at, { guard: "cow" })
        .finally(() => message.release());
      at += message.byteLength;
    }
    await Promise.all(writing);
  });
}

async function plainSend(path: string): Promise<void> {
  const buffer = new Uint8Array(MESSAGE);
  if ("Deno" in globalThis) {
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    say(listener.addr.port);
    using connection = await listener.accept();
    await measured(async () => {
      using file = await Deno.open(path);
      for (let n; (n = await file.read(buffer)) !== null;) {
        for (let at = 0; at < n;) at += await connection.write(buffer.subarray(at, n));
      }
    });
    listener.close();
    return;
  }
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  say((server.address() as AddressInfo).port);
  const [socket] = await once(server, "connection") as [Socket];
  await measured(async () => {
    const file = await open(path);
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, buffer.length);
      if (bytesRead === 0) break;
      await new Promise<void>((resolve, reject) =>
        socket.write(
          buffer.subarray(0, bytesRead),
          (error) => error ? reject(error) : resolve(),
        )
      );
    }
    await file.close();
    socket.end();
  });
  server.close();
}

async function plainStore(port: number, path: string): Promise<void> {
  if ("Deno" in globalThis) {
    using connection = await Deno.connect({ hostname: "127.0.0.1", port });
    const buffer = new Uint8Array(MESSAGE);
    await measured(async () => {
      using file = await Deno.create(path);
      for (let n; (n = await connection.read(buffer)) !== null;) {
        for (let at = 0; at < n;) at += await file.write(buffer.subarray(at, n));
      }
    });
    return;
  }
  const socket = new Socket().connect(port, "127.0.0.1");
  await once(socket, "connect");
  await measured(async () => {
    const file = await open(path, "w");
    for await (const piece of socket) await file.write(piece as Uint8Array);
    await file.close();
  });
}

const [role, where, path] = process.argv.slice(2) as [string, string, string];
if (role === "send") await send(where, path);
else if (role === "store") await store(where, path);
else if (role === "plain-send") await plainSend(path);
else await plainStore(Number(where), path);
