import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { after, before, test } from "node:test";
import { type Channel, type Guard, listen, Pool } from "../mod.ts";
import { helper } from "../ffi/helper.ts";
import type { Order, Result } from "./programs/overwriter.ts";
import { asleep } from "./support/asleep.ts";
import { pattern, sha256 } from "./support/bytes.ts";
import { Child, other } from "./support/child.ts";

const KIB = 1 << 10, MIB = 1 << 20;
const SIZES = [1, 4095, 4096, 4097, 64 * KIB + 1, MIB, 16 * MIB];

// What is in the way of the message: more than the sockets' buffers take, so that it is in flight for sure.
const PLUGS = 2;

/** The tests with what the other process is started with. */
function tests(name: "io_uring" | "sockets", args: string[]): void {
  let pool: Pool, control: Channel, data: Channel, over: Child, end = (): void => {};
  before(async () => {
    pool = Pool.create({ bytes: 96 * MIB });
    const listener = await listen("tcp://127.0.0.1:0", { pool });
    const scope = { after: (fn: () => void) => end = fn };
    over = new Child(scope, "overwriter", [listener.address, ...args], other());
    const ended = over.exit.then(({ stderr }) => Promise.reject(new Error(stderr)));
    ended.catch(() => {});
    control = await Promise.race([listener.accept(), ended]);
    data = await Promise.race([listener.accept(), ended]);
    await listener.close();
  });
  after(async () => {
    await Promise.all([control.close(), data.close()]);
    end();
    const { bytesAvailable, bytes, freeFrames, reserveFrames } = pool.stats();
    assert.deepEqual([bytesAvailable, freeFrames], [bytes, reserveFrames], "what the pool has");
    await pool.close();
  });

  const order = (order: Order): unknown => control.send(Buffer.from(JSON.stringify(order)));
  const answer = async <T>(): Promise<T> => {
    using message = await control.recv();
    return JSON.parse(Buffer.from(message!.bytes).toString()) as T;
  };
  function assertNothingHeld(result: Result): void {
    assert.equal(result.freeFrames, result.reserveFrames, "free frames over there");
    if (name === "sockets") {
      assert.equal(
        result.transport,
        "tcp (sockets: io_uring is forbidden: EPERM, by a seccomp profile)",
      );
    } else if (helper().moat_uring_probe() === 0) assert.equal(result.transport, "tcp (io_uring)");
  }

  /** Has a buffer sent and overwritten at once; what arrived, and how it went over there. */
  async function overwrite(guard: Guard, size: number): Promise<Result & { arrived: string }> {
    order({ act: "send", guard, size, offset: size > MIB ? 4093 : 1, plug: PLUGS });
    await answer(); // posted
    const waits = guard === "wait" && size > 16 * KIB;
    if (waits) await asleep(over.process.pid!); // in the write
    else if (guard !== "wait") await answer(); // written
    for (let i = 0; i < PLUGS; i++) (await data.recv())!.release();
    using message = await data.recv();
    const arrived = sha256(message!.bytes);
    if (guard === "wait") await answer();
    const result = await answer<Result>();
    assertNothingHeld(result);
    return { ...result, arrived };
  }

  for (const size of SIZES) {
    test(`${name}: ${size} bytes guarded by "none" arrive as they were overwritten`, async () => {
      const { arrived, before, written } = await overwrite("none", size);
      assert.equal(written, sha256(pattern(2, size)));
      assert.notEqual(arrived, before);
      assert.equal(arrived, written);
    });

    for (const guard of ["cow", "copy", "auto", "wait"] as const) {
      test(`${name}: ${size} bytes guarded by "${guard}" arrive as they were at the call`, async () => {
        const { arrived, before, written, waits, privatePages } = await overwrite(guard, size);
        assert.equal(arrived, before);
        assert.equal(written, sha256(pattern(2, size)), "what the program sees of its own write");
        assert.equal(waits > 0, guard === "wait", `${waits} waits`);
        if (guard === "wait") assert.equal(privatePages, 0);
      });
    }

    test(`${name}: ${size} bytes given away arrive though their memory is used again`, async () => {
      const { arrived, before } = await overwrite("move", size);
      assert.equal(arrived, before);
    });

    test(`${name}: a read of a buffer of ${size} bytes waits for them, in the middle of JavaScript`, async () => {
      order({ act: "receive", size, offset: 4093 });
      await answer(); // posted
      await asleep(over.process.pid!); // in the read
      await data.send(pattern(5, size), { guard: "copy" });
      const result = await answer<Result>();
      assert.equal(result.read, sha256(pattern(5, size)));
      assert.ok(result.waits > 0);
      assertNothingHeld(result);
    });
  }
}

tests("io_uring", []);
tests("sockets", ["1"]); // EPERM
