/**
 * An all-to-all shuffle: every process makes records and sends each to the process that its key belongs to.
 * It runs on as many hosts as the launcher gives it, over RDMA, TCP or shared memory.
 *
 *     mpirun -n 4 --bind-to none deno run -A examples/cluster/shuffle.ts
 *     mpirun --hostfile hosts --bind-to none bun examples/cluster/shuffle.ts --transport rdma
 *     srun -N 4 -n 8 bun examples/cluster/shuffle.ts --transport rdma
 *     mpiexec.hydra -f hosts bun examples/cluster/shuffle.ts --transport tcp
 *     deno run -A examples/cluster/shuffle.ts --rank 0 --size 2 --root node01:7471 --transport tcp
 *
 * mpirun binds each process to a processor unless it is told not to, and a runtime has several threads.
 *
 * There is one buffer for each other process. When it is full it is sent, and filled again at once: what
 * is still on its way is guarded, and a page of it that is written to is replaced by a private copy. In the end
 * everybody compares what was sent with what has arrived: the number of records, and a sum over all of them, of
 * each pair of processes.
 *
 * @module
 */
import process from "node:process";
import { parseArgs } from "node:util";
import { type Guard, Pool } from "../../mod.ts";
import { number, oneOf, rate, run, size, turn } from "../support/program.ts";
import { findPlace, PLACE_HELP, PLACE_OPTIONS } from "./place.ts";
import { join, type World } from "./world.ts";

const HELP = `
shuffle.ts [OPTIONS]     started by mpirun, mpiexec or srun, or once for each process by hand

    --transport NAME   shm (one host), tcp or rdma (shm)
    --bytes BYTES      of records that each process makes; k, m and g stand for KiB, MiB and GiB (64m)
    --message BYTES    of a message, that is of each buffer (256k)
    --ahead N          messages to each process that may be in flight (4)
    --guard GUARD      auto, cow, wait, copy or none; with none it must fail (cow)
    --timeout SECONDS  until all processes have to have found each other (30)
${PLACE_HELP}
MOAT_ADDRESS is the address of this host's interface to be used, where there are several.
`;

/** A record: four words of 32 bits. The first is its key; the others are derived from it and from its origin. */
const WORDS = 4, RECORD = WORDS * 4;
const GUARDS: readonly Guard[] = ["auto", "cow", "wait", "copy", "none"];

/** What was sent from one process to another, or has arrived. */
interface Tally {
  records: number;
  /** Of a hash of each record, modulo 2^32. */
  sum: number;
}

await run("shuffle", HELP, async () => {
  const { values } = parseArgs({
    options: {
      transport: { type: "string", default: "shm" },
      bytes: { type: "string", default: "64m" },
      message: { type: "string", default: "256k" },
      ahead: { type: "string", default: "4" },
      guard: { type: "string", default: "cow" },
      timeout: { type: "string", default: "30" },
      ...PLACE_OPTIONS,
    },
  });
  const transport = oneOf("--transport", values.transport, ["shm", "tcp", "rdma"]);
  const message = size("--message", values.message, 4096, 16 << 20);
  const records = Math.floor(size("--bytes", values.bytes, RECORD, 2 ** 40) / RECORD);
  const ahead = number("--ahead", values.ahead, 1, 64);
  const guard = oneOf("--guard", values.guard, GUARDS);
  const timeout = number("--timeout", values.timeout, 1, 3600) * 1000;

  // For each process a buffer, and room for what arrives from it; in reserve, for what is in flight to it.
  // Large buffers begin at multiples of 2 MiB where they can.
  const { size: processes } = findPlace(process.env, values);
  const each = message < 256 << 10 ? message : Math.ceil(message / (2 << 20)) * (2 << 20);
  await using pool = Pool.create({
    bytes: processes * (ahead + 2) * each,
    reserve: processes * (ahead + 1) * message,
  });
  await using world = await join({ transport, pool, place: values, timeout });
  await shuffle(world, pool, { records, message, ahead, guard });
});

interface Work {
  records: number;
  message: number;
  ahead: number;
  guard: Guard;
}

async function shuffle(world: World, pool: Pool, work: Work): Promise<void> {
  const { rank, place } = world, size = world.size;
  const started = place.launcher === "hand" ? "by hand" : `by ${place.launcher}`;
  if (rank === 0) {
    console.log(`${size} processes, started ${started}, met by ${world.by}, job ${place.job}`);
  }
  await world.allGather("ready"); // so that all begin at the same time
  const start = performance.now();
  const received = Promise.all(world.others.map((from) => receive(world, from)));
  received.catch(() => {}); // told below, unless sending fails first
  const sent = await Promise.race([send(world, pool, work), received.then(() => never<Tally[]>())]);
  const arrived: Tally[] = [];
  for (const [i, tally] of (await received).entries()) arrived[world.others[i]!] = tally;
  const milliseconds = performance.now() - start;
  arrived[rank] = sent[rank]!;

  const all = (await world.allGather(JSON.stringify({ sent, arrived })))
    .map((text) => JSON.parse(text) as { sent: Tally[]; arrived: Tally[] });
  let records = 0;
  for (const [from, { sent }] of all.entries()) {
    for (const [to, { arrived }] of all.entries()) {
      const a = sent[to]!, b = arrived[from]!;
      records += b.records;
      if (a.records === b.records && a.sum === b.sum) continue;
      throw new Error(
        `what rank ${from} sent to rank ${to} is not what arrived: ${a.records} records with the sum ` +
          `${a.sum}, and ${b.records} with ${b.sum}`,
      );
    }
  }
  if (records !== size * work.records) {
    throw new Error(`${records} records, not ${size * work.records}`);
  }
  report(world, pool, milliseconds, work, sent);
  if (rank > 0) return;
  const sum = all.reduce((sum, { arrived }) => arrived.reduce((s, t) => (s + t.sum) >>> 0, sum), 0);
  console.log(
    `all: ${records} records, each once where its key belongs, sum ${sum.toString(16)}; ` +
      `${rate(records * RECORD, milliseconds)} over ${
        world.to((rank + 1) % size)?.transport ?? "nothing"
      }`,
  );
}

function never<T>(): Promise<T> {
  return new Promise(() => {});
}

/** Makes the records and sends them where they belong. Returns what went where. */
async function send(world: World, pool: Pool, work: Work): Promise<Tally[]> {
  const { rank, size } = world, { ahead, guard } = work;
  const words = Math.floor(work.message / RECORD) * WORDS;
  const tallies = Array.from({ length: size }, (): Tally => ({ records: 0, sum: 0 }));
  const buffers = tallies.map(() => pool.alloc(words * 4));
  const views = buffers.map(({ bytes }) => new Uint32Array(bytes.buffer, bytes.byteOffset, words));
  const filled = tallies.map(() => 0), flying = tallies.map((): Promise<unknown>[] => []);

  const flush = async (to: number): Promise<void> => {
    const bytes = buffers[to]!.bytes.subarray(0, filled[to]! * 4);
    filled[to] = 0;
    if (to === rank || bytes.length === 0) return; // one's own records stay here
    const queue = flying[to]!;
    const sent = world.send(to, bytes, { guard });
    sent.catch(() => {}); // told when it is waited for
    queue.push(sent);
    // Not for the buffer, which may be written to at once, but so as not to be far ahead of a slow receiver.
    if (queue.length >= ahead) await queue.shift();
    else await turn();
  };

  const random = generator(rank + 1);
  for (let i = 0; i < work.records; i++) {
    const key = random(), to = partition(key, size), view = views[to]!, at = filled[to]!;
    view[at] = key;
    view[at + 1] = rank;
    view[at + 2] = i;
    view[at + 3] = Math.imul(key ^ i, 0x9e3779b1) >>> 0;
    const tally = tallies[to]!;
    tally.records++;
    tally.sum = (tally.sum + hash(view, at)) >>> 0;
    if ((filled[to] = at + WORDS) === words) await flush(to);
  }
  for (const to of world.others) {
    await flush(to);
    flying[to]!.push(world.send(to, new Uint8Array(0))); // that was all
  }
  await Promise.all(flying.flat());
  return tallies;
}

/** Takes what another process sends, until an empty message, and looks at each record. */
async function receive(world: World, from: number): Promise<Tally> {
  const tally: Tally = { records: 0, sum: 0 };
  for (;;) {
    using arrived = await world.recv(from);
    if (arrived.byteLength === 0) return tally;
    const { buffer, byteOffset, byteLength } = arrived.bytes;
    const words = byteOffset % 4 === 0
      ? new Uint32Array(buffer, byteOffset, byteLength / 4)
      : new Uint32Array(arrived.bytes.slice().buffer);
    for (let at = 0; at < words.length; at += WORDS) {
      if (partition(words[at]!, world.size) !== world.rank || words[at + 1] !== from) {
        throw new Error(
          `record ${tally.records} from rank ${from}: key ${words[at]} of rank ${
            words[at + 1]
          } does ` +
            `not belong to rank ${world.rank}`,
        );
      }
      tally.records++;
      tally.sum = (tally.sum + hash(words, at)) >>> 0;
    }
  }
}

/** The rank that a key belongs to: each has an equal part of all keys, in their order. */
function partition(key: number, size: number): number {
  return Math.floor(key / 2 ** 32 * size);
}

/** Depends on every word of a record. */
function hash(words: Uint32Array, at: number): number {
  let h = 0;
  for (let i = 0; i < WORDS; i++) {
    h = Math.imul((h ^ words[at + i]!) + 0x7f4a7c15, 0x85ebca6b) ^ h >>> 15;
  }
  return h >>> 0;
}

/** Numbers of 32 bits that look random, the same for the same seed (xorshift, Marsaglia 2003). */
function generator(seed: number): () => number {
  let x = Math.imul(seed, 0x9e3779b1) | 1;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
}

function report(
  { rank, place }: World,
  pool: Pool,
  milliseconds: number,
  { message }: Work,
  sent: Tally[],
): void {
  const elsewhere = sent.filter((_, to) => to !== rank);
  const bytes = elsewhere.reduce((sum, { records }) => sum + records, 0) * RECORD;
  const { faults, privatePages, waits, bytesCopiedOut } = pool.stats();
  const where = place.localRank === undefined ? "" : ` (${place.localRank} of its host)`;
  const lines = [
    `rank ${rank}${where}, process ${process.pid}: sent ${bytes} bytes in messages of ${message} ` +
    `while it made them, ${rate(bytes, milliseconds)}; ${bytesCopiedOut} bytes copied to send`,
    `rank ${rank}: ${faults.writes} writes met pages in flight: ${privatePages} pages were ` +
    `replaced, ${waits.count} writes waited`,
  ];
  console.log(lines.join("\n"));
}
