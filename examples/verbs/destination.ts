/**
 * How the two sides of rc_pingpong find each other: over TCP, in the text that ibv_rc_pingpong(1) speaks.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { formatGid } from "../../lib/verbs/mod.ts";

/** What one side tells the other: where its queue pair is. */
export interface Destination {
  /** The port's local identifier; 0 on Ethernet. */
  readonly lid: number;
  /** The queue pair's number. */
  readonly qpn: number;
  /** The number of the first packet that it will send. */
  readonly psn: number;
  /** The port's GID; all zeros where none is used. */
  readonly gid: Uint8Array;
}

const WIRE_BYTES = "0000:000000:000000:00000000000000000000000000000000\0".length;
const DONE = "done\0";

const hex = (n: number, digits: number): string => n.toString(16).padStart(digits, "0");

/** A destination for people. */
export function describe({ lid, qpn, psn, gid }: Destination): string {
  return `LID 0x${hex(lid, 4)}, QPN 0x${hex(qpn, 6)}, PSN 0x${hex(psn, 6)}, GID ${formatGid(gid)}`;
}

/**
 * Waits for a client and tells it the own destination.
 *
 * @param ready makes the queue pair ready for that of the client, which may send as soon as it has the answer
 */
export async function exchangeAsServer(
  port: number,
  own: Destination,
  ready: (peer: Destination) => void,
): Promise<void> {
  const server = createServer().listen(port);
  const [socket] = await once(server, "connection") as [Socket];
  server.close();
  const read = reader(socket);
  ready(parse(await read(WIRE_BYTES)));
  socket.write(format(own));
  await read(DONE.length);
  socket.destroy();
}

/** Tells a server the own destination. */
export async function exchangeAsClient(
  host: string,
  port: number,
  own: Destination,
  ready: (peer: Destination) => void,
): Promise<void> {
  const socket = connect(port, host);
  await once(socket, "connect").catch((error: Error) => {
    throw new Error(`could not connect to ${host}:${port}: ${error.message}: is the server there?`);
  });
  socket.write(format(own));
  ready(parse(await reader(socket)(WIRE_BYTES)));
  // The caller is going to poll without giving the socket a chance to write.
  await new Promise<void>((resolve) => socket.end(DONE, resolve));
}

function format({ lid, qpn, psn, gid }: Destination): string {
  return `${hex(lid, 4)}:${hex(qpn, 6)}:${hex(psn, 6)}:${Buffer.from(gid).toString("hex")}\0`;
}

function parse(text: string): Destination {
  const match = /^([\da-f]{4}):([\da-f]{6}):([\da-f]{6}):([\da-f]{32})\0$/i.exec(text);
  if (!match) throw new Error(`the other side is no rc_pingpong: it said ${JSON.stringify(text)}`);
  const [lid, qpn, psn] = match.slice(1, 4).map((digits) => parseInt(digits, 16)) as [
    number,
    number,
    number,
  ];
  return { lid, qpn, psn, gid: Buffer.from(match[4]!, "hex") };
}

/** Reads so many characters at a time, however TCP has cut them. */
function reader(socket: Socket): (length: number) => Promise<string> {
  const chunks = socket[Symbol.asyncIterator]();
  let text = "";
  return async (length) => {
    while (text.length < length) {
      const { value, done } = await chunks.next();
      if (done) throw new Error("the other side closed the TCP connection: see what it printed");
      text += (value as Buffer).toString("latin1");
    }
    const wanted = text.slice(0, length);
    text = text.slice(length);
    return wanted;
  };
}
