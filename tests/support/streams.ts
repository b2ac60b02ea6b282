/**
 * What code that was written for sockets does over a channel, at any address.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream, readFileSync, writeFileSync } from "node:fs";
import { createServer, type IncomingHttpHeaders, request } from "node:http";
import { join } from "node:path";
import { Duplex, Readable, Writable } from "node:stream";
import { type Channel, connect, listen, Pool } from "../../mod.ts";
import { pattern, sha256 } from "./bytes.ts";
import { pair } from "./pair.ts";

/** A Node stream of a channel, as `net.connect` would return one. */
export function duplexOf(channel: Channel): Duplex {
  const buf = new Uint8Array(64 << 10);
  return new Duplex({
    read(): void {
      channel.read(buf).then(
        (n) => this.push(n === null ? null : Buffer.from(buf.slice(0, n))),
        (error) => this.destroy(error),
      );
    },
    write(chunk: Uint8Array, _encoding, done): void {
      channel.write(chunk).then(() => done(), done);
    },
    final(done): void {
      channel.closeWrite().then(() => done(), done);
    },
    destroy(error, done): void {
      if (error) channel.abort(error);
      done(error);
    },
  });
}

interface Response {
  status: number | undefined;
  headers: IncomingHttpHeaders;
  body: Uint8Array;
}

async function bodyOf(stream: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks);
}

function ask(channel: Channel, method: string, path: string, body: Uint8Array): Promise<Response> {
  const { promise, resolve, reject } = Promise.withResolvers<Response>();
  const createConnection = (): Duplex => duplexOf(channel);
  const headers = { host: "channel", "content-length": body.byteLength };
  const asked = request({ createConnection, method, path, headers }, (answer) => {
    bodyOf(answer).then(
      (body) => resolve({ status: answer.statusCode, headers: answer.headers, body }),
      reject,
    );
  });
  asked.on("error", reject);
  asked.end(body);
  return promise;
}

/** HTTP/1.1 by the runtime's own client and server, each of which takes a channel for a socket. */
export async function http(at: string): Promise<void> {
  const server = createServer((asked, answer) => {
    bodyOf(asked).then((body) => {
      answer.writeHead(asked.url === "/none" ? 404 : 200, { "x-sha256": sha256(body) });
      answer.write(`${asked.method} ${asked.url} `);
      answer.end(body);
    });
  });
  await using pool = Pool.create({ bytes: 32 << 20 });
  await using listener = await listen(at, { pool });
  const serving = (async () => {
    for await (const channel of listener) server.emit("connection", duplexOf(channel));
  })();
  for (const [path, bytes] of [["/small", 1000], ["/large", 1 << 20], ["/none", 0]] as const) {
    await using channel = await connect(listener.address, { pool });
    const body = pattern(bytes, bytes), method = bytes > 0 ? "POST" : "GET";
    const answer = await ask(channel, method, path, body);
    assert.equal(answer.status, path === "/none" ? 404 : 200);
    assert.equal(answer.headers["x-sha256"], sha256(body));
    const start = `${method} ${path} `;
    assert.equal(Buffer.from(answer.body.subarray(0, start.length)).toString(), start);
    assert.equal(sha256(answer.body.subarray(start.length)), sha256(body));
  }
  await listener.close();
  await serving;
}

/** A file goes through `pipeTo` into a channel, and out of the other end into another file. */
export async function pipeFile(at: string, directory: string, bytes: number): Promise<void> {
  const from = join(directory, "from"), to = join(directory, "to"), data = pattern(bytes, bytes);
  writeFileSync(from, data);
  await using pool = Pool.create({ bytes: 16 << 20 });
  const { here, there } = await pair(pool, at);
  const source = Readable.toWeb(createReadStream(from, { highWaterMark: 256 << 10 }));
  const sink = Writable.toWeb(createWriteStream(to)) as WritableStream<Uint8Array>;
  await Promise.all([
    (source as unknown as ReadableStream<Uint8Array>).pipeTo(here.writable),
    there.readable.pipeTo(sink),
  ]);
  await Promise.all([here.close(), there.close()]);
  const got = readFileSync(to);
  assert.equal(got.byteLength, bytes);
  assert.equal(createHash("sha256").update(got).digest("hex"), sha256(data));
}
