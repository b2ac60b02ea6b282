/**
 * How long a message takes there and back, over any transport: median and tail, and how they are spread.
 *
 *     deno run -A examples/latency_probe.ts
 *     bun examples/latency_probe.ts
 *
 * Like that it is both ends, in two processes. On two hosts:
 *
 *     examples/latency_probe.ts listen rdma://:7471
 *     examples/latency_probe.ts connect rdma://10.0.0.1:7471 --sizes 64,4k,1m
 *
 * A round trip is one message there and one of the same size back, and the next begins when it has ended; times
 * are of whole round trips, in microseconds. Every answer is checked: it bears the number of its question.
 *
 * @module
 */
import process from "node:process";
import { parseArgs } from "node:util";
import { type Channel, connect, listen, Pool, type PoolBuffer } from "../mod.ts";
import { again, number, oneOf, run, size, UsageError } from "./support/program.ts";

const HELP = `
latency_probe.ts [OPTIONS]                    both ends, in two processes
latency_probe.ts listen [OPTIONS] ADDRESS     answers one prober after the other
latency_probe.ts connect [OPTIONS] ADDRESS    asks, and prints what it measured

ADDRESS is shm://name, tcp://host:port or rdma://host:port; to listen at every address, rdma://:7471.

    --sizes LIST       of messages in bytes, from 4 to 16m; k and m stand for KiB and MiB (64,4k,64k)
    --count N          round trips of each size (2000)
    --warmup N         round trips before those, that are not counted (500)
    --spin US          microseconds to look for a message before going to sleep, which costs the
                       processor and makes the shortest round trips; for both ends (0)
    --transport NAME   for both ends in one: shm or tcp (shm)
`;

const MOST = 16 << 20;

await run("latency_probe", HELP, async () => {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      sizes: { type: "string", default: "64,4k,64k" },
      count: { type: "string", default: "2000" },
      warmup: { type: "string", default: "500" },
      spin: { type: "string", default: "0" },
      transport: { type: "string", default: "shm" },
    },
  });
  const sizes = values.sizes.split(",").map((text) => size("--sizes", text, 4, MOST));
  const count = number("--count", values.count, 1, 1e7);
  const warmup = number("--warmup", values.warmup, 0, 1e7);
  const spin = number("--spin", values.spin, 0, 1e6);
  const [mode, address, ...rest] = positionals;
  if (mode !== undefined) {
    oneOf("the mode", mode, ["listen", "connect"]);
    if (address === undefined || rest.length > 0) throw new UsageError(`${mode} takes an address`);
  }
  if (mode === "connect") return await probe(address!, sizes, count, warmup, spin);
  if (mode === "listen") {
    return await answer(address!, spin, (at) => console.log(`listening at ${at}`));
  }

  const transport = oneOf("--transport", values.transport, ["shm", "tcp"]);
  const at = transport === "shm" ? `shm://latency-probe-${process.pid}` : "tcp://127.0.0.1:0";
  const { promise: done, resolve, reject } = Promise.withResolvers<void>();
  const answering = answer(at, spin, (address) => {
    const words = ["--sizes", sizes.join(), "--count", `${count}`, "--warmup", `${warmup}`];
    const prober = again(import.meta.url, ["connect", address, ...words, "--spin", `${spin}`]);
    prober.done.then(resolve, reject);
  });
  await Promise.race([done, answering]);
});

/** Answers every message with one of the same size that begins with the same number. */
async function answer(
  address: string,
  spin: number,
  listening: (address: string) => void,
): Promise<void> {
  await using pool = Pool.create({ bytes: 4 * MOST });
  await using listener = await listen(address, { pool, spin });
  listening(listener.address);
  using buf = pool.alloc(MOST);
  for await (const channel of listener) {
    try {
      for (let question; (question = await channel.recv()) !== null;) {
        const { byteLength } = question;
        const tag = question.bytes.slice(0, 4);
        question.release(); // its sender may be waiting to write its next one there
        send(channel, buf, byteLength, tag);
      }
      await channel.close();
    } catch (error) {
      console.error(`${channel.peer}: ${error instanceof Error ? error.message : error}`);
      channel.abort();
    }
  }
}

/** The guard keeps what is in flight as it is, so nobody has to wait for a send before the next. */
function send(channel: Channel, buf: PoolBuffer, bytes: number, tag: Uint8Array): void {
  buf.bytes.set(tag);
  // If it fails, the receive that waits for the answer to it fails as well.
  channel.send(buf.bytes.subarray(0, bytes)).catch(() => {});
}

async function probe(
  address: string,
  sizes: number[],
  count: number,
  warmup: number,
  spin: number,
): Promise<void> {
  await using pool = Pool.create({ bytes: 4 * MOST });
  await using channel = await connect(address, { pool, spin });
  using buf = pool.alloc(MOST);
  console.log(`over ${channel.transport} to ${channel.peer}, ${count} round trips of each size`);
  for (const bytes of sizes) {
    const times = new Float64Array(count), tag = new Uint8Array(4);
    for (let n = -warmup; n < count; n++) {
      new DataView(tag.buffer).setInt32(0, n);
      const start = performance.now();
      send(channel, buf, bytes, tag);
      using back = await channel.recv();
      if (n >= 0) times[n] = (performance.now() - start) * 1000;
      if (!back) throw new Error(`${address} closed in the middle`);
      if (back.byteLength !== bytes || tag.some((byte, i) => back.bytes[i] !== byte)) {
        throw new Error(`the answer to message ${n} of ${bytes} bytes is another one's`);
      }
    }
    print(bytes, times.sort());
  }
}

function print(bytes: number, sorted: Float64Array): void {
  const at = (share: number): number => sorted[Math.ceil(share * sorted.length) - 1] ?? sorted[0]!;
  const cells = [["min", 0], ["median", 0.5], ["p99", 0.99], ["p99.9", 0.999], ["max", 1]] as const;
  const text = cells.map(([name, share]) => `${name} ${at(share).toFixed(1)}`).join("  ");
  console.log(`\n${bytes} bytes, µs there and back: ${text}`);
  // One line for each doubling, as far as there is something; each # is 2 % of all.
  for (let i = 0, above = 2 ** Math.floor(Math.log2(sorted[0]!)); i < sorted.length; above *= 2) {
    const first = i;
    while (i < sorted.length && sorted[i]! < above * 2) i++;
    const share = (i - first) / sorted.length;
    const bar = "#".repeat(Math.round(share * 50)) || (i > first ? "." : "");
    console.log(
      `${above.toString().padStart(8)} to ${String(above * 2).padEnd(8)} ` +
        `${(share * 100).toFixed(2).padStart(6)} %  ${bar}`,
    );
  }
}
