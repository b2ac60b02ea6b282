/**
 * libfabric's ping-pong between two processes of this machine. `fi_pingpong` is in Debian's package libfabric-bin.
 *
 * @module
 */
import { freePort, Running } from "../support/processes.ts";

/** The provider, and the kind of endpoint it has, for each of Moat's transports. */
const PROVIDERS = { shm: ["shm", "rdm"], tcp: ["tcp", "msg"] } as const;

/** A run's mean. */
export interface FiRun {
  /** Half a round trip in microseconds. */
  us: number;
  /** GB/s: one message at a time, to and fro. */
  speed: number;
  how: string;
}

/** One message of `bytes` at a time, to and fro, so often. */
export async function fiPingpong(
  on: keyof typeof PROVIDERS,
  bytes: number,
  count: number,
): Promise<FiRun> {
  const [provider, endpoint] = PROVIDERS[on], port = String(await freePort());
  const args = ["-p", provider, "-e", endpoint, "-S", String(bytes), "-I", String(count)];
  const server = new Running(["fi_pingpong", ...args, "-B", port]);
  try {
    for (let tries = 0;; tries++) {
      const client = new Running(["fi_pingpong", ...args, "-P", port, "127.0.0.1"]);
      try {
        const text = await client.text();
        // Its MB are 10^6 bytes, and one transfer is half a round trip; the numbers it gives are rounded to two digits.
        const last = text.trim().split("\n").at(-1)!.trim().split(/\s+/);
        const us = Number(last[6]), how = `fi_pingpong ${args.join(" ")} 127.0.0.1`;
        if (!(us > 0)) throw new Error(`${how}:\n${text}`);
        return { us, speed: bytes / us / 1000, how };
      } catch (error) { // it may not listen yet
        if (tries === 20) throw error;
        await new Promise((done) => setTimeout(done, 50));
      } finally {
        await client.kill();
      }
    }
  } finally {
    await server.kill();
  }
}
