/**
 * UCX's own benchmark between two processes of this machine. `ucx_perftest` is in Debian's package ucx-utils.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import { freePort, Running } from "../support/processes.ts";

/** Which transports UCX may use: of shared memory bounce buffers, and copies from process to process; or its TCP. */
export const UCX_TLS = { shm: "posix,cma,self", tcp: "tcp,self" } as const;

/** A transport that is also Moat's. */
export type UcxTransport = keyof typeof UCX_TLS;

/** What a run said, and the client's command. */
export interface UcxRun {
  /** Microseconds: the median message, and the mean. */
  typical: number;
  mean: number;
  /** Messages a second over the whole run. */
  rate: number;
  how: string;
}

/** `tag_bw` with messages of `bytes`, for about `seconds`. */
export function ucxBandwidth(on: UcxTransport, bytes: number, seconds: number): Promise<UcxRun> {
  // About 12 and 3 GB/s, and 5 and 1 million messages a second (measured on an EPYC 9005), decide how many messages a run is.
  const [speed, rate] = on === "shm" ? [12e9, 5e6] : [3e9, 1e6];
  const count = Math.max(20, Math.round(Math.min(speed / bytes, rate) * seconds));
  return perftest(on, ["-t", "tag_bw", "-s", String(bytes)], count);
}

/**
 * Half round trips in microseconds, by `tag_lat`: the median. It gives one percentile a run, and runs differ by more than
 * percentiles do, so there is no distribution.
 */
export function ucxLatency(on: UcxTransport, bytes: number, seconds: number): Promise<UcxRun> {
  const count = Math.round((on === "shm" ? 1e6 : 6e4) * seconds);
  return perftest(on, ["-t", "tag_lat", "-s", String(bytes)], count);
}

async function perftest(on: UcxTransport, args: string[], count: number): Promise<UcxRun> {
  const port = String(await freePort());
  const env = { UCX_TLS: UCX_TLS[on], UCX_LOG_LEVEL: "error" };
  const iterations = ["-n", String(count), "-w", String(Math.ceil(count / 10)), "-f"];
  const server = new Running(["ucx_perftest", "-p", port], { env });
  const words = ["ucx_perftest", "-p", port, "127.0.0.1", ...args, ...iterations];
  let client: Running | undefined;
  try {
    await listening(Number(port));
    client = new Running(words, { env });
    const text = await client.text();
    // The last line: iterations; percentile, average and overall of us, MB/s and messages/s (no medians there).
    const numbers = text.trim().split("\n").at(-1)!.trim().split(/\s+/).map(Number);
    if (numbers.length !== 8 || numbers.some(Number.isNaN)) {
      throw new Error(`${words.join(" ")}:\n${text}\n${client.errors}`);
    }
    const how = ["ucx_perftest", "127.0.0.1", ...args, ...iterations].join(" ");
    return {
      ...{ typical: numbers[1]!, mean: numbers[3]!, rate: numbers[7]! },
      how: `UCX_TLS=${env.UCX_TLS} ${how}`,
    };
  } finally {
    await client?.kill();
    await server.kill(); // it ends by itself after a run
  }
}

// The server takes the first connection for its client, so its port is looked up, not tried.
async function listening(port: number): Promise<void> {
  const hex = `:${port.toString(16).toUpperCase().padStart(4, "0")} 00000000:0000 0A`;
  for (let tries = 0; tries < 500; tries++) {
    if (readFileSync("/proc/net/tcp", "utf8").includes(hex)) return;
    await new Promise((done) => setTimeout(done, 10));
  }
  throw new Error("the server of ucx_perftest does not listen");
}
