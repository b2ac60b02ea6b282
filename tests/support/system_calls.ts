/**
 * The runtimes' functions that take a program's memory, each called in a way that shows what it did with it.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import * as crypto from "node:crypto";
import * as dgram from "node:dgram";
import { once } from "node:events";
import * as fs from "node:fs";
import { createServer as createHttpServer } from "node:http";
import * as net from "node:net";
import { join } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { gunzipSync, gzip, gzipSync } from "node:zlib";
import { errnoName } from "../../ffi/errors.ts";
import { errno, LIBC_PATHS, openFirst } from "../../ffi/libc.ts";
import type { Symbols } from "../../ffi/runtime.ts";
import type { CallName } from "../../tools/docs/system_calls.ts";

/** A call: it fills the buffer it is given, or it reads from it and returns what it found there. */
export interface Call {
  name: CallName;
  fills: boolean;
  run(bytes: Uint8Array<ArrayBuffer>): unknown;
}

/** All calls that a runtime has. */
export interface Probes {
  calls: Call[];
  end(): void;
}

interface BunSocket {
  write(bytes: Uint8Array): number;
  end(): void;
}
interface Sink {
  write(bytes: Uint8Array): number | Promise<number>;
  end(): Promise<number>;
}
interface BunLike {
  write(path: string, bytes: Uint8Array): Promise<number>;
  file(path: string): { writer(): Sink };
  connect(options: unknown): Promise<BunSocket>;
  serve(options: unknown): { port: number; stop(now: boolean): void };
}

const symbols = {
  // void *memcpy(void *dest, const void *src, size_t n);
  memcpy: { parameters: ["buffer", "buffer", "size"], result: "address" },
  // ssize_t getrandom(void *buf, size_t buflen, unsigned int flags);
  getrandom: { parameters: ["buffer", "size", "u32"], result: "size" },
  // ssize_t write(int fd, const void *buf, size_t count);
  write: { parameters: ["i32", "buffer", "size"], result: "size" },
} as const satisfies Symbols;

/**
 * Makes the calls that `runtime` has.
 *
 * @param directory where files may be written
 * @param source a file with `content`
 */
export async function makeProbes(
  runtime: "deno" | "bun",
  directory: string,
  source: string,
  content: Uint8Array<ArrayBuffer>,
): Promise<Probes> {
  const servers = await startServers(runtime);
  const target = join(directory, "target");
  const libc = openFirst("The C library", LIBC_PATHS, symbols, "install glibc or musl");
  const calls: Call[] = [];
  const fills = (name: CallName, run: Call["run"]): void =>
    void calls.push({ name, fills: true, run });
  const reads = (name: CallName, run: Call["run"]): void =>
    void calls.push({ name, fills: false, run });
  // Runs a function with a new file's descriptor and returns what is in the file then.
  const toFile = (use: (fd: number) => unknown) => async (): Promise<Uint8Array> => {
    const fd = fs.openSync(target, "w");
    try {
      await use(fd);
    } finally {
      fs.closeSync(fd);
    }
    return fs.readFileSync(target);
  };
  const fromFile = (use: (fd: number) => unknown) => async (): Promise<void> => {
    const fd = fs.openSync(source, "r");
    try {
      await use(fd);
    } finally {
      fs.closeSync(fd);
    }
  };

  // ---- files, by node:fs
  fills("node:fs readSync", (b) => fromFile((fd) => fs.readSync(fd, b, 0, b.length, 0))());
  fills("node:fs readvSync", (b) => fromFile((fd) => fs.readvSync(fd, [b], 0))());
  fills("node:fs read", (b) => fromFile((fd) => promisify(fs.read)(fd, b, 0, b.length, 0))());
  fills("node:fs/promises FileHandle.read", async (b) => {
    const file = await fs.promises.open(source);
    await file.read(b, 0, b.length, 0).finally(() => file.close());
  });
  reads("node:fs writeSync", (b) => toFile((fd) => fs.writeSync(fd, b))());
  reads("node:fs writevSync", (b) => toFile((fd) => fs.writevSync(fd, [b]))());
  reads("node:fs write", (b) => toFile((fd) => promisify(fs.write)(fd, b, 0, b.length, 0))());
  reads("node:fs writeFileSync", (b) => toFile(() => fs.writeFileSync(target, b))());
  reads("node:fs/promises writeFile", (b) => toFile(() => fs.promises.writeFile(target, b))());
  reads("node:fs createWriteStream", (b) =>
    toFile(async () => {
      const stream = fs.createWriteStream(target);
      stream.end(b);
      await once(stream, "finish");
    })());

  // ---- sockets, by node:net and node:dgram
  reads("node:net Socket.write", async (b) => {
    const socket = net.connect(servers.net.port, "127.0.0.1");
    await once(socket, "connect");
    const failed = once(socket, "error").then(([error]) => Promise.reject(error));
    socket.end(b);
    return await Promise.race([servers.net.received(), failed]);
  });
  fills("node:net Socket onread buffer", async (b) => {
    const socket = net.connect({
      port: servers.source(content),
      host: "127.0.0.1",
      onread: { buffer: b, callback: () => true },
    });
    await once(socket, "close");
  });
  reads("node:dgram Socket.send", async (b) => {
    const [receiver, sender] = [dgram.createSocket("udp4"), dgram.createSocket("udp4")];
    try {
      receiver.bind(0, "127.0.0.1");
      await once(receiver, "listening");
      const got = once(receiver, "message");
      // As much as fits a datagram; the rest is as it should be.
      const part = b.subarray(0, 32768);
      await new Promise<void>((resolve, reject) =>
        sender.send(
          part,
          receiver.address().port,
          "127.0.0.1",
          (error) => error ? reject(error) : resolve(),
        )
      );
      return Buffer.concat([(await got)[0], content.subarray(32768)]);
    } finally {
      receiver.close();
      sender.close();
    }
  });

  // ---- what copies in user mode first
  reads("fetch body", async (b) => {
    const response = await fetch(servers.http, { method: "POST", body: b });
    return await response.arrayBuffer();
  });
  reads("new Response, new Blob", (b) => new Response(new Blob([b])).arrayBuffer());
  reads("WebSocket.send", async (b) => {
    const socket = new WebSocket(servers.webSocket);
    socket.binaryType = "arraybuffer";
    await new Promise((resolve) => socket.onopen = resolve);
    const got = new Promise<ArrayBuffer>((resolve) => socket.onmessage = (e) => resolve(e.data));
    socket.send(b);
    return await got.finally(() => socket.close());
  });
  reads("postMessage, structuredClone", async (b) => {
    const { port1, port2 } = new MessageChannel();
    const got = new Promise<Uint8Array>((resolve) => port2.onmessage = (e) => resolve(e.data));
    port1.postMessage(structuredClone(b));
    return await got.finally(() => port1.close());
  });
  reads("TextDecoder.decode", (b) => {
    const decoder = new TextDecoder("latin1");
    return decoder.decode(b) === decoder.decode(content) ? content : undefined;
  });
  fills(
    "TextEncoder.encodeInto",
    (b) => void new TextEncoder().encodeInto("x".repeat(b.length), b),
  );
  reads(
    "crypto.subtle.digest",
    async (b) =>
      equalDigest(content, Buffer.from(await globalThis.crypto.subtle.digest("SHA-256", b))),
  );
  reads(
    "node:crypto createHash",
    (b) => equalDigest(content, crypto.createHash("sha256").update(b).digest()),
  );
  fills("crypto.getRandomValues", (b) => void globalThis.crypto.getRandomValues(b));
  fills("node:crypto randomFillSync", (b) => void crypto.randomFillSync(b));
  fills(
    "node:crypto randomFill",
    (b) => promisify<Uint8Array, Uint8Array>(crypto.randomFill)(b).then(() => {}),
  );
  reads("node:zlib gzipSync", (b) => gunzipSync(gzipSync(b)));
  reads("node:zlib gzip", async (b) => gunzipSync(await promisify<Uint8Array, Buffer>(gzip)(b)));
  reads("CompressionStream", async (b) => {
    const stream = new Response(b).body!.pipeThrough(new CompressionStream("gzip"));
    return gunzipSync(await new Response(stream).bytes());
  });
  reads(
    "WebAssembly.compile",
    async (b) =>
      WebAssembly.Module.customSections(await WebAssembly.compile(b), "x").length === 1
        ? content
        : new Uint8Array(0),
  );
  reads("Worker.postMessage", async (b) => {
    const { Worker } = await import("node:worker_threads");
    const echo = "const { parentPort } = require('node:worker_threads');" +
      "parentPort.once('message', (m) => parentPort.postMessage(m));";
    const worker = new Worker(echo, { eval: true });
    worker.postMessage(b);
    const [got] = await once(worker, "message");
    await worker.terminate();
    return got;
  });

  // ---- C functions of the program's own
  fills("a C function that writes (memcpy)", (b) => void libc.memcpy(b, content, b.length));
  reads("a C function that reads (memcpy)", (b) => {
    const copy = new Uint8Array(b.length);
    libc.memcpy(copy, b, b.length);
    return copy;
  });
  fills(
    "a system call by FFI that writes (getrandom)",
    (b) => failed(libc.getrandom(b, b.length, 0)),
  );
  reads(
    "a system call by FFI that reads (write)",
    (b) => toFile((fd) => failed(libc.write(fd, b, b.length)))(),
  );

  // ---- standard error: here a pipe
  reads("process.stderr.write", (b) =>
    new Promise((resolve, reject) => {
      process.stderr.once("error", reject);
      process.stderr.write(b, (error) => error ? reject(error) : resolve(content));
    }));

  if (runtime === "deno") denoProbes(fills, reads, source, target, servers, content);
  else bunProbes(reads, target, servers);
  return { calls, end: servers.end };
}

type Add = (name: CallName, run: Call["run"]) => void;

function denoProbes(
  fills: Add,
  reads: Add,
  source: string,
  target: string,
  servers: Servers,
  content: Uint8Array,
): void {
  fills("Deno.FsFile.readSync", (b) => {
    using file = Deno.openSync(source);
    file.readSync(b);
  });
  fills("Deno.FsFile.read", async (b) => {
    using file = Deno.openSync(source);
    await file.read(b);
  });
  const written = async (use: (file: Deno.FsFile) => unknown): Promise<Uint8Array> => {
    using file = Deno.openSync(target, { write: true, create: true, truncate: true });
    await use(file);
    return Deno.readFileSync(target);
  };
  reads("Deno.FsFile.writeSync", (b) => written((file) => file.writeSync(b)));
  reads("Deno.FsFile.write", (b) => written((file) => file.write(b)));
  reads("Deno.writeFileSync", (b) => {
    Deno.writeFileSync(target, b);
    return Deno.readFileSync(target);
  });
  reads("Deno.writeFile", async (b) => {
    await Deno.writeFile(target, b);
    return Deno.readFileSync(target);
  });
  reads("Deno.Conn.write", async (b) => {
    using socket = await Deno.connect({ port: servers.net.port });
    for (let at = 0; at < b.length;) at += await socket.write(b.subarray(at));
    await socket.closeWrite();
    return await servers.net.received();
  });
  fills("Deno.Conn.read", async (b) => {
    using socket = await Deno.connect({ port: servers.source(content) });
    await socket.read(b);
  });
}

function bunProbes(reads: Add, target: string, servers: Servers): void {
  const bun = (globalThis as unknown as { Bun: BunLike }).Bun;
  reads("Bun.write", async (b) => {
    await bun.write(target, b);
    return fs.readFileSync(target);
  });
  reads("Bun.file().writer()", async (b) => {
    fs.rmSync(target, { force: true });
    const sink = bun.file(target).writer();
    await sink.write(b); // flush() and end() resolve all the same
    await sink.end();
    return fs.readFileSync(target);
  });
  reads("Bun.connect Socket.write", async (b) => {
    const got = servers.net.received();
    const socket = await bun.connect({
      hostname: "127.0.0.1",
      port: servers.net.port,
      socket: { data(): void {} },
    });
    if (socket.write(b) !== 0) throw new Error("it said that it took something");
    socket.end();
    return await got;
  });
}

// A digest says as much as the bytes do.
function equalDigest(content: Uint8Array, digest: Uint8Array): Uint8Array {
  const expected = crypto.createHash("sha256").update(content).digest();
  return expected.equals(digest) ? content : new Uint8Array(0);
}

function failed(result: number): void {
  if (result >= 0) return;
  throw Object.assign(new Error("it failed"), { code: `-1, ${errnoName(errno())}` });
}

interface Servers {
  /** Takes everything that a connection brings. */
  net: { port: number; received(): Promise<Uint8Array> };
  /** A port that sends something to who connects next. */
  source(content: Uint8Array): number;
  /** Answers with the body. */
  http: string;
  webSocket: string;
  end(): void;
}

async function startServers(runtime: "deno" | "bun"): Promise<Servers> {
  const waiting: ((bytes: Uint8Array) => void)[] = [];
  let send: Uint8Array = new Uint8Array(0);
  const sink = net.createServer({ allowHalfOpen: true }, (socket) => {
    const parts: Uint8Array[] = [];
    socket.on("data", (part) => parts.push(part));
    socket.on("error", () => {});
    socket.on("end", () => {
      waiting.shift()?.(Buffer.concat(parts));
      socket.end();
    });
  });
  const giver = net.createServer((socket) => void socket.on("error", () => {}).end(send));
  const http = createHttpServer((request, response) => void request.pipe(response));
  for (const server of [sink, giver, http]) {
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
  }
  const port = (server: { address(): unknown }): number =>
    (server.address() as { port: number }).port;
  const echo = runtime === "deno" ? denoEcho() : bunEcho();
  return {
    net: {
      port: port(sink),
      received: () => new Promise((resolve) => waiting.push(resolve)),
    },
    source: (content): number => (send = content, port(giver)),
    http: `http://127.0.0.1:${port(http)}/`,
    webSocket: `ws://127.0.0.1:${echo.port}/`,
    end: () => echo.stop(),
  };
}

function denoEcho(): { port: number; stop(): void } {
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen: () => {} }, (request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.onmessage = ({ data }) => socket.send(data);
    return response;
  });
  return { port: (server.addr as Deno.NetAddr).port, stop: () => void server.shutdown() };
}

function bunEcho(): { port: number; stop(): void } {
  interface Upgrading {
    upgrade(request: unknown): boolean;
  }
  const server = (globalThis as unknown as { Bun: BunLike }).Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: (request: unknown, server: Upgrading) => void server.upgrade(request),
    websocket: {
      message: (socket: { send(data: unknown): void }, data: unknown) => socket.send(data),
    },
  });
  return { port: server.port, stop: () => server.stop(true) };
}
