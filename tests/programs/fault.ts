/**
 * Faults that are none of Moat's business, with Moat's handler installed or without.
 *
 *     fault.ts CASE moat|bare
 *
 * @module
 */
import process from "node:process";
import { connect, listen, Pool } from "../../mod.ts";
import { runtime } from "../../ffi/runtime.ts";
import { freshAddress, say } from "../support/child.ts";

const [name, mode] = process.argv.slice(2) as [string, string];

async function guardSomething(): Promise<() => void> {
  const pool = Pool.create({ bytes: 1 << 20 }), address = freshAddress();
  const listener = await listen(address, { pool });
  const [a, b] = await Promise.all([connect(address, { pool }), listener.accept()]);
  await listener.close();
  return () => {
    const buf = pool.alloc(8192);
    buf.bytes.fill(1);
    const sent = a.send(buf, { guard: "cow" });
    buf.bytes[0] = 2;
    if (pool.stats().privatePages === 0) throw new Error("the guard did not hold");
    sent.catch(() => {});
    b.recv().then((message) => message?.release());
  };
}

const guard = mode === "moat" ? await guardSomething() : (): void => {};
guard();

// (module (memory 1) (func (export "load") (param i32) (result i32) local.get 0 i32.load))
const wasm = new Uint8Array([
  ...[0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0, 5, 3, 1, 0, 1],
  ...[7, 8, 1, 4, 108, 111, 97, 100, 0, 0, 10, 9, 1, 7, 0, 32, 0, 40, 2, 0, 11],
]);

const cases: Record<string, () => void> = {
  /** Reads through a null pointer in the C library. */
  null(): void {
    const libc = runtime().open("libc.so.6", {
      strlen: { parameters: ["address"], result: "size" },
    });
    say("before");
    libc.strlen(8);
    say("after");
  },
  /** WebAssembly out of bounds, often enough to be compiled. */
  wasm(): void {
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(wasm));
    const load = exports.load as (at: number) => number;
    let trapped = 0, sum = 0;
    for (let i = 0; i < 20_000; i++) {
      try {
        sum += load(i % 2 ? 0x7fff_0000 : 16);
      } catch (error) {
        if (error instanceof WebAssembly.RuntimeError) trapped++;
      }
    }
    guard();
    say({ trapped, sum });
  },
  /** A stack overflow is a RangeError. */
  overflow(): void {
    const deep = (n: number): number => 1 + deep(n + 1);
    try {
      deep(0);
    } catch (error) {
      guard();
      say({ name: (error as Error).name });
    }
  },
  /** SIGSEGV sent by somebody. */
  sent(): void {
    process.kill(process.pid, "SIGSEGV");
    setTimeout(() => {
      guard();
      say("alive");
      process.exit(0);
    }, 100);
  },
  /** A listener for SIGSEGV: Bun installs its own action, Deno refuses. */
  listener(): void {
    let warned = "";
    process.on("warning", (warning) => warned = warning.name);
    let refused = false;
    try {
      process.on("SIGSEGV", () => {});
    } catch {
      refused = true;
    }
    setTimeout(() => {
      guard();
      say({ refused, warned });
      process.exit(0);
    }, 100);
  },
};

cases[name]!();
