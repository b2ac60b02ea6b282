/**
 * iperf3 over the loopback interface. It is in Debian's package of that name.
 *
 * @module
 */
import { freePort, serverAndClient } from "../support/processes.ts";

/** GB/s with writes of `bytes`, at most the 1 MiB that it takes, for about `seconds`. */
export async function iperf3(
  bytes: number,
  seconds: number,
  signal?: AbortSignal,
): Promise<{ speed: number; how: string }> {
  const port = String(await freePort());
  const time = String(Math.max(1, Math.round(seconds)));
  const args = ["-c", "127.0.0.1", "-l", String(Math.min(bytes, 1 << 20)), "-t", time, "-J"];
  const lines = await serverAndClient(
    { ...(signal ? { signal } : {}) },
    ["iperf3", "-s", "-p", port, "--forceflush"],
    () => ["iperf3", "-p", port, ...args],
  );
  const speed = JSON.parse(lines.join("\n")).end.sum_received.bits_per_second / 8e9;
  return { speed, how: `iperf3 ${args.join(" ")}` };
}
