/**
 * A parameter server: one process has the parameters of a model, several others compute how to improve them,
 * all at their own pace, and nobody waits for anybody.
 *
 *     deno run -A examples/parameter_server.ts
 *     bun examples/parameter_server.ts
 *
 * Like that it starts its workers itself. On several hosts:
 *
 *     examples/parameter_server.ts serve tcp://:7471 --workers 2
 *     examples/parameter_server.ts work tcp://10.0.0.1:7471
 *
 * Or in the processes that mpirun, mpiexec or srun started, of which rank 0 is the server (see cluster/shuffle.ts):
 *
 *     mpirun -n 4 --bind-to none bun examples/parameter_server.ts world --transport tcp
 *
 * The model is y = W x with 2,048 x 32 weights, and the true weights are known, so the program ends when it has
 * found them, or fails. What there is to see:
 *
 * - The server changes the weights in place while older versions of them are being read by workers: each
 *   version that is sent is a snapshot, for which nothing is copied but the pages that change meanwhile.
 * - A worker asks for the next weights, goes on to make the samples of its next step, and only when it
 *   touches the weights does it wait for them, in the middle of that line.
 *
 * @module
 */
import process from "node:process";
import { parseArgs } from "node:util";
import { type Channel, connect, listen, type Message, Pool } from "../mod.ts";
import { join } from "./cluster/world.ts";
import { again, number, oneOf, run, UsageError } from "./support/program.ts";

const HELP = `
parameter_server.ts [OPTIONS]                  a server with workers of its own
parameter_server.ts serve [OPTIONS] ADDRESS    a server that waits for so many workers
parameter_server.ts work ADDRESS               a worker
parameter_server.ts world [OPTIONS]            either, as a launcher of several processes says

ADDRESS is shm://name, tcp://host:port or rdma://host:port; to serve at every address, tcp://:7471.

    --workers N        how many (3)
    --updates N        gradients until it should be done (150)
    --transport NAME   to its own workers, or in a world: shm, tcp or rdma (shm)
`;

const OUTPUTS = 2048, INPUTS = 32, WEIGHTS = OUTPUTS * INPUTS;
/** Samples of a step. */
const BATCH = 64;
/** Of the gradient that is added to the weights. Small enough for gradients of some versions before. */
const RATE = 0.15;
/** What the largest error of a weight is to be in the end; the weights are from -1 to 1. */
const TOLERANCE = 1e-3;
/** In front of the weights, and behind them, is the number of their version. */
const VALUES = WEIGHTS + 2, BYTES = VALUES * Float32Array.BYTES_PER_ELEMENT;

await run("parameter_server", HELP, async () => {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      workers: { type: "string", default: "3" },
      updates: { type: "string", default: "150" },
      transport: { type: "string", default: "shm" },
    },
  });
  const workers = number("--workers", values.workers, 1, 100);
  const updates = number("--updates", values.updates, 1, 1e6);
  const [mode, address, ...rest] = positionals;
  if (mode !== undefined) {
    oneOf("the mode", mode, ["serve", "work", "world"]);
    if (mode === "world" && address !== undefined) throw new UsageError("world takes no address");
    if (mode !== "world" && (address === undefined || rest.length > 0)) {
      throw new UsageError(`${mode} takes an address`);
    }
  }
  if (mode === "work") return await work(address!);
  if (mode === "serve") {
    return await serve(address!, workers, updates, (at) => console.log(`waiting at ${at}`));
  }
  if (mode === "world") {
    return await inWorld(oneOf("--transport", values.transport, ["shm", "tcp", "rdma"]), updates);
  }
  const transport = oneOf("--transport", values.transport, ["shm", "tcp"]);
  const at = transport === "shm" ? `shm://parameters-${process.pid}` : "tcp://127.0.0.1:0";
  const { promise: done, resolve, reject } = Promise.withResolvers<unknown>();
  const serving = serve(at, workers, updates, (at) => {
    const own = Array.from({ length: workers }, () => again(import.meta.url, ["work", at]));
    Promise.all(own.map((worker) => worker.done)).then(resolve, reject);
  });
  await Promise.all([serving, done]);
});

/** What is to be found. */
function truth(): Float32Array {
  return Float32Array.from({ length: WEIGHTS }, (_, i) => Math.sin(i * 0.37));
}

async function serve(
  address: string,
  workers: number,
  updates: number,
  listening: (address: string) => void,
): Promise<void> {
  await using pool = createPool();
  await using listener = await listen(address, { pool });
  listening(listener.address);
  const channels: Channel[] = [];
  while (channels.length < workers) channels.push(await listener.accept());
  await improveWith(channels, pool, updates);
}

/** Of the reserve a snapshot takes a page for each page that changes while it lives. */
function createPool(): Pool {
  return Pool.create({ bytes: 16 << 20, reserve: 64 << 20 });
}

/** Rank 0 is the server, and all others are workers. */
async function inWorld(transport: "shm" | "tcp" | "rdma", updates: number): Promise<void> {
  await using pool = createPool();
  await using world = await join({ transport, pool });
  if (world.size < 2) throw new UsageError("a world of one process has a server and no workers");
  if (world.rank > 0) await workFor(world.to(0), pool);
  else await improveWith(world.others.map((rank) => world.to(rank)), pool, updates);
}

async function improveWith(channels: Channel[], pool: Pool, updates: number): Promise<void> {
  using buf = pool.alloc(BYTES);
  buf.bytes.fill(0);
  const model = new Float32Array(buf.bytes.buffer, buf.bytes.byteOffset, VALUES);
  let version = 0, staleness = 0, sending: Channel[] = [...channels];
  const sent: Promise<unknown>[] = [];

  // All who wait get one snapshot, whoever they are; what arrives meanwhile makes the next version.
  const publish = (): void => {
    using snapshot = buf.snapshot();
    for (const channel of sending) sent.push(channel.send(snapshot));
    sending = [];
  };
  const serveOne = async (channel: Channel): Promise<void> => {
    while (version < updates) {
      using gradient = await channel.recv();
      if (!gradient) throw new Error(`a worker, ${channel.peer}, went away`);
      if (version === updates) break; // another one was faster
      staleness += version - improve(model, gradient);
      model[0] = model[VALUES - 1] = ++version;
      sending.push(channel);
      if (sending.length === 1) setImmediate(publish);
    }
  };
  const start = performance.now();
  publish();
  await Promise.all(channels.map(serveOne));
  const milliseconds = performance.now() - start;
  await new Promise((resolve) => setImmediate(resolve)); // the last version is sent too
  await Promise.all(channels.map((channel) => channel.close())); // that was all
  await Promise.all(sent);

  const wanted = truth();
  const error = wanted.reduce((most, w, i) => Math.max(most, Math.abs(w - model[i + 1]!)), 0);
  const { privatePages, bytesCopiedOut } = pool.stats();
  console.log(
    `server: ${updates} updates in ${milliseconds.toFixed(0)} ms, each on weights that were ` +
      `${(staleness / updates).toFixed(1)} versions old; ${sent.length} sends copied ` +
      `${bytesCopiedOut} bytes, and ${privatePages} pages changed while somebody was reading them\n` +
      `server: the largest error of ${WEIGHTS} weights is ${error.toExponential(1)}`,
  );
  if (!(error < TOLERANCE)) throw new Error(`the weights were not found: ${error} is too much`);
}

/** Adds a gradient to the weights, and returns on which version of them it was computed. */
function improve(model: Float32Array, { bytes, byteLength }: Message): number {
  if (byteLength !== BYTES) throw new Error(`a gradient of ${byteLength} bytes, not ${BYTES}`);
  const gradient = new Float32Array(bytes.buffer, bytes.byteOffset, VALUES);
  for (let i = 1; i <= WEIGHTS; i++) model[i]! += RATE * gradient[i]!;
  if (gradient[0] !== gradient[VALUES - 1]) throw new Error("a gradient is torn");
  return gradient[0]!;
}

async function work(address: string): Promise<void> {
  await using pool = createPool();
  await using channel = await connect(address, { pool });
  await workFor(channel, pool);
}

async function workFor(channel: Channel, pool: Pool): Promise<void> {
  using modelBuffer = pool.alloc(BYTES), gradientBuffer = pool.alloc(BYTES);
  const gradient = floats(gradientBuffer.bytes);
  const wanted = truth(), samples = new Float32Array(BATCH * INPUTS);
  let steps = 0;
  const sent: Promise<unknown>[] = [];
  for (;; steps++) {
    const receiving = channel.recv(modelBuffer); // returns at once
    for (let i = 0; i < samples.length; i++) samples[i] = gaussian();
    const model = floats(modelBuffer.bytes);
    const version = model[0]!; // waits, in the middle of this line, for the weights
    compute(gradient, model, wanted, samples);
    if (await receiving === null) break; // those were the last: the server has enough
    if (model[VALUES - 1] !== version) throw new Error("the weights are torn");
    gradient[0] = gradient[VALUES - 1] = version;
    sent.push(channel.send(gradientBuffer)); // guarded, so the next round may overwrite it
  }
  await Promise.allSettled(sent); // the server does not take what it does not need any more
  const { waits } = pool.stats();
  console.log(
    `worker: ${steps} gradients; waited ${waits.count} times for weights, ` +
      `${(waits.nanoseconds / 1e6).toFixed(0)} ms in all`,
  );
}

/** The gradient of the mean squared error on some samples, whose outputs are those of the true weights. */
function compute(
  gradient: Float32Array,
  model: Float32Array,
  wanted: Float32Array,
  samples: Float32Array,
): void {
  const sums = new Float64Array(INPUTS);
  for (let row = 0; row < OUTPUTS; row++) {
    const at = row * INPUTS;
    sums.fill(0);
    for (let x = 0; x < samples.length; x += INPUTS) {
      let error = 0;
      for (let i = 0; i < INPUTS; i++) {
        error += (wanted[at + i]! - model[at + i + 1]!) * samples[x + i]!;
      }
      for (let i = 0; i < INPUTS; i++) sums[i]! += error * samples[x + i]!;
    }
    for (let i = 0; i < INPUTS; i++) gradient[at + i + 1] = sums[i]! / BATCH;
  }
}

function floats({ buffer, byteOffset }: Uint8Array<ArrayBuffer>): Float32Array {
  return new Float32Array(buffer, byteOffset, VALUES);
}

/** A number of the standard normal distribution (Box and Muller 1958). */
function gaussian(): number {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}
