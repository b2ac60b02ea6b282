/**
 * UCX's own benchmark between two processes of this machine: what moat's shared memory is measured
 * against. `ucx_perftest` is in Debian's package ucx-utils.
 *
 * @module
 */
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";

/** The shared-memory transports of UCX: bounce buffers, and copies from process to process. */
export const UCX_TLS = "posix,cma,self";

/** Gigabytes (10^9) a second of `tag_bw` with messages of `bytes`, for about `seconds`. */
export async function ucxBandwidth(bytes: number, seconds: number): Promise<number> {
  // About 12 GB/s (measured on an EPYC 9005) decide how many messages a run is.
  const count = Math.max(20, Math.round(12e9 * seconds / bytes));
  const final = await perftest(["-t", "tag_bw", "-s", String(bytes)], count);
  return final.rate * bytes / 1e9; // its "MB/s" are 2^20 bytes
}

/** Microseconds of `tag_lat`, half a round trip of 8 bytes: its median. */
export async function ucxLatency(seconds: number): Promise<number> {
  return (await perftest(["-t", "tag_lat", "-s", "8"], Math.round(3e6 * seconds))).typical;
}

interface Final {
  /** Microseconds: the median message. */
  typical: number;
  /** Messages a second over the whole run. */
  rate: number;
}

async function perftest(args: string[], count: number): Promise<Final> {
  const port = String(await freePort());
  const start = (more: string[]): Deno.ChildProcess =>
    new Deno.Command("ucx_perftest", {
      args: ["-p", port, ...more],
      env: { UCX_TLS, UCX_LOG_LEVEL: "error" },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
  const server = start([]);
  try {
    await listening(Number(port));
    const iterations = ["-n", String(count), "-w", String(Math.ceil(count / 10)), "-f"];
    const { success, stdout, stderr } = await start(["127.0.0.1", ...args, ...iterations]).output();
    const text = new TextDecoder().decode(stdout);
    // The last line: iterations; median, average and overall of us, MB/s and messages/s (no medians there).
    const numbers = text.trim().split("\n").at(-1)!.trim().split(/\s+/).map(Number);
    if (!success || numbers.length !== 8 || numbers.some(Number.isNaN)) {
      throw new Error(
        `ucx_perftest ${args.join(" ")}:\n${text}${new TextDecoder().decode(stderr)}`,
      );
    }
    return { typical: numbers[1]!, rate: numbers[7]! };
  } finally {
    try {
      server.kill("SIGKILL");
    } catch {
      // It ends by itself after a run.
    }
    await server.output();
  }
}

/** A port nobody listens at. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address() as AddressInfo;
  await new Promise((done) => server.close(done));
  return port;
}

// The server takes the first connection for its client, so its port is looked up, not tried.
async function listening(port: number): Promise<void> {
  const hex = `:${port.toString(16).toUpperCase().padStart(4, "0")} 00000000:0000 0A`;
  for (let tries = 0; tries < 500; tries++) {
    if (Deno.readTextFileSync("/proc/net/tcp").includes(hex)) return;
    await new Promise((done) => setTimeout(done, 10));
  }
  throw new Error("the server of ucx_perftest does not listen");
}
