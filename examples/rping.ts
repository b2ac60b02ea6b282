/**
 * Sends pings by RDMA over a connection of the connection manager, with rping(1) or with itself on the other
 * side: the server reads each ping out of the client's memory and writes it back into another buffer there.
 *
 *     deno run -A examples/rping.ts -s [options]               a server
 *     bun examples/rping.ts -c -a HOST [options]               a client
 *
 *     -a, --address HOST   where to listen (everywhere), or the server
 *     -p, --port PORT      port (7174)
 *     -S, --size BYTES     size of the pings, 26 to 65535 (64); for a server the largest it takes
 *     -C, --count N        how many pings a client sends (0: without end)
 *     -v, --verbose        print the pings
 *     -V, --validate       check every byte: a client what came back, a server what it has read
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { parseArgs } from "node:util";
import {
  CmId,
  type CompletionChannel,
  type CompletionQueue,
  type MemoryRegion,
  type ProtectionDomain,
  type QueuePair,
  type RemoteAddress,
} from "../lib/verbs/mod.ts";
import { completed, endWithPeer, number, run } from "./verbs/support.ts";

const LEAST = 26, MOST = 65535; // bytes of a ping, as in C
const INFO = 16; // bytes: an address (64 bits), an rkey and a length (32 bits), in network order

interface Options {
  server: boolean;
  address: string | undefined;
  port: number;
  size: number;
  count: number;
  verbose: boolean;
  validate: boolean;
}

/** A queue pair with what it needs. Sends and receives complete apart, so that each can be waited for. */
interface Endpoint {
  qp: QueuePair;
  sends: CompletionQueue;
  receives: CompletionQueue;
  /** Where messages arrive, and from where they are sent. */
  inbox: MemoryRegion;
  outbox: MemoryRegion;
  /** What the peer may read, and write. */
  source: MemoryRegion;
  sink: MemoryRegion;
}

await run("rping", async () => {
  const options = parse();
  await (options.server ? serve(options) : ping(options));
});

async function serve({ address = "", port, size, verbose, validate }: Options): Promise<void> {
  using listener = CmId.create();
  await listener.listen(address, port, 1);
  using id = (await listener.nextRequest())!.id;
  using pd = id.context.allocPd();
  using channel = id.context.createCompletionChannel();
  const endpoint = setUp(id, pd, channel, size), { qp, sends, outbox, sink } = endpoint;
  await id.accept();

  // What it says does not matter and does not change, so nobody has to know when it was sent.
  const goAhead = outbox.segment();
  const ended = id.disconnected.then(() => undefined);
  for (let n = 0;; n++) {
    const source = await Promise.race([ended, receive(endpoint)]);
    if (!source) break;
    if (source.length > size) {
      throw new Error(
        `the client's pings have ${source.length} bytes: run with -S ${source.length}`,
      );
    }
    qp.rdmaRead(sink.segment(0, source.length), source);
    await completed(sends);
    const bytes = Buffer.from(sink.bytes.buffer, 0, source.length), text = textOf(bytes);
    if (validate) compare(`ping ${n} that was read`, bytes, pingBytes(n, source.length));
    if (verbose) console.log(`server ping data: ${text}`);
    qp.send(goAhead, { signaled: false });

    const target = await receive(endpoint);
    qp.rdmaWrite(sink.segment(0, Math.min(text.length + 1, source.length)), target);
    await completed(sends);
    qp.send(goAhead, { signaled: false });
  }
  console.error("server DISCONNECT EVENT...");
}

async function ping({ address, port, size, count, verbose, validate }: Options): Promise<void> {
  if (address === undefined) throw new Error("a client needs the server's address: -a HOST");
  using id = CmId.create();
  await id.resolveAddr(address, port);
  await id.resolveRoute();
  using pd = id.context.allocPd();
  using channel = id.context.createCompletionChannel();
  const endpoint = setUp(id, pd, channel, size), { qp, sends, outbox, source, sink } = endpoint;
  await id.connect();

  for (let n = 0; count === 0 || n < count; n++) {
    const bytes = pingBytes(n, size);
    source.bytes.set(bytes);
    for (const region of [source, sink]) { // to be read, to be written
      const info = new DataView(outbox.bytes.buffer);
      info.setBigUint64(0, BigInt(region.addr));
      info.setUint32(8, region.rkey);
      info.setUint32(12, size);
      qp.send(outbox.segment());
      await completed(sends);
      await receive(endpoint); // go ahead
    }
    const back = Buffer.from(sink.bytes.buffer, 0, size);
    if (validate) compare(`ping ${n} that came back`, back, bytes);
    if (verbose) console.log(`ping data: ${textOf(back)}`);
    back.fill(0);
  }
  id.disconnect();
}

function setUp(
  id: CmId,
  pd: ProtectionDomain,
  channel: CompletionChannel,
  size: number,
): Endpoint {
  endWithPeer(id);
  const sends = id.context.createCq({ entries: 16, channel });
  const receives = id.context.createCq({ entries: 2, channel });
  const qp = id.createQp(pd, { sendCq: sends, recvCq: receives, maxSendWr: 16, maxRecvWr: 2 });
  const everything = { localWrite: true, remoteRead: true, remoteWrite: true };
  const inbox = pd.allocate(INFO), outbox = pd.allocate(INFO);
  qp.postRecv({ segments: inbox.segment() });
  const source = pd.allocate(size, everything), sink = pd.allocate(size, everything);
  return { qp, sends, receives, inbox, outbox, source, sink };
}

/** Takes a message and makes room for the next one, which does not come before this one was answered. */
async function receive(
  { receives, inbox, qp }: Endpoint,
): Promise<RemoteAddress & { length: number }> {
  const { byteLength } = await completed(receives);
  if (byteLength !== INFO) {
    throw new Error(`the other side is no rping: its message has ${byteLength} bytes, not ${INFO}`);
  }
  const info = new DataView(inbox.bytes.buffer.slice(0, INFO));
  qp.postRecv({ segments: inbox.segment() });
  return {
    address: Number(info.getBigUint64(0)),
    rkey: info.getUint32(8),
    length: info.getUint32(12),
  };
}

/** The text of a ping, `rdma-ping-0: ABC…`: its characters from "A" to "z" begin one later each time. */
function pingBytes(n: number, size: number): Buffer {
  const text = `rdma-ping-${n}: `, bytes = Buffer.alloc(size);
  bytes.write(text);
  for (let i = text.length; i < size - 1; i++) bytes[i] = 65 + (n + i - text.length) % 58;
  return bytes;
}

function textOf(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return bytes.toString("latin1", 0, end < 0 ? bytes.length : end);
}

function compare(what: string, found: Buffer, expected: Buffer): void {
  if (found.equals(expected)) return;
  const at = expected.findIndex((byte, i) => byte !== found[i]);
  throw new Error(`${what} is wrong: byte ${at} is ${found[at]}, not ${expected[at]}`);
}

function parse(): Options {
  const { values } = parseArgs({
    options: {
      server: { type: "boolean", short: "s", default: false },
      client: { type: "boolean", short: "c", default: false },
      address: { type: "string", short: "a" },
      port: { type: "string", short: "p", default: "7174" },
      size: { type: "string", short: "S", default: "64" },
      count: { type: "string", short: "C", default: "0" },
      verbose: { type: "boolean", short: "v", default: false },
      validate: { type: "boolean", short: "V", default: false },
    },
  });
  const { server, client, address, verbose, validate } = values;
  if (server === client) throw new Error("be a server, -s, or a client, -c -a HOST");
  return {
    ...{ server, address, verbose, validate },
    port: number("--port", values.port, 1, 65535),
    size: number("--size", values.size, LEAST, MOST),
    count: number("--count", values.count, 0, 2 ** 31 - 1),
  };
}
