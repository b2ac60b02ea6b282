/**
 * Sends a file from one process to another, over any transport, and proves that it arrived.
 *
 *     deno run -A examples/file_transfer.ts
 *     bun examples/file_transfer.ts
 *
 * Like that it is both ends, in two processes, with a temporary file. On two hosts:
 *
 *     examples/file_transfer.ts receive tcp://:7471 copy.bin
 *     examples/file_transfer.ts send tcp://10.0.0.1:7471 original.bin
 *
 * The sender reads the file past the page cache into buffers of its pool and sends them from there. While
 * a buffer is on its way it is hashed, which no guard minds; only before the disk is to write into it again
 * is its send awaited, because for a disk no guard waits. The receiver writes each message to its file from
 * where it arrived, and hashes it meanwhile.
 *
 * @module
 */
import { createHash, randomBytes } from "node:crypto";
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { type Channel, connect, listen, Pool } from "../mod.ts";
import { again, oneOf, rate, run, size, UsageError } from "./support/program.ts";

const HELP = `
file_transfer.ts [OPTIONS]                         both ends, with a temporary file
file_transfer.ts receive [OPTIONS] ADDRESS PATH    waits for one file and stores it
file_transfer.ts send [OPTIONS] ADDRESS FILE       sends one

ADDRESS is shm://name, tcp://host:port or rdma://host:port; to receive at every address, tcp://:7471.

    --message BYTES    of a message, at most 64m, the same for both ends; k and m stand for KiB
                       and MiB (1m)
    --bytes BYTES      of the temporary file (64m)
    --transport NAME   for both ends in one: shm or tcp (shm)
`;

/** Messages that may be in flight, and that the receiver may be writing. */
const DEPTH = 8;

/** What the first message says, as JSON. */
interface Announcement {
  name: string;
  bytes: number;
}

await run("file_transfer", HELP, async () => {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      message: { type: "string", default: "1m" },
      bytes: { type: "string", default: "64m" },
      transport: { type: "string", default: "shm" },
    },
  });
  const message = size("--message", values.message, 4096, 64 << 20);
  const [mode, address, path] = positionals;
  if (mode === undefined) {
    const transport = oneOf("--transport", values.transport, ["shm", "tcp"]);
    return await bothEnds(transport, message, size("--bytes", values.bytes, 1, 2 ** 32));
  }
  oneOf("the mode", mode, ["send", "receive"]);
  if (address === undefined || path === undefined || positionals.length > 3) {
    throw new UsageError(`${mode} takes an address and a path`);
  }
  if (mode === "send") await send(address, path, message);
  else await receive(address, path, message, (where) => console.log(`waiting at ${where}`));
});

async function send(address: string, path: string, message: number): Promise<void> {
  await using pool = poolFor(message);
  await using file = pool.open(path);
  const total = file.size();
  await using channel = await connect(address, { pool });
  const start = performance.now(), hash = createHash("sha256");
  const announcement: Announcement = { name: basename(path), bytes: total };
  await channel.send(new TextEncoder().encode(JSON.stringify(announcement)));

  const buffers = Array.from({ length: DEPTH }, () => pool.alloc(message));
  const sent: Promise<unknown>[] = [];
  const read = async (n: number): Promise<Uint8Array> => {
    await sent[n % DEPTH]; // until then the peer may be reading the buffer
    const buf = buffers[n % DEPTH]!;
    const { bytes } = await file.read(buf, n * message);
    return buf.bytes.subarray(0, bytes);
  };
  let bytes = 0, hashing = 0;
  for (let n = 0, next = read(0); bytes < total; n++) {
    const data = await next;
    if (data.length === 0) throw new Error(`${path} became shorter while it was read`);
    sent[n % DEPTH] = channel.send(data, { guard: "cow" });
    next = read(n + 1);
    next.catch(() => {}); // it is told of in the next round, if there is one
    const before = performance.now();
    hash.update(data);
    hashing += performance.now() - before;
    bytes += data.length;
  }
  await Promise.all(sent);
  // An empty message ends the file; what the file's hash should be travels in its header.
  await channel.send(new Uint8Array(0), { header: hash.digest() });
  await verdict(channel);
  report("sent", bytes, performance.now() - start, hashing);
}

/** What the receiver says in the end: nothing, or what is wrong. */
async function verdict(channel: Channel): Promise<void> {
  using answer = await channel.recv();
  if (!answer) throw new Error("the receiver went away before it said that the file has arrived");
  const wrong = new TextDecoder().decode(answer.bytes);
  if (wrong !== "") throw new Error(`the receiver says: ${wrong}`);
}

async function receive(
  address: string,
  path: string,
  message: number,
  listening: (address: string) => void,
): Promise<void> {
  await using pool = poolFor(message);
  await using listener = await listen(address, { pool });
  listening(listener.address);
  await using channel = await listener.accept();
  await listener.close(); // one file, one sender
  const start = performance.now();
  const { name, bytes: total } = await announced(channel);

  // The file gets its name when it is known to be right.
  const part = `${path}.part`, hash = createHash("sha256");
  await using file = pool.open(part, { create: true, truncate: true });
  const writing: Promise<unknown>[] = [];
  let bytes = 0, hashing = 0, expected: Uint8Array | undefined;
  for (let n = 0; expected === undefined; n++) {
    await writing[n % DEPTH];
    const message = await channel.recv();
    if (!message) throw new Error(`the sender went away after ${bytes} of ${total} bytes`);
    if (message.byteLength === 0) {
      expected = message.header;
      break;
    }
    // Written from where it lies, over shm:// in the sender's pages, and only then let go of.
    writing[n % DEPTH] = file.write(message.bytes, bytes).finally(() => message.release());
    const before = performance.now();
    hash.update(message.bytes);
    hashing += performance.now() - before;
    bytes += message.byteLength;
  }
  await Promise.all(writing);
  await file.sync();
  const digest = hash.digest();
  const wrong = bytes !== total
    ? `${bytes} bytes arrived of ${total}`
    : digest.equals(expected!)
    ? ""
    : `the SHA-256 of what arrived is ${digest.toString("hex")}, which is not what was sent`;
  if (wrong === "") renameSync(part, path);
  await channel.send(new TextEncoder().encode(wrong));
  if (wrong !== "") throw new Error(wrong);
  report(`received and stored ${JSON.stringify(name)}:`, bytes, performance.now() - start, hashing);
  console.log(`SHA-256 ${digest.toString("hex")}, as the sender's`);
}

async function announced(channel: Channel): Promise<Announcement> {
  using first = await channel.recv();
  try {
    const { name, bytes } = JSON.parse(new TextDecoder().decode(first?.bytes)) as Announcement;
    if (typeof name === "string" && Number.isSafeInteger(bytes)) return { name, bytes };
  } catch { /* said below */ }
  throw new Error(`${channel.peer} is not file_transfer.ts send: it did not announce a file`);
}

/** A pool that has room for what is in flight. Large buffers begin at multiples of 2 MiB where they can. */
function poolFor(message: number): Pool {
  return Pool.create({ bytes: (DEPTH + 2) * Math.ceil(message / (2 << 20)) * (2 << 20) });
}

function report(what: string, bytes: number, milliseconds: number, hashing: number): void {
  console.log(
    `${what} ${bytes} bytes in ${milliseconds.toFixed(0)} ms, ${rate(bytes, milliseconds)}, ` +
      `of which the processor was hashing for ${hashing.toFixed(0)} ms`,
  );
}

async function bothEnds(transport: string, message: number, bytes: number): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "moat-file-transfer-"));
  process.on("exit", () => rmSync(directory, { recursive: true, force: true }));
  const from = join(directory, "original"), to = join(directory, "copy");
  writeFileSync(from, randomBytes(bytes));
  const address = transport === "shm" ? `shm://file-transfer-${process.pid}` : "tcp://127.0.0.1:0";
  const done = Promise.withResolvers<void>();
  const received = receive(address, to, message, (where) => {
    const options = ["--message", String(message)];
    again(import.meta.url, ["send", ...options, where, from]).done.then(done.resolve, done.reject);
  });
  await Promise.all([received, done.promise]);
}
