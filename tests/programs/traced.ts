/**
 * Programs for the tests of tracing. The lines that start operations are marked, so that the test can name them.
 *
 *     traced.ts serial        a receive that is touched too early, over and over; the other end is a Worker
 *     traced.ts copies        writes to what is being sent
 *     traced.ts child CMD…    runs this program's "copies" by another runtime
 *     traced.ts lost          more faults in one go than are remembered
 *     traced.ts idle          nothing is touched
 *     traced.ts none          no pool
 *     traced.ts status        ends with the status 7, after a fault
 *     traced.ts throw         ends with an uncaught error
 *     traced.ts args ARGS…    prints its arguments
 *     traced.ts listener      what becomes of the error of a listener of faults
 */
import { spawnSync } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { isMainThread, Worker, workerData } from "node:worker_threads";
import { type Channel, connect, listen, Pool } from "../../mod.ts";

const MIB = 1 << 20, PAGE = 4096, MOMENT = 100;
/** What {@linkcode serial} does so often. */
const ROUNDS = 3;

async function serial(): Promise<void> {
  const pool = Pool.create({ bytes: 4 * MIB }), flag = new Int32Array(new SharedArrayBuffer(4));
  const listener = await listen(`shm://traced-${process.pid}`, { pool });
  const worker = new Worker(new URL(import.meta.url), {
    workerData: { address: listener.address, flag },
  });
  const channel = await listener.accept(), buf = pool.alloc(MIB);
  for (let round = 1; round <= ROUNDS; round++) {
    const got = channel.recv(buf); // mark: recv
    Atomics.store(flag, 0, round);
    Atomics.notify(flag, 0);
    if (buf.bytes[9] !== round) throw new Error("not what was sent");
    await got;
  }
  await channel.close();
  await listener.close();
  await new Promise((resolve) => worker.on("exit", resolve));
  await pool.close();
}

async function sender(address: string, flag: Int32Array): Promise<void> {
  const pool = Pool.create({ bytes: 4 * MIB }), channel = await connect(address, { pool });
  const { bytes } = pool.alloc(MIB);
  for (let round = 1; round <= ROUNDS; round++) {
    Atomics.wait(flag, 0, round - 1);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, MOMENT); // the other end waits by now
    bytes.fill(round); // which finds it closed to writes from the second time on
    await channel.send(bytes, { guard: "wait" }); // mark: worker
  }
  await channel.close();
  await pool.close();
}

/** Both ends of a channel, in this thread. */
async function ends(pool: Pool): Promise<[Channel, Channel]> {
  const listener = await listen(`shm://traced-${process.pid}`, { pool });
  const both = await Promise.all([listener.accept(), connect(listener.address, { pool })]);
  await listener.close();
  return both;
}

async function copies(): Promise<void> {
  await using pool = Pool.create({ bytes: 4 * MIB });
  // So large that the receiver reads it in place, though its pages are scattered by the private ones.
  const [here, there] = await ends(pool), buf = pool.alloc(256 * PAGE);
  for (let round = 0; round < 3; round++) {
    const sent = here.send(buf, { guard: "cow" }); // mark: send
    const message = await there.recv();
    buf.bytes[20 * PAGE] = 1;
    buf.bytes[10 * PAGE] = 2;
    message!.release();
    await sent;
    void buf.bytes; // what was left closed is opened
  }
  const { bytes } = buf, sent = here.send(buf, { guard: "cow" }); // mark: finished
  (await there.recv())!.release();
  await sent;
  bytes[7] = 1; // only restores the permission
  here.abort();
  there.abort();
}

async function lost(): Promise<void> {
  await using pool = Pool.create({ bytes: 8 * MIB, reserve: 8 * MIB, hugePages: false });
  const [here, there] = await ends(pool), buf = pool.alloc(1200 * PAGE), { bytes } = buf;
  const sent = here.send(buf, { guard: "cow" }); // mark: many
  const message = await there.recv();
  for (let page = 1199; page >= 0; page--) bytes[page * PAGE] = 1; // backwards: each is a fault of its own
  message!.release();
  await sent;
  here.abort();
  there.abort();
}

async function idle(): Promise<void> {
  await using pool = Pool.create({ bytes: MIB });
  const [here, there] = await ends(pool), buf = pool.alloc(64 << 10);
  const sent = here.send(buf, { guard: "cow" });
  (await there.recv())!.release();
  await sent;
  here.abort();
  there.abort();
}

/** A fault whose pool nobody closes. */
function early(): void {
  const pool = Pool.create({ bytes: MIB }), buf = pool.alloc(PAGE);
  buf.snapshot(); // mark: snapshot
  buf.bytes[0] = 1;
}

async function listener(): Promise<void> {
  await using pool = Pool.create({ bytes: MIB });
  let errors = 0, calls = 0;
  process.on("uncaughtException", () => errors++);
  pool.onFault = () => {
    calls++;
    throw new Error("of a listener");
  };
  const [here, there] = await ends(pool), buf = pool.alloc(4 * PAGE);
  for (let i = 0; i < 3; i++) {
    const sent = here.send(buf, { guard: "cow" });
    const message = await there.recv();
    buf.bytes[0] = 1;
    message!.release();
    await sent;
  }
  await new Promise((resolve) => setTimeout(resolve, 50));
  console.log(JSON.stringify({ errors, calls, faults: pool.stats().faults.writes }));
  here.abort();
  there.abort();
}

const [mode, ...args] = process.argv.slice(2);
if (!isMainThread) await sender(workerData.address, workerData.flag);
else if (mode === "serial") await serial();
else if (mode === "copies") await copies();
else if (mode === "child") {
  const [program, ...words] = args as [string, ...string[]];
  const file = fileURLToPath(import.meta.url);
  spawnSync(program, [...words, file, "copies"], { stdio: "inherit" });
} else if (mode === "lost") await lost();
else if (mode === "idle") await idle();
else if (mode === "none") console.log("nothing to see");
else if (mode === "args") console.log(JSON.stringify(args));
else if (mode === "listener") await listener();
else if (mode === "status") {
  early();
  process.exit(7);
} else if (mode === "throw") {
  early();
  throw new Error("of the script");
}
