/**
 * The runtimes' own sockets, for comparison: `Deno.connect`, `Bun.connect`.
 *
 *     sockets.ts receive             listens, prints its port, reads what comes
 *     sockets.ts send PORT MS        writes messages of 1 MiB, prints GB/s
 *
 * @module
 */
import process from "node:process";

const MESSAGE = 1 << 20;

interface BunSocket {
  write(data: Uint8Array, offset?: number, length?: number): number;
  end(): void;
}
/** As much of Bun's interface as is used here. */
interface BunSockets {
  listen(options: unknown): { port: number };
  connect(options: unknown): Promise<BunSocket>;
}
const { Bun } = globalThis as { Bun?: BunSockets };

async function receiveDeno(): Promise<void> {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  console.log(listener.addr.port);
  using connection = await listener.accept();
  const buffer = new Uint8Array(MESSAGE);
  while (await connection.read(buffer) !== null);
  listener.close();
}

async function sendDeno(port: number, time: number): Promise<number> {
  using connection = await Deno.connect({ hostname: "127.0.0.1", port });
  const buffer = new Uint8Array(MESSAGE).fill(1), start = performance.now();
  let bytes = 0;
  while (performance.now() - start < time) bytes += await connection.write(buffer);
  return bytes / (performance.now() - start) / 1e6;
}

function receiveBun(): void {
  const { port } = Bun!.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: { data(): void {}, close: () => process.exit(0) },
  });
  console.log(port);
}

async function sendBun(port: number, time: number): Promise<number> {
  const buffer = new Uint8Array(MESSAGE).fill(1), start = performance.now();
  let bytes = 0, wake = (): void => {};
  const socket = await Bun!.connect({
    hostname: "127.0.0.1",
    port,
    socket: { data(): void {}, drain: () => wake() },
  });
  while (performance.now() - start < time) {
    for (let at = 0; at < MESSAGE;) {
      const n = socket.write(buffer, at, MESSAGE - at);
      at += n;
      if (at < MESSAGE) await new Promise<void>((resolve) => wake = resolve);
    }
    bytes += MESSAGE;
  }
  const speed = bytes / (performance.now() - start) / 1e6;
  socket.end();
  return speed;
}

const [role, port, time] = process.argv.slice(2);
if (role === "receive") await (Bun ? receiveBun() : receiveDeno());
else {
  console.log(await (Bun ? sendBun : sendDeno)(Number(port), Number(time)));
  process.exit(0);
}
