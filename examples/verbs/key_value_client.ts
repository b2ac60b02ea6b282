/**
 * The client of key_value.ts: GET is an RDMA READ of the server's table, PUT a message to the server.
 *
 * @module
 */
import {
  CmId,
  type CompletionChannel,
  type CompletionQueue,
  type MemoryRegion,
  type ProtectionDomain,
  type QueuePair,
  type RemoteAddress,
} from "../../lib/verbs/mod.ts";
import { ANSWER, PUT_HEADER } from "./key_value_server.ts";
import {
  candidates,
  equal,
  type Geometry,
  type Reading,
  readSlot,
  roomFor,
} from "./key_value_table.ts";
import { completed, endWithPeer } from "./support.ts";

/** How often a slot is read again before something must be wrong with the server. */
const PATIENCE_MS = 5000;

/** A connection to a server. One operation at a time; make several for more. */
export class Client implements Disposable {
  /** Slots that were read. */
  reads = 0;
  /** Of those, the ones that were torn, and read again. */
  torn = 0;
  /** Shown every slot that was torn, before it is read again. */
  onTorn: ((slot: Uint8Array) => void) | undefined;
  readonly #connection: Connection;
  readonly #table: RemoteAddress;
  readonly #geometry: Geometry;
  /** Where slots are read to, where PUTs are sent from, and where their answers come. */
  readonly #slot: MemoryRegion;
  readonly #outbox: MemoryRegion;
  readonly #inbox: MemoryRegion;

  private constructor(connection: Connection, table: DataView) {
    this.#connection = connection;
    this.#table = { address: Number(table.getBigUint64(0)), rkey: table.getUint32(8) };
    this.#geometry = { slots: table.getUint32(12), slotBytes: table.getUint32(16) };
    const { pd } = connection;
    this.#slot = pd.allocate(this.#geometry.slotBytes);
    this.#outbox = pd.allocate(PUT_HEADER + roomFor(this.#geometry));
    this.#inbox = pd.allocate(4);
  }

  /** Connects to a server. */
  static async connect(host: string, port: number): Promise<Client> {
    const id = CmId.create();
    try {
      await id.resolveAddr(host, port);
      await id.resolveRoute();
      const connection = setUp(id);
      const info = await id.connect({ initiatorDepth: 1 });
      if (info.length < 20) throw new Error(`${host}:${port} is no key_value.ts: it has no table`);
      const table = new DataView(info.buffer, info.byteOffset, info.byteLength);
      return new Client(connection, table);
    } catch (error) {
      id.close();
      throw error;
    }
  }

  /** The value of a key; undefined if there is none. The server's processor does not notice. */
  async get(key: Uint8Array): Promise<Uint8Array | undefined> {
    for (const at of candidates(key, this.#geometry)) {
      const reading = await this.#whole(at);
      if (reading === "empty") return undefined;
      if (equal(reading.key, key)) return reading.value.slice();
    }
    return undefined;
  }

  /** Reads a slot until what was read is of one moment. */
  async #whole(at: number): Promise<Exclude<Reading, "torn">> {
    const { qp, sends } = this.#connection;
    const remote = { address: this.#table.address + at, rkey: this.#table.rkey };
    for (const end = performance.now() + PATIENCE_MS;;) {
      qp.rdmaRead(this.#slot.segment(), remote);
      await completed(sends);
      this.reads++;
      const reading = readSlot(this.#slot.bytes);
      if (reading !== "torn") return reading;
      this.torn++;
      this.onTorn?.(this.#slot.bytes);
      if (performance.now() > end) {
        throw new Error(
          `a slot was being written for ${PATIENCE_MS} ms: is its server still alive?`,
        );
      }
    }
  }

  /** Stores a value. Resolves when everybody can read it. */
  async put(key: Uint8Array, value: Uint8Array): Promise<void> {
    const bytes = key.length + value.length, most = roomFor(this.#geometry);
    if (bytes > most) {
      throw new Error(`key and value have ${bytes} bytes; there is room for ${most}`);
    }
    const { qp, sends, receives } = this.#connection;
    const message = this.#outbox.bytes, lengths = new DataView(message.buffer);
    lengths.setUint32(0, key.length, true);
    lengths.setUint32(4, value.length, true);
    message.set(key, PUT_HEADER);
    message.set(value, PUT_HEADER + key.length);
    qp.postRecv({ segments: this.#inbox.segment() });
    qp.send(this.#outbox.segment(0, PUT_HEADER + bytes));
    await completed(sends);
    await completed(receives);
    const answer = new DataView(this.#inbox.bytes.buffer).getUint32(0, true);
    if (answer === ANSWER.full) throw new Error("the table is full where this key would be");
    if (answer !== ANSWER.stored) throw new Error("the server did not understand the PUT");
  }

  /** Ends the connection. */
  [Symbol.dispose](): void {
    const { id, pd, channel } = this.#connection;
    id.disconnect();
    for (const each of [id, pd, channel]) each.close(); // and whatever was made of them
  }
}

interface Connection {
  readonly id: CmId;
  readonly pd: ProtectionDomain;
  readonly channel: CompletionChannel;
  readonly qp: QueuePair;
  readonly sends: CompletionQueue;
  readonly receives: CompletionQueue;
}

function setUp(id: CmId): Connection {
  endWithPeer(id);
  const pd = id.context.allocPd(), channel = id.context.createCompletionChannel();
  const sends = id.context.createCq({ entries: 4, channel });
  const receives = id.context.createCq({ entries: 4, channel });
  const qp = id.createQp(pd, { sendCq: sends, recvCq: receives, maxSendWr: 4, maxRecvWr: 4 });
  return { id, pd, channel, qp, sends, receives };
}
