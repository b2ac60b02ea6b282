// Calls what gives native code arrays that only it uses, very often, and says how often the outcome was another than it
// must be. Run with a garbage collector that never rests.
import process from "node:process";
import { C, checked, libc } from "../../ffi/libc.ts";
import { receivePacket, sendPacket } from "../../lib/shm/socket.ts";
import { listenSocket, portOf } from "../../lib/tcp/socket.ts";

const TIMES = Number(process.argv[2]);
const fd = listenSocket({ host: "127.0.0.1", port: 0 }, "127.0.0.1");
let port = 0;
for (let i = 0; i < 100 && port === 0; i++) port = portOf(fd);
let names = 0;
for (let i = 0; i < TIMES; i++) if (portOf(fd) !== port) names++;

const pair = new Int32Array(2);
checked(
  "socketpair",
  libc().socketpair(C.AF_UNIX, C.SOCK_SEQPACKET, 0, new Uint8Array(pair.buffer)),
);
let packets = 0;
for (let i = 0; i < TIMES; i++) {
  sendPacket(pair[0]!, Uint8Array.of(i, i >> 8, i >> 16), []);
  const data = receivePacket(pair[1]!, 4)?.data;
  if (data?.length !== 3 || (data[0]! | data[1]! << 8 | data[2]! << 16) !== i) packets++;
}
console.log(JSON.stringify({ port, names, packets }));
process.exit(0);
