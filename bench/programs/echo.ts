/**
 * The other end of `latency_bench.ts`: `echo.ts moat ADDRESS` or `echo.ts own|node KIND` prints where it listens as JSON, and
 * sends back what comes: over a channel each message, over a socket every 8 bytes.
 *
 * @module
 */
import process from "node:process";
import { listen, Pool } from "../../mod.ts";
import { type Kind, nodeSockets, ownSockets } from "../support/plain.ts";

process.stdin.on("end", () => process.exit(0)).resume(); // who started it is gone

const [what, where] = process.argv.slice(2) as [string, string];
if (what === "moat") {
  const pool = Pool.create({ bytes: 1 << 20 });
  const listener = await listen(where, { pool, spin: 100 });
  console.log(JSON.stringify(listener.address));
  for await (const channel of listener) {
    (async () => {
      for await (using message of channel) channel.send(message.bytes);
    })();
  }
} else {
  const sockets = what === "own" ? ownSockets : nodeSockets;
  console.log(JSON.stringify(
    await sockets.listen(where as Kind, async (socket) => {
      const data = new Uint8Array(8);
      while (await socket.read(data)) await socket.write(data);
    }),
  ));
}
