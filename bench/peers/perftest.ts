/**
 * perftest, rdma-core's own benchmarks, on the device that is there. They are in Debian's package perftest.
 *
 * @module
 */
import { Running } from "../support/processes.ts";

const PORT = "18600", MIB = 1 << 20;

/** MB/s (10^6 bytes) of `ib_read_bw` or `ib_send_bw`: the average. */
export async function rdmaBandwidth(
  program: "ib_read_bw" | "ib_send_bw",
  address: string,
  bytes: number,
): Promise<{ speed: number; how: string }> {
  const count = Math.max(20, Math.min(1000, (32 * MIB) / bytes));
  const args = ["-s", String(bytes), "-n", String(count)];
  const { columns, how } = await perftest(program, address, args);
  return { speed: columns[3]! * MIB / 1e6, how }; // its "MB/sec" are 2^20 bytes
}

/** Half round trips of `ib_send_lat` in microseconds. */
export async function rdmaLatency(
  address: string,
  bytes: number,
): Promise<{ min: number; max: number; typical: number; p99: number; p999: number; how: string }> {
  const args = ["-s", String(bytes), "-n", "2000"];
  const { columns, how } = await perftest("ib_send_lat", address, args);
  // bytes, iterations, min, max, typical, average, deviation, 99 %, 99.9 %
  const [min, max, typical, , , p99, p999] = columns.slice(2) as [
    ...[number, number, number, number, number, number, number],
  ];
  return { min, max, typical, p99, p999, how };
}

/** The columns of the last line of numbers that one of its programs prints. */
async function perftest(
  program: string,
  address: string,
  args: string[],
): Promise<{ columns: number[]; how: string }> {
  const words = [program, "-F", "-R", "-p", PORT, ...args];
  const server = new Running(words);
  try {
    for (let tries = 0;; tries++) {
      const client = new Running([...words, address]);
      try {
        const text = await client.text();
        const line = text.split("\n").filter((each) => /^\s*\d+\s+\d+\s+[\d.]+/.test(each)).at(-1);
        if (!line) throw new Error(`${program}: ${text}`);
        return {
          columns: line.trim().split(/\s+/).map(Number),
          how: [program, "-F", "-R", ...args, address].join(" "),
        };
      } catch (error) { // it may not listen yet
        if (tries === 20) throw error;
        await new Promise((resolve) => setTimeout(resolve, 200));
      } finally {
        await client.kill();
      }
    }
  } finally {
    await server.kill();
  }
}
