// A SIGBUS that is none of Moat's business, with Moat's handler installed or without.
//     bus.ts foreign|sent moat|bare PATH
import { truncateSync } from "node:fs";
import process from "node:process";
import { Pool } from "../../mod.ts";
import { C, cString, libc, map } from "../../ffi/libc.ts";
import { runtime } from "../../ffi/runtime.ts";
import { say } from "../support/child.ts";

const [name, mode, path] = process.argv.slice(2) as [string, string, string];
if (mode === "moat") {
  const pool = Pool.create({ bytes: 1 << 20 });
  pool.map(path);
}
say("before");
if (name === "sent") {
  process.kill(process.pid, "SIGBUS");
  await new Promise((resolve) => setTimeout(resolve, 50));
} else {
  const address = map(4096, C.PROT_READ, C.MAP_SHARED, libc().open(cString(path), 0, 0));
  truncateSync(path, 0);
  say(new Uint8Array(runtime().viewOf(address, 4096))[5]);
}
say("after");
process.exit(0);
