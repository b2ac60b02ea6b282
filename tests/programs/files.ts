// Writes a file under each guard, overwriting the buffer at once, and reads it back touching the buffer at
// once; says what became of it. With an errno, io_uring is forbidden first.
import { readFileSync } from "node:fs";
import process from "node:process";
import { type Guard, Pool } from "../../mod.ts";
import { assertBytes, fill, pattern, same } from "../support/bytes.ts";
import { say } from "../support/child.ts";
import { forbidIoUring } from "../support/no_io_uring.ts";

const path = process.argv[2]!, forbidden = Number(process.argv[3] ?? 0);
if (forbidden) forbidIoUring(forbidden);

const SIZE = (4 << 20) + 77;
await using pool = Pool.create({ bytes: 16 << 20 });
await using file = pool.open(path, { create: true });
const wrong: string[] = [];
for (const guard of ["auto", "cow", "wait", "copy", "move"] as Guard[]) {
  for (const offset of [0, 4093]) {
    const buf = pool.alloc(offset + SIZE);
    const view = guard === "move" ? buf.bytes : buf.bytes.subarray(offset);
    fill(view, 3);
    const before = view.slice();
    const written = file.write(guard === "move" ? buf : view, offset, { guard });
    if (guard !== "move") fill(view, 4);
    const { bytes } = await written;
    const found = readFileSync(path).subarray(offset, offset + before.length);
    if (bytes !== before.length || !same(found, before)) wrong.push(`write ${guard} ${offset}`);
    if (guard !== "move") buf.free();
  }
}
using buf = pool.alloc(SIZE);
const reading = file.read(buf, 5);
const last = buf.bytes[SIZE - 1];
const { bytes, direct } = await reading;
assertBytes(buf.bytes, readFileSync(path).subarray(5, 5 + SIZE), "what was read");
if (last !== buf.bytes[SIZE - 1]) wrong.push("read");
fill(buf.bytes, 9);
await Promise.all([0, 1, 2, 3].map((i) => {
  return file.write(buf.bytes.subarray(i << 20, (i + 1) << 20), i << 20, { guard: "cow" });
}));
assertBytes(readFileSync(path).subarray(0, 4 << 20), pattern(9, 4 << 20), "four writes at once");
await file.sync();
const { refused } = file, { freeFrames, reserveFrames } = pool.stats();
say({
  wrong,
  engine: file.engine,
  bytes,
  direct: direct > 0,
  errno: refused?.errno ?? null,
  hint: refused?.hint ?? null,
  leaked: reserveFrames - freeFrames,
});
