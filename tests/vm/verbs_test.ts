import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { type AsyncEvent, devices, MoatError, openDevice, Pool } from "../../lib/verbs/mod.ts";
import { resolveData } from "../../lib/memory/resolve.ts";
import { coreOf } from "../../lib/memory/pool.ts";
import { completions, EVERYTHING, loopback, pattern } from "../support/loopback.ts";

function failure(code: string, ...texts: RegExp[]): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof MoatError, String(error));
    assert.equal(error.code, code, error.message);
    for (const text of texts) assert.match(error.message, text);
    return true;
  };
}

test("the list of devices has the soft-RoCE device", () => {
  const device = devices().find(({ name }) => name === "rxe0");
  assert.equal(device?.deviceNode, "uverbs0");
  assert.equal(device?.nodeType, "CA");
  assert.equal(device?.transport, "IB");
});

test("opening a device that is not there names those that are", () => {
  assert.throws(() => openDevice("mlx5_7"), failure("NO_DEVICE", /mlx5_7/, /there are rxe0/));
});

test("the GID table tells index, type and interface of the IPv4 address", () => {
  using context = openDevice();
  const entry = context.gidTable(1).find(({ gid }) => gid === "::ffff:10.9.0.1");
  assert.equal(entry?.type, "RoCE v2");
  assert.equal(entry?.netdev, "eth0");
  assert.deepEqual(context.preferredGid(1), entry);
});

test("the P_Key table has the default partition", () => {
  using context = openDevice();
  assert.deepEqual(context.pkeys(1), [{ index: 0, pkey: 0xffff }]);
});

test("a port the device does not have is refused with those it has", () => {
  using context = openDevice();
  assert.throws(() => context.queryPort(9), failure("VERB_FAILED", /port 9/, /1 to 1/));
});

test("a message arrives with its bytes and its length", async () => {
  using loop = loopback();
  const { a, b } = loop, data = pattern(3000);
  a.memory.bytes.set(data);
  b.qp.postRecv({ id: 11, segments: b.memory.segment() });
  a.qp.send(a.memory.segment(0, 3000), { id: 22 });
  const [sent] = await completions(a.sends, 1), [got] = await completions(b.recvs, 1);
  assert.deepEqual([sent!.wrId, sent!.opcode], [22, "SEND"]);
  assert.deepEqual([got!.wrId, got!.opcode, got!.byteLength], [11, "RECV", 3000]);
  assert.equal(got!.qpNum, b.qp.qpNum);
  assert.equal(got!.immediate, undefined);
  assert.deepEqual(b.memory.bytes.subarray(0, 3000), data);
});

test("immediate data arrives as the number it was", async () => {
  using loop = loopback();
  const { a, b } = loop;
  b.qp.postRecv({ segments: b.memory.segment() });
  a.qp.sendWithImmediate(a.memory.segment(0, 1), 0xfedcba98);
  const [got] = await completions(b.recvs, 1);
  assert.equal(got!.immediate, 0xfedcba98);
});

test("a message without segments arrives empty", async () => {
  using loop = loopback();
  const { a, b } = loop;
  b.qp.postRecv({ id: 1 });
  a.qp.sendWithImmediate([], 5);
  const [got] = await completions(b.recvs, 1);
  assert.deepEqual([got!.byteLength, got!.immediate], [0, 5]);
});

test("what is sent inline is what the memory held at the call, and needs no lkey", async () => {
  using loop = loopback();
  const { a, b } = loop, data = pattern(60);
  a.memory.bytes.set(data);
  b.qp.postRecv({ segments: b.memory.segment() });
  a.qp.send({ address: a.memory.addr, length: 60, lkey: 0 }, { inline: true });
  a.memory.bytes.fill(0);
  await completions(b.recvs, 1);
  assert.deepEqual(b.memory.bytes.subarray(0, 60), data);
});

test("more inline data than the queue pair takes is refused", () => {
  using loop = loopback({ queuePair: { maxInlineData: 64 } });
  const { qp, memory } = loop.a, length = qp.capacity.maxInlineData + 1;
  const post = (): void => qp.send(memory.segment(0, length), { inline: true });
  assert.throws(post, failure("VERB_FAILED", /ibv_post_send/, /inline/));
});

test("an RDMA write lands at its address and the peer hears nothing", async () => {
  using loop = loopback();
  const { a, b } = loop, data = pattern(5000);
  a.memory.bytes.set(data);
  a.qp.rdmaWrite(a.memory.segment(0, 5000), b.memory.remote(100));
  const [done] = await completions(a.sends, 1);
  assert.equal(done!.opcode, "RDMA_WRITE");
  assert.deepEqual(b.memory.bytes.subarray(100, 5100), data);
  assert.equal(b.recvs.poll(), 0);
});

test("an RDMA write with immediate lands and completes a receive", async () => {
  using loop = loopback();
  const { a, b } = loop, data = pattern(5000);
  a.memory.bytes.set(data);
  b.qp.postRecv({ id: 3 });
  a.qp.rdmaWriteWithImmediate(a.memory.segment(0, 5000), b.memory.remote(100), 77);
  const [got] = await completions(b.recvs, 1);
  assert.deepEqual([got!.wrId, got!.opcode, got!.immediate], [3, "RECV_RDMA_WITH_IMM", 77]);
  assert.equal(got!.byteLength, 5000);
  assert.deepEqual(b.memory.bytes.subarray(100, 5100), data);
});

test("an RDMA read brings the peer's bytes", async () => {
  using loop = loopback();
  const { a, b } = loop, data = pattern(7000);
  b.memory.bytes.set(data, 50);
  a.qp.rdmaRead(a.memory.segment(0, 7000), b.memory.remote(50));
  const [done] = await completions(a.sends, 1);
  assert.equal(done!.opcode, "RDMA_READ");
  assert.deepEqual(a.memory.bytes.subarray(0, 7000), data);
});

test("fetch-and-add adds 64 bits and brings what was there", async () => {
  using loop = loopback();
  const { a, b } = loop, there = new BigUint64Array(b.memory.bytes.buffer);
  there[1] = 0xffff_ffff_0000_0001n;
  a.qp.fetchAndAdd(a.memory.segment(0, 8), b.memory.remote(8), 0x1_0000_0005n);
  const [done] = await completions(a.sends, 1);
  assert.equal(done!.opcode, "FETCH_ADD");
  assert.equal(new BigUint64Array(a.memory.bytes.buffer)[0], 0xffff_ffff_0000_0001n);
  assert.equal(there[1], 6n);
});

test("compare-and-swap stores where it compares equal, and only there", async () => {
  using loop = loopback();
  const { a, b } = loop, there = new BigUint64Array(b.memory.bytes.buffer);
  const here = new BigUint64Array(a.memory.bytes.buffer);
  there[0] = 1n << 60n;
  a.qp.compareAndSwap(a.memory.segment(0, 8), b.memory.remote(), 1n << 60n, 7n << 50n);
  const [done] = await completions(a.sends, 1);
  assert.equal(done!.opcode, "COMP_SWAP");
  assert.deepEqual([here[0], there[0]], [1n << 60n, 7n << 50n]);
  a.qp.compareAndSwap(a.memory.segment(8, 8), b.memory.remote(), 1n, 2n);
  await completions(a.sends, 1);
  assert.deepEqual([here[1], there[0]], [7n << 50n, 7n << 50n]);
});

test("a message is gathered from segments and scattered into others", async () => {
  using loop = loopback();
  const { a, b } = loop, data = pattern(1000);
  a.memory.bytes.set(data.subarray(0, 300), 0);
  a.memory.bytes.set(data.subarray(300, 310), 9000);
  a.memory.bytes.set(data.subarray(310), 4000);
  b.qp.postRecv({ segments: [b.memory.segment(5000, 700), b.memory.segment(0, 400)] });
  a.qp.send([a.memory.segment(0, 300), a.memory.segment(9000, 10), a.memory.segment(4000, 690)]);
  await completions(b.recvs, 1);
  assert.deepEqual(b.memory.bytes.subarray(5000, 5700), data.subarray(0, 700));
  assert.deepEqual(b.memory.bytes.subarray(0, 300), data.subarray(700));
});

test("more segments than the queue pair takes are refused", () => {
  using loop = loopback({ queuePair: { maxSendSge: 2 } });
  const { qp, memory } = loop.a;
  const segments = Array.from({ length: qp.capacity.maxSendSge + 1 }, () => memory.segment(0, 1));
  assert.throws(() => qp.send(segments), failure("INVALID_ARGUMENT", /segments/));
});

test("lists of requests complete in order, under any number below 2^53", async () => {
  using loop = loopback();
  const { a, b } = loop, ids = [0, 1, 2 ** 32, 2 ** 32 - 1, 2 ** 53 - 1];
  for (let i = 0; i < ids.length; i++) a.memory.bytes[i * 8] = 100 + i;
  b.qp.postRecv(ids.map((id, i) => ({ id, segments: b.memory.segment(i * 8, 8) })));
  a.qp.postSend(ids.map((id, i) => ({ id, segments: a.memory.segment(i * 8, 8) })));
  assert.deepEqual((await completions(a.sends, 5)).map(({ wrId }) => wrId), ids);
  assert.deepEqual((await completions(b.recvs, 5)).map(({ wrId }) => wrId), ids);
  assert.deepEqual(ids.map((_, i) => b.memory.bytes[i * 8]), [100, 101, 102, 103, 104]);
});

test("a request without a signal gives no completion", async () => {
  using loop = loopback();
  const { a, b } = loop;
  b.qp.postRecv([{ id: 1 }, { id: 2 }]);
  a.qp.postSend([{ id: 1, signaled: false }, { id: 2 }]);
  await completions(b.recvs, 2);
  assert.deepEqual((await completions(a.sends, 1)).map(({ wrId }) => wrId), [2]);
  assert.equal(a.sends.poll(), 0);
});

test("poll takes completions in batches and reads them in place", async () => {
  using loop = loopback();
  const { a, b } = loop, count = 100;
  b.qp.postRecv(Array.from({ length: count }, (_, id) => ({ id, segments: b.memory.segment() })));
  a.qp.postSend(
    Array.from({ length: count }, (_, id) => ({ id, segments: a.memory.segment(0, id) })),
  );
  const seen: [number, number][] = [];
  const end = Date.now() + 20_000;
  while (seen.length < count && Date.now() < end) {
    const n = b.recvs.poll(7);
    assert.ok(n <= 7);
    for (let i = 0; i < n; i++) {
      assert.equal(b.recvs.status(i), 0);
      assert.equal(b.recvs.error(i), undefined);
      seen.push([b.recvs.wrId(i), b.recvs.byteLength(i)]);
    }
    if (n === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  }
  assert.deepEqual(seen, Array.from({ length: count }, (_, i) => [i, i]));
});

test("a list longer than the queue says which request did not fit, and posts those before", async () => {
  using loop = loopback({ queuePair: { maxSendWr: 16 } });
  const { a, b } = loop, list = Array.from({ length: 200 }, (_, id) => ({ id }));
  let posted = 0;
  assert.throws(() => a.qp.postSend(list), (error) => {
    failure("VERB_FAILED", /ibv_post_send/, /queue is full/)(error);
    posted = Number(/request (\d+) of 200/.exec((error as Error).message)![1]) - 1;
    return true;
  });
  assert.ok(posted >= 16 && posted < 200, `${posted} were posted`);
  b.qp.postRecv(list.slice(0, 100));
  const got = await completions(b.recvs, posted);
  assert.deepEqual(got.map(({ wrId }) => wrId), list.slice(0, posted).map(({ id }) => id));
  assert.equal(b.recvs.poll(), 0);
});

test("prepared requests are posted again and again, under new numbers", async () => {
  using loop = loopback();
  const { a, b } = loop;
  const prepared = a.qp.prepareSend([
    { id: 1, segments: a.memory.segment(0, 4), signaled: false },
    { id: 2, opcode: "SEND_WITH_IMM", segments: a.memory.segment(4, 4), immediate: 3 },
  ]);
  b.qp.postRecv(
    Array.from({ length: 6 }, (_, i) => ({ id: i, segments: b.memory.segment(i * 4, 4) })),
  );
  for (let round = 0; round < 3; round++) {
    a.memory.bytes.fill(round + 1, 0, 8);
    prepared.setId(1, 2 ** 40 + round);
    prepared.post();
    assert.equal((await completions(a.sends, 1))[0]!.wrId, 2 ** 40 + round);
  }
  const got = await completions(b.recvs, 6);
  assert.deepEqual(got.map(({ immediate }) => immediate), [
    undefined,
    3,
    undefined,
    3,
    undefined,
    3,
  ]);
  assert.deepEqual(
    [...b.memory.bytes.subarray(0, 24)],
    [1, 2, 3].flatMap((n) => new Array(8).fill(n)),
  );
  a.qp.close();
  assert.throws(() => prepared.post(), failure("RESOURCE_CLOSED"));
});

test("waiting for a completion ends with its signal", async () => {
  using loop = loopback();
  const abort = new AbortController();
  const waiting = loop.a.sends.next(abort.signal);
  abort.abort(new Error("enough"));
  await assert.rejects(waiting, /enough/);
  loop.b.qp.postRecv({ id: 1 });
  loop.a.qp.send([], { id: 5 });
  assert.equal((await completions(loop.a.sends, 1))[0]!.wrId, 5);
});

test("two that wait for the same queue both get a completion", async () => {
  using loop = loopback();
  const { a, b } = loop, signal = AbortSignal.timeout(20_000);
  const both = [b.recvs.next(signal), b.recvs.next(signal)];
  b.qp.postRecv([{ id: 1 }, { id: 2 }]);
  a.qp.postSend([{}, {}]);
  assert.deepEqual((await Promise.all(both)).map((wc) => wc!.wrId).sort(), [1, 2]);
});

test("a completion queue is iterated until it is closed", async () => {
  using loop = loopback();
  const { a, b } = loop, seen: number[] = [];
  b.qp.postRecv([{ id: 1 }, { id: 2 }, { id: 3 }]);
  a.qp.postSend([{}, {}, {}]);
  for await (const wc of b.recvs) {
    seen.push(wc.wrId);
    if (seen.length === 3) loop.context.close();
  }
  assert.deepEqual(seen, [1, 2, 3]);
});

test("a channel tells which of its queues has a completion", async () => {
  using loop = loopback();
  const { a, b } = loop;
  b.recvs.arm();
  b.qp.postRecv({ id: 1 });
  a.qp.send([]);
  const cq = await b.recvs.channel!.next(AbortSignal.timeout(20_000));
  assert.equal(cq, b.recvs);
  assert.equal(b.recvs.poll(), 1);
});

test("a registered pool takes an RDMA write into a buffer's bytes and sends from them", async () => {
  await using pool = Pool.create({ bytes: 1 << 20 });
  using loop = loopback();
  const { a, b, pd } = loop, data = pattern(9000);
  using buffer = pool.alloc(10_000);
  using region = pd.register(buffer, EVERYTHING);
  assert.equal(region.length, 10_000);
  a.memory.bytes.set(data);
  a.qp.rdmaWrite(a.memory.segment(0, 9000), region.remote(500));
  await completions(a.sends, 1);
  assert.deepEqual(buffer.bytes.subarray(500, 9500), data);
  using all = pd.registerPool(pool, EVERYTHING);
  assert.ok(region.addr >= all.addr && region.addr + region.length <= all.addr + all.length);
  b.qp.postRecv({ segments: b.memory.segment() });
  a.qp.send(all.segment(region.addr - all.addr + 500, 9000));
  await completions(b.recvs, 1);
  assert.deepEqual(b.memory.bytes.subarray(0, 9000), data);
});

test("a part of a buffer can be registered by its view", async () => {
  await using pool = Pool.create({ bytes: 1 << 20 });
  using loop = loopback();
  using buffer = pool.alloc(20_000);
  using region = loop.pd.register(buffer.bytes.subarray(5000, 6000), EVERYTHING, pool);
  assert.equal(region.length, 1000);
  loop.a.memory.bytes.fill(9, 0, 1000);
  loop.a.qp.rdmaWrite(loop.a.memory.segment(0, 1000), region.remote());
  await completions(loop.a.sends, 1);
  assert.deepEqual(
    buffer.bytes.slice(4999, 6001),
    new Uint8Array(1002).fill(9, 1, 1001).with(0, buffer.bytes[4999]!).with(
      1001,
      buffer.bytes[6000]!,
    ),
  );
});

test("a buffer whose pages a guard has scattered is registered only with its pool", async () => {
  await using pool = Pool.create({ bytes: 1 << 20, copyThreshold: 0 });
  using loop = loopback();
  using buffer = pool.alloc(16_384);
  buffer.bytes.fill(1);
  const core = coreOf(pool), { region, bytes } = resolveData(core, buffer, "test");
  const op = core.out(region!, bytes, "cow");
  core.began(op, { kind: "send", state: region!.state, stack: undefined });
  bytes[5000] = 2; // gets a private page
  core.helper.moat_op_done(op, 0);
  core.ended(op);
  assert.throws(
    () => loop.pd.register(buffer, EVERYTHING),
    failure("INVALID_ARGUMENT", /scattered/, /registerPool/),
  );
  using all = loop.pd.registerPool(pool);
  assert.ok(all.length >= 1 << 20);
});

test("bytes that are no pool's cannot be registered as a buffer", async () => {
  await using pool = Pool.create({ bytes: 1 << 20 });
  using loop = loopback();
  assert.throws(() => loop.pd.register(new Uint8Array(10)), failure("INVALID_ARGUMENT"));
  assert.throws(() => loop.pd.register(new Uint8Array(10), {}, pool), failure("INVALID_ARGUMENT"));
});

test("a queue pair tells its state and attributes", () => {
  using loop = loopback({ rts: { rnrRetry: 3, timeout: 9, retryCount: 4, sqPsn: 0 } });
  const { a, b } = loop, attributes = a.qp.query();
  assert.equal(attributes.state, "RTS");
  assert.equal(attributes.destQpNum, b.qp.qpNum);
  assert.equal(attributes.rnrRetry, 3);
  assert.equal(attributes.retryCount, 4);
  assert.equal(attributes.timeout, 9);
  assert.equal(attributes.pathMtu, 1024);
  assert.equal(attributes.path.sgidIndex, loop.context.preferredGid()!.index);
  assert.deepEqual(attributes.path.remoteGid, loop.context.preferredGid()!.bytes);
  assert.equal(attributes.access.remoteAtomic, true);
  a.qp.error();
  assert.equal(a.qp.query().state, "ERR");
  a.qp.reset();
  assert.equal(a.qp.query().state, "RESET");
});

test("a wrong GID index is named in the error", () => {
  using context = openDevice();
  const qp = context.allocPd().createQp({ sendCq: context.createCq() });
  qp.init();
  const gid = context.preferredGid()!;
  assert.throws(
    () => qp.rtr({ destQpNum: 1, remoteGid: gid, sgidIndex: 200 }),
    failure("VERB_FAILED", /ibv_modify_qp/, /to RTR/, /GID index 200 is empty/),
  );
});

test("a transition that is not allowed says so", () => {
  using context = openDevice();
  const qp = context.allocPd().createQp({ sendCq: context.createCq() });
  assert.throws(() => qp.rts(), failure("VERB_FAILED", /to RTS/, /transition/));
});

test("a queue pair beyond the device's limits is refused with them", () => {
  using context = openDevice();
  const { maxQpWr } = context.queryDevice(), sendCq = context.createCq();
  const make = (): unknown => context.allocPd().createQp({ sendCq, maxSendWr: maxQpWr + 1 });
  assert.throws(make, failure("VERB_FAILED", /ibv_create_qp/, new RegExp(String(maxQpWr))));
});

test("asynchronous events reach the event loop", async () => {
  using loop = loopback();
  const { a, b, context } = loop, events: AsyncEvent[] = [];
  const small = context.createCq({ entries: 1 });
  const { promise, resolve } = Promise.withResolvers<AsyncEvent>();
  context.onAsyncEvent = (event): void => {
    events.push(event);
    if (event.type === "CQ_ERR") resolve(event);
  };
  const qp = loop.pd.createQp({ sendCq: a.sends, recvCq: small }), gid = context.preferredGid()!;
  const to = { remoteGid: gid, sgidIndex: gid.index };
  b.qp.reset();
  for (const [one, other] of [[qp, b.qp], [b.qp, qp]] as const) {
    one.init();
    one.rtr({ destQpNum: other.qpNum, ...to });
    one.rts();
  }
  // More than the queue of completions holds, so that it overflows.
  const count = Math.min(small.entries + 20, 100);
  qp.postRecv(Array.from({ length: count }, (_, id) => ({ id })));
  b.qp.postSend(Array.from({ length: count }, () => ({})));
  const limit = setTimeout(() => resolve({ type: `nothing of ${small.entries} entries` }), 20_000);
  const event = await promise;
  clearTimeout(limit);
  assert.equal(event.type, "CQ_ERR");
  assert.equal(event.cq, small);
});

test("asynchronous events are iterated", async () => {
  using context = openDevice();
  const events = context.asyncEvents(AbortSignal.timeout(20_000));
  const first = events.next();
  spawnSync("ip", ["addr", "add", "10.9.0.99/24", "dev", "eth0"]);
  try {
    const { value } = await first;
    assert.deepEqual(value, { type: "GID_CHANGE", port: 1 });
  } finally {
    spawnSync("ip", ["addr", "del", "10.9.0.99/24", "dev", "eth0"]);
  }
});

test("closing a device closes everything made of it", async () => {
  await using pool = Pool.create({ bytes: 1 << 20 });
  const loop = loopback(), region = loop.pd.registerPool(pool);
  const waiting = loop.a.sends.next();
  loop.b.qp.postRecv({ id: 1, segments: loop.b.memory.segment() });
  loop.context.close();
  for (
    const one of [loop.pd, region, loop.a.qp, loop.a.sends, loop.b.memory, loop.a.sends.channel!]
  ) {
    assert.equal(one.closed, true, one.constructor.name);
  }
  assert.equal(await waiting, undefined);
  assert.equal(loop.b.memory.memory!.bytes.byteLength, 0);
  assert.throws(() => loop.a.qp.send([]), failure("RESOURCE_CLOSED", /QueuePair/));
});

test("closing a completion queue closes the queue pairs that complete there", () => {
  using context = openDevice();
  const sends = context.createCq(), recvs = context.createCq();
  const qp = context.allocPd().createQp({ sendCq: sends, recvCq: recvs });
  recvs.close();
  assert.equal(qp.closed, true);
  assert.equal(sends.closed, false);
  assert.equal(sends.childCount, 0);
});

test("objects made and closed again leave no descriptor behind", async () => {
  const count = (): number => readdirSync("/proc/self/fd").length;
  const cycle = async (): Promise<void> => {
    using loop = loopback();
    loop.context.onAsyncEvent = (): void => {};
    loop.b.qp.postRecv({ id: 1 });
    loop.a.qp.send([]);
    await completions(loop.b.recvs, 1);
  };
  await cycle();
  const before = count();
  for (let i = 0; i < 5; i++) await cycle();
  assert.equal(count(), before);
});

/** Runs a piece of TypeScript in a process of this runtime with less than all rights. */
function runWith(restrict: string, script: string): string {
  const directory = mkdtempSync(join(tmpdir(), "moat-"));
  const file = join(directory, "script.ts"), modules = new URL("../../", import.meta.url).href;
  writeFileSync(file, script.replaceAll("$ROOT/", modules));
  const isBun = "Bun" in globalThis;
  const command = isBun ? `${process.execPath} ${file}` : `${process.execPath} run -A ${file}`;
  const { stdout, stderr } = spawnSync("sh", ["-c", `${restrict} ${command}`], {
    encoding: "utf8",
  });
  rmSync(directory, { recursive: true });
  return stdout + stderr;
}

const CATCH = `
const report = (act: () => unknown): void => {
  try { act(); console.log("no error"); } catch (error) { console.log(error.code, error.message); }
};`;

test("a registration above the limit of locked memory says both numbers", () => {
  const said = runWith(
    "ulimit -l 64; exec setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock",
    `import { openDevice } from "$ROOT/lib/verbs/mod.ts";${CATCH}
    report(() => openDevice().allocPd().allocate(1 << 20));`,
  );
  assert.match(said, /^VERB_FAILED ibv_reg_mr/);
  assert.match(said, /RLIMIT_MEMLOCK is 65536 bytes, the region has 1048576/);
  assert.match(said, /ulimit -l unlimited/);
});

test("a library that is not there is named with the package that has it", () => {
  const said = runWith(
    "exec env MOAT_LIBIBVERBS=libnowhere.so.9 MOAT_LIBRDMACM=libnothing.so.8",
    `import { CmId, devices } from "$ROOT/lib/verbs/mod.ts";${CATCH}
    report(devices); report(() => CmId.create());`,
  );
  assert.match(said, /^LIBRARY_NOT_FOUND .*libnowhere\.so\.9.*apt-get install libibverbs1/m);
  assert.match(said, /^LIBRARY_NOT_FOUND .*libnothing\.so\.8.*apt-get install librdmacm1/m);
});
