/**
 * Sends messages to and fro over a reliable connection that is set up by hand, with ibv_rc_pingpong(1) or
 * with itself on the other side.
 *
 *     deno run -A examples/rc_pingpong.ts [options]            a server
 *     bun examples/rc_pingpong.ts [options] HOST               a client
 *
 *     -p, --port PORT      TCP port where the two find each other (18515)
 *     -d, --ib-dev NAME    device (the first)
 *     -i, --ib-port PORT   port of the device (1)
 *     -s, --size BYTES     size of the messages (4096)
 *     -m, --mtu BYTES      path MTU (1024)
 *     -r, --rx-depth N     receives to post at a time (500)
 *     -n, --iters N        exchanges (1000)
 *     -l, --sl LEVEL       service level (0)
 *     -e, --events         sleep until completions come, instead of polling
 *     -g, --gid-idx INDEX  index of the own GID (RoCE: the RoCE v2 one of an IPv4 address, if there is one)
 *     -c, --chk            check every byte of every message
 *
 * The server sends back what it receives. Size, number and MTU have to be the same on both sides.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { randomInt } from "node:crypto";
import { parseArgs } from "node:util";
import { type Context, type GidEntry, type MoatError, openDevice } from "../lib/verbs/mod.ts";
import { number, run } from "./verbs/support.ts";
import {
  describe,
  type Destination,
  exchangeAsClient,
  exchangeAsServer,
} from "./verbs/destination.ts";

const RECV = 1, SEND = 2; // the numbers of the work requests, and bits of what is awaited
const MTUS = [256, 512, 1024, 2048, 4096] as const;
const PAGE = 4096;

await run("rc_pingpong", main);

async function main(): Promise<void> {
  const { host, port, device, ibPort, size, mtu, rxDepth, iters, sl, gidIndex, events, check } =
    options();
  using context = openDevice(device);
  using pd = context.allocPd();
  using channel = events ? context.createCompletionChannel() : undefined;
  using cq = context.createCq({ entries: rxDepth + 1, ...(channel ? { channel } : {}) });
  using qp = pd.createQp({ sendCq: cq, maxSendWr: 1, maxRecvWr: rxDepth, maxInlineData: 0 });
  // As in C there is one buffer for both directions, but to be checked, messages arrive in one of their own.
  const out = check ? size : 0;
  using memory = pd.allocate(out + size);
  const bytes = Buffer.from(memory.bytes.buffer), inbox = bytes.subarray(0, size);
  const inline = size <= qp.capacity.maxInlineData;
  const asHere = pattern(size, Array.from({ length: 251 }, (_, i) => i));
  const asInC = pattern(size, [0x7b]);
  let expected = host === undefined ? undefined : asHere;
  bytes.set(asHere, out);
  if (check) inbox.fill(0xee);

  const post = (count: number): number =>
    qp.postRecv(new Array(count).fill({ id: RECV, segments: memory.segment(0, size) }));
  qp.init({ port: ibPort });
  let posted = post(rxDepth);

  const { lid } = context.queryPort(ibPort), entry = ownGid(context, ibPort, gidIndex);
  const gid = entry?.bytes ?? new Uint8Array(16);
  const own: Destination = { lid, qpn: qp.qpNum, psn: randomInt(1 << 24), gid };
  console.log(`  local address:  ${describe(own)}`);
  const ready = (peer: Destination): void => {
    console.log(`  remote address: ${describe(peer)}`);
    const sgidIndex = entry?.index ?? 0, global = peer.gid.some((byte) => byte !== 0);
    qp.rtr({
      ...{ destQpNum: peer.qpn, rqPsn: peer.psn, pathMtu: mtu, lid: peer.lid, sl, port: ibPort },
      ...(global ? { remoteGid: peer.gid, sgidIndex } : {}),
    });
    qp.rts({ sqPsn: own.psn });
  };
  if (host === undefined) await exchangeAsServer(port, own, ready);
  else await exchangeAsClient(host, port, own, ready);

  let sent = 0, received = 0, pending = RECV;
  const send = (): void => {
    if (check && host === undefined) inbox.copy(bytes, out);
    if (check) inbox.fill(0xee); // whatever does not arrive shows
    qp.send(memory.segment(out, size), { id: SEND, inline });
    pending = RECV | SEND;
  };
  const verify = (): void => {
    // The first message tells a server whether the client is one in C, which sends something simpler.
    expected ??= inbox.equals(asInC) ? asInC : asHere;
    if (inbox.equals(expected)) return;
    const at = expected.findIndex((byte, i) => byte !== inbox[i]);
    throw new Error(
      `invalid data in message ${received}: byte ${at} is ${inbox[at]}, not ${expected[at]} ` +
        "(does the client check as well?)",
    );
  };
  const complete = (id: number, error: MoatError | undefined): void => {
    if (error) throw error;
    pending &= ~id;
    if (id === SEND) sent++;
    else {
      received++;
      if (check) verify();
      if (--posted <= 1) posted += post(rxDepth - posted);
    }
    if (sent < iters && pending === 0) send();
  };

  const start = performance.now();
  if (host !== undefined) send();
  while (received < iters || sent < iters) {
    if (events) {
      const wc = await cq.next();
      if (wc) complete(wc.wrId, wc.error);
    } else {
      const count = cq.poll(2);
      // A loop that never pauses is what makes the latency small: nothing else runs here meanwhile.
      for (let i = 0; i < count; i++) complete(cq.wrId(i), cq.error(i));
    }
  }
  const seconds = (performance.now() - start) / 1000, total = size * iters * 2;
  const took = `in ${seconds.toFixed(2)} seconds`;
  console.log(`${total} bytes ${took} = ${(total * 8 / seconds / 1e6).toFixed(2)} Mbit/sec`);
  console.log(`${iters} iters ${took} = ${(seconds * 1e6 / iters).toFixed(2)} usec/iter`);
}

/** The GID to be reached by; InfiniBand does without. */
function ownGid(context: Context, port: number, index: number | undefined): GidEntry | undefined {
  const needed = index !== undefined || context.queryPort(port).linkLayer === "ETHERNET";
  if (!needed) return undefined;
  const entry = index === undefined
    ? context.preferredGid(port)
    : context.gidTable(port).find((entry) => entry.index === index);
  if (entry) return entry;
  const where = `port ${port} of ${context.deviceName}`;
  throw new Error(`${where} has no GID at ${index ?? "any index"}: ibv_devinfo -v lists them`);
}

/** Some bytes again and again. ibv_rc_pingpong -c looks for a zero at the beginning of every page. */
function pattern(size: number, bytes: number[]): Buffer {
  const message = Buffer.alloc(size, Uint8Array.from(bytes));
  for (let at = 0; at < size; at += PAGE) message[at] = 0;
  return message;
}

interface Options {
  host: string | undefined;
  port: number;
  device: string | undefined;
  ibPort: number;
  size: number;
  mtu: typeof MTUS[number];
  rxDepth: number;
  iters: number;
  sl: number;
  gidIndex: number | undefined;
  events: boolean;
  check: boolean;
}

function options(): Options {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      port: { type: "string", short: "p", default: "18515" },
      "ib-dev": { type: "string", short: "d" },
      "ib-port": { type: "string", short: "i", default: "1" },
      size: { type: "string", short: "s", default: "4096" },
      mtu: { type: "string", short: "m", default: "1024" },
      "rx-depth": { type: "string", short: "r", default: "500" },
      iters: { type: "string", short: "n", default: "1000" },
      sl: { type: "string", short: "l", default: "0" },
      events: { type: "boolean", short: "e", default: false },
      "gid-idx": { type: "string", short: "g" },
      chk: { type: "boolean", short: "c", default: false },
    },
  });
  if (positionals.length > 1) throw new Error(`one host, not ${positionals.join(", ")}`);
  const mtu = MTUS.find((bytes) => bytes === Number(values.mtu));
  if (mtu === undefined) throw new Error(`--mtu takes ${MTUS.join(", ")}, not "${values.mtu}"`);
  const gid = values["gid-idx"];
  return {
    host: positionals[0],
    port: number("--port", values.port, 1, 65535),
    device: values["ib-dev"],
    ibPort: number("--ib-port", values["ib-port"], 1, 255),
    size: number("--size", values.size, 1, 2 ** 31 - 1),
    mtu,
    rxDepth: number("--rx-depth", values["rx-depth"], 1, 1 << 20),
    iters: number("--iters", values.iters, 1, 2 ** 31),
    sl: number("--sl", values.sl, 0, 15),
    gidIndex: gid === undefined ? undefined : number("--gid-idx", gid, 0, 255),
    events: values.events,
    check: values.chk,
  };
}
