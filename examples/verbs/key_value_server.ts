/**
 * The server of key_value.ts: it has the table, and handles PUTs. Of GETs it does not know.
 *
 * @module
 */
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { CmId, type MemoryRegion, NativeMemory } from "../../lib/verbs/mod.ts";
import { type Geometry, roomFor, writeSlot } from "./key_value_table.ts";
import { completed, endWithPeer } from "./support.ts";

/** What the server answers to a PUT. */
export const ANSWER = { stored: 0, full: 1, malformed: 2 } as const;
/** Bytes in front of the key in a PUT: the lengths of key and value, 32 bits each, little-endian. */
export const PUT_HEADER = 8;

/** What a server is to be. */
export interface ServerOptions extends Geometry {
  /** Where to listen: "" for every address. */
  readonly host: string;
  readonly port: number;
  /** Milliseconds it pauses in the middle of each PUT, for readers to see it half done. */
  readonly pause: number;
}

/** What a server has done. */
interface Counters {
  connections: number;
  /** Completions taken from its completion queues: each message that came, and each that was sent. */
  completions: number;
  puts: number;
}

/** Where the table is and how large, for the private data of the acceptance. */
export function describeTable({ addr, rkey }: MemoryRegion, geometry: Geometry): Uint8Array {
  const info = new DataView(new ArrayBuffer(20));
  info.setBigUint64(0, BigInt(addr));
  info.setUint32(8, rkey);
  info.setUint32(12, geometry.slots);
  info.setUint32(16, geometry.slotBytes);
  return new Uint8Array(info.buffer);
}

/** Serves until the process is asked to end (SIGTERM, SIGINT), and then says what it has done. */
export async function serve(options: ServerOptions): Promise<void> {
  using listener = CmId.create();
  await listener.listen(options.host, options.port);
  // All connections may read the same memory; each of their protection domains has a region over it.
  using table = new NativeMemory(options.slots * options.slotBytes);
  const ids = new Set<CmId>();
  const counters: Counters = { connections: 0, completions: 0, puts: 0 };
  const end = Promise.withResolvers<void>();
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => end.resolve());
  console.log(`server: listening at port ${listener.localPort}`);

  // One PUT at a time, whoever asks: the table has one writer.
  let last = Promise.resolve();
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const result = last.then(work);
    last = result.then(() => {}, () => {});
    return result;
  };
  const accept = async (): Promise<void> => {
    for await (const { id } of listener.requests()) {
      counters.connections++;
      ids.add(id);
      serveOne(id, table, options, counters, inTurn).catch((error: Error) => {
        // The end of a connection flushes the receive that waits for its next PUT.
        const over = (error as { status?: string }).status === "WR_FLUSH_ERR" || !ids.has(id);
        if (!over) console.error(`server: ${error.message}`);
      }).finally(() => {
        ids.delete(id);
        id.close();
      });
    }
  };
  await Promise.race([accept(), end.promise]);
  for (const id of ids) {
    ids.delete(id);
    id.close();
  }
  console.log(
    `server: ${counters.puts} PUTs of ${counters.connections} connections; ` +
      `${counters.completions} completions in all: no GET came here`,
  );
}

async function serveOne(
  id: CmId,
  table: NativeMemory,
  options: ServerOptions,
  counters: Counters,
  inTurn: <T>(work: () => Promise<T>) => Promise<T>,
): Promise<void> {
  endWithPeer(id);
  using pd = id.context.allocPd();
  using channel = id.context.createCompletionChannel();
  using sends = id.context.createCq({ entries: 4, channel });
  using receives = id.context.createCq({ entries: 4, channel });
  const qp = id.createQp(pd, { sendCq: sends, recvCq: receives, maxSendWr: 4, maxRecvWr: 4 });
  const region = pd.registerMemory(table.address, table.bytes.length, { remoteRead: true });
  const inbox = pd.allocate(PUT_HEADER + roomFor(options)), outbox = pd.allocate(4);
  qp.postRecv({ segments: inbox.segment() });
  await id.accept({ privateData: describeTable(region, options), responderResources: 16 });
  for (;;) {
    const { byteLength } = await completed(receives);
    counters.completions++;
    const message = inbox.bytes.subarray(0, byteLength);
    const answer = await inTurn(() => put(message, table, options));
    if (answer === ANSWER.stored) counters.puts++;
    new DataView(outbox.bytes.buffer).setUint32(0, answer, true);
    qp.postRecv({ segments: inbox.segment() }); // the client sends its next PUT after the answer
    qp.send(outbox.segment());
    await completed(sends);
    counters.completions++;
  }
}

async function put(
  message: Uint8Array,
  table: NativeMemory,
  options: ServerOptions,
): Promise<number> {
  if (message.length < PUT_HEADER) return ANSWER.malformed;
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  const key = message.subarray(PUT_HEADER, PUT_HEADER + view.getUint32(0, true));
  const value = message.subarray(PUT_HEADER + key.length);
  if (view.getUint32(4, true) !== value.length || key.length === 0) return ANSWER.malformed;
  const halfway = async (): Promise<void> => {
    if (options.pause > 0) await sleep(options.pause);
  };
  const stored = await writeSlot(table.bytes, options, key, value, halfway);
  return stored ? ANSWER.stored : ANSWER.full;
}
