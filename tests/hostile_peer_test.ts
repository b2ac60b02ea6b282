import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { type Channel, connect, listen, type Listener, MoatError, Pool } from "../mod.ts";
import { helper } from "../ffi/helper.ts";
import { DESC_KIND, RING } from "../ffi/layout.ts";
import { C, errno, libc, pageSize } from "../ffi/libc.ts";
import { architecture, runtime } from "../ffi/runtime.ts";
import { sendPacket } from "../lib/shm/socket.ts";
import { leftovers } from "./support/leftovers.ts";
import { assertBytes, pattern } from "./support/bytes.ts";
import { Child, freshAddress } from "./support/child.ts";
import {
  answerOnce,
  AT,
  dial,
  type Fields,
  greeting,
  Hostile,
  hungUp,
  memfd,
  sendAny,
  until,
} from "./support/hostile.ts";
import { codeOf } from "./support/errors.ts";

const FRAMES = 64, PAGE = pageSize();
const { eager: EAGER, table: TABLE } = DESC_KIND;

// ---- what a bad peer must not leave behind

async function talk(a: Channel, b: Channel): Promise<void> {
  for (const bytes of [100, 200_000]) {
    const data = pattern(bytes, bytes), sent = a.send(data);
    using message = await b.recv();
    assertBytes(message!.bytes, data, `a message of ${bytes} bytes`);
    message!.release();
    await sent;
  }
}

async function assertServes(listener: Listener): Promise<void> {
  const { address, pool } = listener;
  const [good, channel] = await Promise.all([connect(address, { pool }), listener.accept()]);
  await talk(good, channel);
  await talk(channel, good);
  await Promise.all([good.close(), channel.close()]);
}

// Threads, sockets and caches that the first connection makes are no leftovers.
async function warmUp(): Promise<void> {
  const pool = Pool.create({ bytes: 4 << 20 });
  const listener = await listen(freshAddress(), { pool });
  await assertServes(listener);
  await listener.close();
  await pool.close();
}
await warmUp();

/** Long enough for everybody who does greet, and as long as one takes who does not. */
const PATIENCE = 20_000, IMPATIENCE = 600;

/** Runs `body` with a pool and a listener; afterwards both serve a good peer, and nothing is left. */
async function withVictim(
  body: (listener: Listener, pool: Pool) => Promise<void>,
  timeout = PATIENCE,
): Promise<void> {
  const before = leftovers();
  const pool = Pool.create({ bytes: 4 << 20 });
  const listener = await listen(freshAddress(), { pool, timeout });
  await body(listener, pool);
  await assertServes(listener);
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames);
  await listener.close();
  await pool.close();
  // A program's pipes may be closed a little after it has ended.
  for (let i = 0; i < 1000 && !isDeepStrictEqual(leftovers(), before); i++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.deepEqual(leftovers(), before);
}

// ---- greetings

function close(fds: readonly number[]): void {
  for (const fd of fds) libc().close(fd);
}
const good = (): number[] => [memfd(FRAMES * PAGE), memfd(RING.size)];
const withPool = (fd: number): number[] => [fd, memfd(RING.size)];
const withRing = (fd: number): number[] => [memfd(FRAMES * PAGE), fd];
const MFD_HUGETLB = 4;
// Where the kernel knows no huge pages, an ordinary event counter is as little a pool.
function hugePages(): number {
  try {
    return memfd(2 << 20, C.F_SEAL_SHRINK, MFD_HUGETLB);
  } catch {
    return libc().eventfd(0, C.EFD_CLOEXEC);
  }
}

/** What becomes of connecting to a listener that does `talk`. */
async function connectTo(
  pool: Pool,
  talk: (fd: number) => unknown,
  timeout = PATIENCE,
): Promise<string> {
  const address = freshAddress(), answered = answerOnce(address, talk);
  const code = await codeOf(connect(address, { pool, timeout }));
  await answered;
  return code;
}

const GREETINGS: Record<string, () => [Uint8Array, number[]]> = {
  "another magic": () => [greeting({ magic: 0x544f4d41 }), good()],
  "another version": () => [greeting({ version: 2 }), good()],
  "another page size": () => [greeting({ page: PAGE * 2 }), good()],
  "another size of ring": () => [greeting({ ring: RING.size - 1 }), good()],
  "half its length": () => [greeting().subarray(0, 16), good()],
  "one byte": () => [new Uint8Array([119]), []],
  "a byte too much": () => [new Uint8Array([...greeting(), 0]), good()],
  "a megabyte too much": () => [new Uint8Array(100_000), good()],
  "no descriptor": () => [greeting(), []],
  "one descriptor": () => [greeting(), [memfd(FRAMES * PAGE)]],
  "three descriptors": () => [greeting(), [...good(), memfd(1)]],
  "seven descriptors": () => [greeting(), [...good(), ...good(), ...good(), memfd(1)]],
  "a pool that is no memfd": () => [greeting(), withPool(libc().eventfd(0, C.EFD_CLOEXEC))],
  "a ring that is no memfd": () => [greeting(), withRing(libc().eventfd(0, C.EFD_CLOEXEC))],
  "a pool that can be cut off": () => [greeting(), withPool(memfd(FRAMES * PAGE, 0))],
  "a ring that can be cut off": () => [greeting(), withRing(memfd(RING.size, 0))],
  "a pool that is a frame short": () => [greeting(), withPool(memfd((FRAMES - 1) * PAGE))],
  "a ring that is a byte short": () => [greeting(), withRing(memfd(RING.size - 1))],
  "a pool whose pages can run out": () => [greeting(), withPool(hugePages())],
  "a ring whose pages can run out": () => [greeting(), withRing(hugePages())],
  "a pool of no frames": () => [greeting({ frames: 0 }), good()],
  "a pool of 2^31 frames": () => [greeting({ frames: 2 ** 31 }), withPool(memfd(2 ** 31 * PAGE))],
  "a pool of 2^31 frames less one": () => [
    greeting({ frames: 2 ** 31 - 1 }),
    withPool(memfd((2 ** 31 - 1) * PAGE)),
  ],
  "a pool of 2^28 frames and one": () => [
    greeting({ frames: 2 ** 28 + 1 }),
    withPool(memfd((2 ** 28 + 1) * PAGE)),
  ],
  "a pool of 2^32 frames less one": () => [greeting({ frames: 2 ** 32 - 1 }), good()],
};

for (const [name, make] of Object.entries(GREETINGS)) {
  test(`a greeting with ${name} is refused, by either side`, () =>
    withVictim(async (listener, pool) => {
      const fd = dial(listener.address), [data, fds] = make();
      sendAny(fd, data, fds);
      await hungUp(fd);
      close([fd]);

      const code = await connectTo(pool, async (fd) => {
        sendAny(fd, data, fds);
        await hungUp(fd);
      });
      close(fds);
      assert.equal(code, "PEER_PROTOCOL");
    }));
}

test("a peer that hangs up before it greets: PEER_LOST, and the listener goes on", () =>
  withVictim(async (listener, pool) => {
    close([dial(listener.address)]);
    assert.equal(await connectTo(pool, () => {}), "PEER_LOST");
  }));

test("a greeting of no bytes with descriptors: PEER_LOST, and the descriptors are closed", () =>
  withVictim(async (listener, pool) => {
    const fds = good(), fd = dial(listener.address);
    sendAny(fd, new Uint8Array(0), fds);
    await hungUp(fd);
    close([fd]);
    const code = await connectTo(pool, async (fd) => {
      sendAny(fd, new Uint8Array(0), fds);
      await hungUp(fd);
    });
    close(fds);
    assert.equal(code, "PEER_LOST");
  }));

test("peers that say nothing: TIMED_OUT, and the listener serves others all the while", () =>
  withVictim(async (listener, pool) => {
    const silent = Array.from({ length: 20 }, () => dial(listener.address));
    await assertServes(listener);
    await Promise.all(silent.map(hungUp));
    close(silent);
    assert.equal(await connectTo(pool, hungUp, IMPATIENCE), "TIMED_OUT");
  }, IMPATIENCE));

test("a peer that greets with our own memory talks to itself at most", () =>
  withVictim(async (listener) => {
    const [first, channel] = await Promise.all([
      Hostile.connect(listener.address),
      listener.accept(),
    ]);
    const fd = dial(listener.address);
    const frames = (statSync(`/proc/self/fd/${first.theirFds[0]}`).size / PAGE) | 0;
    sendAny(fd, greeting({ frames }), first.theirFds);
    const mirror = await listener.accept();
    assert.equal((await mirror.send(new Uint8Array([1, 2, 3]))).bytes, 3);
    first.close();
    close([fd]);
    assert.equal(await codeOf(channel.recv()), "PEER_LOST");
    await channel.close();
    mirror.abort();
  }));

// ---- nonsense in the ring and in the pool

/** What a peer does; `id` is a message of the victim's that it holds. */
type Act = (peer: Hostile, id?: number) => void;

const run = (frame: number, count: number): [number, number][] => [[frame, count]];
/** As many runs of one frame. */
const ones = (count: number, frame = 1): [number, number][] =>
  Array.from({ length: count }, () => [frame, 1]);
/** Publishes a message whose list of runs is in frame 2. */
function inTable(fields: Fields, runs: [number, number][], next = 0): Act {
  return (peer) => {
    peer.table(2, runs, next);
    peer.publish({ kind: TABLE, table: 2, nruns: runs.length, len: runs.length * PAGE, ...fields });
  };
}
const head = (length: number, offset: number): Fields["head"] & object => ({ length, offset });
const said = (fields: Fields): Act => (peer) => peer.publish(fields);

const NONSENSE: Record<string, Act> = {
  "more descriptors than there are places": (peer) => peer.set(AT.txTail, AT.slots + 1),
  "2^63 descriptors": (peer) => peer.set(AT.txTail, 2n ** 63n),
  "fewer descriptors than none": (peer) => peer.set(AT.txTail, -1),
  "a descriptor of kind 0": said({ kind: 0, len: 8 }),
  "a descriptor of kind 4": said({ kind: 4, len: 8, runs: run(1, 1) }),
  "a descriptor of kind 2^32 - 1": said({ kind: -1, len: 8, runs: run(1, 1) }),
  "a small message longer than small ones are": said({ kind: EAGER, len: RING.eagerMax + 1 }),
  "a small message of 2^63 bytes": said({ kind: EAGER, len: 2n ** 63n }),
  "a small message of 2^64 - 1 bytes": said({ kind: EAGER, len: -1 }),
  "a small message behind the ring": said({ kind: EAGER, len: 1, off: AT.eagerBytes }),
  "a small message across the end of the ring": said({
    kind: EAGER,
    len: 9,
    off: AT.eagerBytes - 8,
  }),
  "a small message at 2^32 - 8": said({ kind: EAGER, len: 16, off: -8 }),
  "pages with no runs": said({ len: 8 }),
  "no bytes in one page": said({ len: 0, runs: run(1, 1) }),
  "no bytes at an offset": said({ len: 0, off: 8 }),
  "2^63 bytes": said({ len: 2n ** 63n, runs: run(0, FRAMES) }),
  "2^64 - 1 bytes": said({ len: -1, off: 1, runs: run(0, FRAMES) }),
  "more bytes than the pool has": said({ len: FRAMES * PAGE + 1, runs: run(0, FRAMES) }),
  "an offset of a page": said({ len: 8, off: PAGE, runs: run(1, 2) }),
  "an offset of 2^32 - 1": said({ len: 8, off: -1, runs: run(1, 2) }),
  "a run behind the pool": said({ len: 8, runs: run(FRAMES, 1) }),
  "a run at frame 2^32 - 1": said({ len: 8, runs: run(-1, 1) }),
  "a run across the end of the pool": said({ len: 2 * PAGE, runs: run(FRAMES - 1, 2) }),
  "a run of no frames": said({ len: 8, runs: run(1, 0) }),
  "a run of 2^32 - 1 frames": said({ len: 8, runs: run(1, -1) }),
  "runs whose sum overflows": said({ len: PAGE, runs: [[1, -1], [0, 2]] }),
  "runs of fewer pages than bytes": said({ len: 2 * PAGE + 1, runs: run(1, 2) }),
  "runs of more pages than bytes": said({ len: PAGE, runs: run(1, 2) }),
  "an offset that takes one page more": said({ len: PAGE, off: 1, runs: run(1, 1) }),
  "five runs without a table": said({ len: 5 * PAGE, nruns: 5, runs: ones(4) }),
  "2^32 - 1 runs without a table": said({ len: 5 * PAGE, nruns: -1, runs: ones(4) }),
  "a table behind the pool": said({ kind: TABLE, len: 5 * PAGE, nruns: 5, table: FRAMES }),
  "a table at frame 2^32 - 1": said({ kind: TABLE, len: 5 * PAGE, nruns: 5, table: -1 }),
  "a table of nothing": inTable({}, Array.from({ length: 5 }, () => [0, 0])),
  "a table with a run behind the pool": inTable({}, [...ones(4), [FRAMES, 1]]),
  "a table with a run of 2^32 - 1 frames": inTable({}, [...ones(4), [1, -1]]),
  "a table of more runs than pages": inTable({ len: 5 * PAGE }, ones(6)),
  "a table of fewer runs than pages": inTable({ len: 7 * PAGE }, ones(6)),
  "a table of 2^32 - 1 runs": inTable({ nruns: -1, len: FRAMES * PAGE }, ones(6)),
  "a header longer than headers are": said({ kind: EAGER, len: 8, head: head(1025, 0) }),
  "a header of 4095 bytes": said({ len: PAGE, runs: run(1, 1), head: head(4095, 0) }),
  "a header behind the ring": said({ kind: EAGER, len: 8, head: head(1, AT.eagerBytes) }),
  "a header across the end of the ring": said({
    len: PAGE,
    runs: run(1, 1),
    head: head(24, AT.eagerBytes - 23),
  }),
  "a header at 2^20 - 1": said({ kind: EAGER, len: 8, head: head(1, 2 ** 20 - 1) }),
  "a header of no bytes somewhere": said({ kind: EAGER, len: 8, head: head(0, 1) }),
  "a header with a message of kind 0": said({ kind: 0, len: 8, head: head(8, 0) }),
  "a header with a table of nothing": inTable(
    { head: head(8, 0) },
    Array.from({ length: 5 }, () => [0, 0]),
  ),
  "more releases than there are places": (peer) => peer.set(AT.relTail, AT.releases + 1),
  "2^63 releases": (peer) => peer.set(AT.relTail, 2n ** 63n),
  "fewer releases than none": (peer) => peer.set(AT.relTail, -1),
  "a release of 2^32 - 1": (peer) => peer.release(-1),
  "a release of what never was": (peer) => peer.release(100_000),
  "two releases of one message": (peer, id) => (peer.release(id!), peer.release(id!)),
  "more messages received than were sent": (peer) => peer.set(AT.rxHead, 2),
  "2^63 messages received": (peer) => peer.set(AT.rxHead, 2n ** 63n),
  "fewer messages received than none": (peer) => peer.set(AT.rxHead, -1),
};

async function cutOff(
  listener: Listener,
  peer: Hostile,
  channel: Channel,
  pending: Promise<string>[],
): Promise<void> {
  const codes = await Promise.all(pending);
  assert.deepEqual(codes, codes.map(() => "PEER_PROTOCOL"));
  await hungUp(peer.fd);
  assert.equal(channel.closed, true);
  assert.equal(await codeOf(channel.send(new Uint8Array(8))), "PEER_PROTOCOL");
  assert.equal(await codeOf(channel.send(listener.pool.alloc(50_000))), "PEER_PROTOCOL");
  assert.equal(await codeOf(channel.recv()), "PEER_PROTOCOL");
  await channel.close();
  peer.close();
}

async function meet(listener: Listener, frames = FRAMES): Promise<[Hostile, Channel]> {
  return await Promise.all([Hostile.connect(listener.address, frames), listener.accept()]);
}

for (const [name, act] of Object.entries(NONSENSE)) {
  test(`a peer that says ${name} is cut off, whoever waits for what`, () =>
    withVictim(async (listener, pool) => {
      const receives: ((channel: Channel) => Promise<unknown>)[] = [
        (channel) => channel.recv(),
        (channel) => channel.recv(pool.alloc(1 << 20)),
        (channel) => channel.recv(new Uint8Array(1 << 20)),
      ];
      for (const posted of [...receives.keys(), undefined]) {
        const [peer, channel] = await meet(listener);
        const buf = pool.alloc(50_000);
        const pending = [codeOf(channel.send(buf, { guard: "cow" }))];
        buf.bytes.fill(1); // private pages
        const id = await peer.idOf(0);
        if (posted !== undefined) pending.push(codeOf(receives[posted]!(channel)));
        // Two releases of one message leave nobody to be told but the receive.
        if (name.startsWith("two releases")) pending.shift();
        act(peer, id);
        pending.push(codeOf(channel.recv()));
        await cutOff(listener, peer, channel, pending);
      }
    }));
}

test("a peer that takes back what it sent is cut off", () =>
  withVictim(async (listener) => {
    const [peer, channel] = await meet(listener);
    peer.publish({ kind: EAGER, len: 5 });
    using message = await channel.recv();
    assert.equal(message!.byteLength, 5);
    const pending = codeOf(channel.recv());
    peer.set(AT.txTail, 0);
    peer.wake();
    await cutOff(listener, peer, channel, [pending]);
  }));

test("a peer that releases another connection's message is cut off, and the other is not", () =>
  withVictim(async (listener, pool) => {
    const [fair, channel] = await meet(listener), [peer, other] = await meet(listener);
    const sent = codeOf(channel.send(pool.alloc(50_000), { guard: "cow" }));
    const received = codeOf(channel.recv());
    const id = await fair.idOf(0);
    const pending = codeOf(other.recv());
    peer.release(id);
    await cutOff(listener, peer, other, [pending]);
    fair.release(id);
    assert.equal(await sent, "resolved");
    fair.publish({ kind: EAGER, len: 3 });
    assert.equal(await received, "resolved");
    await channel.close();
    fair.close();
  }));

test("a peer that releases a receive, or a message it released long ago, is cut off", () =>
  withVictim(async (listener, pool) => {
    for (const which of ["receive", "released"]) {
      const [peer, channel] = await meet(listener);
      const sent = channel.send(pool.alloc(50_000), { guard: "cow" });
      const id = await peer.idOf(0);
      peer.release(id);
      await sent;
      // The number of the send is the first to be used again.
      const pending = which === "receive" ? [codeOf(channel.recv())] : [];
      peer.release(id);
      pending.push(codeOf(channel.recv()));
      await cutOff(listener, peer, channel, pending);
    }
  }));

test("headers at the ends of the ring are right", () =>
  withVictim(async (listener) => {
    const [peer, channel] = await meet(listener);
    peer.ring.setUint8(AT.eager + AT.eagerBytes - 1, 7);
    for (const [length, offset] of [[1, 0], [1024, AT.eagerBytes - 1024], [1, AT.eagerBytes - 1]]) {
      peer.publish({ kind: EAGER, len: 1, head: head(length!, offset!) });
      const { header } = (await channel.recv())!;
      assert.equal(header.length, length);
      assert.equal(header.at(-1), offset === 0 ? 0 : 7);
    }
    await channel.close();
    peer.close();
  }));

test("a state that is none means nothing, until the peer hangs up", () =>
  withVictim(async (listener) => {
    const [peer, channel] = await meet(listener);
    for (const state of [0, 4, 0xffffffff]) {
      peer.ring.setUint32(AT.state, state, true);
      const received = channel.recv();
      peer.publish({ kind: EAGER, len: 7 });
      assert.equal((await received)!.byteLength, 7);
    }
    const received = codeOf(channel.recv());
    peer.close();
    assert.equal(await received, "PEER_LOST");
    await channel.close();
  }));

test("unusual messages that are right are delivered: one frame many times, a list in a circle", () =>
  withVictim(async (listener, pool) => {
    const last = PAGE / 8 - 1, pages = last + 100;
    const [peer, channel] = await meet(listener, pages + 10);
    peer.pool.subarray(PAGE, 2 * PAGE).set(pattern(1, PAGE));
    const expected = pattern(1, PAGE);
    const assertAll = (bytes: Uint8Array): void => {
      assert.equal(bytes.length, pages * PAGE);
      for (let at = 0; at < bytes.length; at += PAGE) {
        assertBytes(bytes.subarray(at, at + PAGE), expected, `page ${at / PAGE}`);
      }
    };
    inTable({ nruns: pages, len: pages * PAGE, id: 77 }, ones(last), 2)(peer);
    using message = await channel.recv();
    assertAll(message!.bytes);
    message!.release();
    assert.equal(channel.closed, false);

    inTable({ nruns: pages, len: pages * PAGE }, ones(last), 2)(peer);
    const buf = pool.alloc(pages * PAGE);
    await channel.recv(buf);
    assertAll(buf.bytes);

    // Long runs of the same frames: mapped, not copied.
    const runs: [number, number][] = Array.from({ length: 8 }, () => [1, 64]);
    inTable({ len: 512 * PAGE }, runs)(peer);
    using long = await channel.recv();
    assert.equal(long!.byteLength, 512 * PAGE);
    assertBytes(long!.bytes.subarray(64 * PAGE, 65 * PAGE), expected, "the second run");
    long!.bytes[0] = 99; // a private page
    assertBytes(long!.bytes.subarray(64 * PAGE, 65 * PAGE), expected, "the second run");
    long!.release();

    peer.publish({ len: 0 });
    using empty = await channel.recv();
    assert.equal(empty!.byteLength, 0);
    assert.equal(peer.theirs.getUint32(AT.rel, true), 77);
    await channel.close();
    peer.close();
  }));

for (const [how, runs] of [["copied", ones(40)], ["mapped", ones(8).map(() => [1, 64])]] as const) {
  test(`a peer that changes a list between its check and its use is cut off: ${how}`, () =>
    withVictim(async (listener, pool) => {
      const pages = runs.reduce((sum, [, count]) => sum + count, 0);
      const [peer, channel] = await meet(listener, 1024);
      const sent = codeOf(channel.send(pool.alloc(50_000), { guard: "cow" }));
      const received = codeOf(channel.recv());
      inTable({ len: pages * PAGE }, runs as [number, number][])(peer);
      // The message is looked at, as it is while this thread waits in a fault; opened it is in the next turn.
      for (let conn = 0; conn < 16; conn++) helper().moat_conn_arm(conn);
      peer.table(2, runs.map(() => [1024, 1]));
      await cutOff(listener, peer, channel, [received, sent]);
    }));
}

test("a peer whose list of a million runs goes in a circle is served; one run more, and it is cut off", () =>
  withVictim(async (listener) => {
    const [peer, channel] = await meet(listener, 2 ** 28), most = 2 ** 20;
    inTable({ nruns: most, len: most * PAGE }, ones(PAGE / 8 - 1), 2)(peer);
    // It does not fit, so it stays where it is.
    assert.equal(await codeOf(channel.recv(new Uint8Array(8))), "MESSAGE_TOO_LARGE");
    peer.describe(0, { kind: TABLE, table: 2, nruns: most + 1, len: (most + 1) * PAGE });
    const pending = codeOf(channel.recv(new Uint8Array(8)));
    await cutOff(listener, peer, channel, [pending]);
  }));

test("an empty message that finds the ring full is no nonsense", () =>
  withVictim(async (listener, pool) => {
    const [a, b] = await Promise.all([connect(listener.address, { pool }), listener.accept()]);
    const lengths = Array.from({ length: AT.slots + 10 }, (_, i) => i % 3);
    const sends = lengths.map((length) => a.send(new Uint8Array(length)));
    for (const length of lengths) {
      using message = await b.recv();
      assert.equal(message!.byteLength, length);
    }
    const into = pool.alloc(10);
    const more = lengths.map((length) => a.send(new Uint8Array(length)));
    for (const length of lengths) assert.equal((await b.recv(into))!.bytes, length);
    await Promise.all([...sends, ...more]);
    await Promise.all([a.close(), b.close()]);
  }));

test("a message of 5 GiB out of 20 MiB is delivered or refused, and the next one comes", () =>
  withVictim(async (listener) => {
    const frames = 5 * 2 ** 30 / PAGE;
    const [peer, channel] = await meet(listener, frames);
    for (const receive of ["posted", "taken"]) {
      const received = receive === "posted" ? channel.recv() : undefined;
      peer.publish({ len: frames * PAGE, runs: run(0, frames) });
      try {
        using message = await (received ?? channel.recv());
        assert.equal(message!.byteLength, frames * PAGE);
        assert.equal(message!.bytes.at(-1), 0);
      } catch (error) {
        assert.equal((error as MoatError).code, "MESSAGE_TOO_LARGE");
      }
    }
    peer.publish({ kind: EAGER, len: 9 });
    assert.equal((await channel.recv())!.byteLength, 9);
    await channel.close();
    peer.close();
  }));

// Sends a packet when those before it have been read.
async function sendSoon(fd: number, data: Uint8Array, fds: readonly number[]): Promise<void> {
  await until(() => {
    try {
      sendAny(fd, data, fds);
      return true;
    } catch (error) {
      if ((error as MoatError).errno !== C.EAGAIN) throw error;
      return undefined;
    }
  });
}

test("packets after the greeting wake, whatever is in them; their descriptors are closed", () =>
  withVictim(async (listener) => {
    const [peer, channel] = await meet(listener);
    for (let i = 0; i < 200; i++) {
      const received = channel.recv(), fds = i % 2 ? good() : [];
      await sendSoon(peer.fd, new Uint8Array(1 + i * 10), fds);
      close(fds);
      peer.publish({ kind: EAGER, len: i });
      assert.equal((await received)!.byteLength, i);
    }
    const received = codeOf(channel.recv());
    await sendSoon(peer.fd, new Uint8Array(0), []); // looks like the end, so it is the end
    assert.equal(await received, "PEER_LOST");
    await channel.close();
    peer.close();
  }));

test("a peer that changes its ring and lists while they are read is served or cut off", (t) =>
  withVictim(async (listener, pool) => {
    const child = new Child(t, "flipper", [listener.address, "1500"]);
    const codes = new Map<string, number>();
    let delivered = 0, copied = 0;
    const buffers = [pool.alloc(1 << 20), pool.alloc(5000)];
    async function serve(channel: Channel): Promise<void> {
      const sent = codeOf(channel.send(buffers[1]!, { guard: "cow" }));
      for (let i = 0;; i++) {
        try {
          if (i % 3 === 0) {
            const { bytes } = (await channel.recv(buffers[0]!, { guard: "none" }))!;
            assert.ok(bytes <= 1 << 20); // a length that was flipped to 0 makes a right, empty message
          } else {
            using message = (await channel.recv())!;
            let sum = 0;
            for (let at = 0; at < message.byteLength; at += PAGE) sum += message.bytes[at]!;
            assert.ok(sum >= 0);
            if (i % 3 === 1) message.bytes[0] = 1;
            if (message.copied) copied++;
          }
          delivered++;
        } catch (error) {
          const code = error instanceof MoatError ? error.code : String(error);
          codes.set(code, (codes.get(code) ?? 0) + 1);
          if (code === "MESSAGE_TOO_LARGE") continue;
          if (!code.startsWith("PEER_")) channel.abort(error); // the test fails; it need not hang as well
          break;
        }
      }
      assert.notEqual(await sent, "");
      await channel.close();
    }
    const served: Promise<void>[] = [];
    const stop = new AbortController();
    const done = child.exit.then(({ code, stderr }) => {
      assert.equal(code, 0, stderr);
      stop.abort();
    });
    try {
      for (;;) served.push(serve(await listener.accept({ signal: stop.signal })));
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    }
    await Promise.all([done, ...served]);
    const unknown = [...codes.keys()].filter((code) =>
      !["PEER_PROTOCOL", "PEER_LOST", "MESSAGE_TOO_LARGE"].includes(code)
    );
    assert.deepEqual(unknown, []);
    assert.ok((codes.get("PEER_PROTOCOL") ?? 0) > 0, JSON.stringify([...codes]));
    assert.ok(delivered > copied && copied > 0, `${delivered} delivered, ${copied} copied`);
    for (const buf of buffers) buf.free();
  }));

// ---- what a peer can do to our memory

test("a peer can read our pool and ring, and neither write nor cut off nor punch them", () =>
  withVictim(async (listener) => {
    const [peer, channel] = await meet(listener);
    const c = runtime().open("libc.so.6", {
      // int fallocate(int fd, int mode, off_t offset, off_t len);
      fallocate: { parameters: ["i32", "i32", "size", "size"], result: "i32" },
    });
    const EPERM = 1, EACCES = 13, both = C.PROT_READ | C.PROT_WRITE, PUNCH_HOLE = 3;
    const refused = (result: number, expected: number, what: string): void => {
      const got = result === -1 ? errno() : 0;
      assert.equal(got, expected, what);
    };
    for (const fd of peer.theirFds) {
      const { mmap, mprotect, munmap, ftruncate, write, fcntl } = libc();
      refused(mmap(0, PAGE, both, C.MAP_SHARED, fd, 0), EPERM, "mmap to write");
      const at = mmap(0, PAGE, C.PROT_READ, C.MAP_SHARED, fd, 0);
      assert.ok(at > 0);
      refused(mprotect(at, PAGE, both), EACCES, "mprotect to write");
      munmap(at, PAGE);
      refused(ftruncate(fd, 0), EPERM, "ftruncate to nothing");
      refused(ftruncate(fd, 1 << 30), EPERM, "ftruncate to more");
      refused(write(fd, new Uint8Array(8), 8), EPERM, "write");
      refused(c.fallocate(fd, PUNCH_HOLE, 0, PAGE), EPERM, "fallocate to punch a hole");
      refused(fcntl(fd, C.F_ADD_SEALS, C.F_SEAL_WRITE), EPERM, "another seal");
      const again = libc().open(new TextEncoder().encode(`/proc/self/fd/${fd}\0`), 2, 0);
      assert.ok(again >= 0);
      refused(mmap(0, PAGE, both, C.MAP_SHARED, again, 0), EPERM, "mmap of it opened again");
      close([again]);
    }
    peer.close();
    await channel.close();
  }));

// ---- other users

const SETRESUID = architecture() === "x86_64" ? 117 : 147, NOBODY = 65534;

/** Does something as another user. The system call changes this thread alone, unlike the library's function. */
function asNobody<T>(act: () => T): T {
  const c = runtime().open("libc.so.6", {
    // long syscall(long number, ...);
    syscall: { parameters: ["size", "size", "size", "size"], result: "size" },
  });
  assert.equal(c.syscall(SETRESUID, -1, NOBODY, -1), 0);
  try {
    return act();
  } finally {
    assert.equal(c.syscall(SETRESUID, -1, 0, -1), 0);
  }
}

function testUsers(name: string, body: (directory: string) => Promise<void>): void {
  test(name, async () => {
    if (process.getuid!() !== 0) {
      console.log(`# SKIP ${name}: only root can be another user`);
      return;
    }
    const directory = mkdtempSync(join(tmpdir(), "moat-users-"));
    chmodSync(directory, 0o777);
    try {
      await body(directory);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
}
const denied = (e: unknown): boolean => e instanceof MoatError && e.code === "PERMISSION_DENIED";

testUsers("another user cannot reach a listener: by name, or by path without uids", async (dir) => {
  await withVictim((listener) => {
    assert.throws(() => asNobody(() => dial(listener.address)), denied);
    return Promise.resolve();
  });
  const pool = Pool.create({ bytes: 1 << 20 }), path = join(dir, "socket");
  const listener = await listen(`shm://${path}`, { pool });
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.throws(() => asNobody(() => dial(listener.address)), denied);
  await listener.close();
  await pool.close();
});

testUsers("with uids a listener serves the users named, and hangs up on others", async (dir) => {
  for (const [uids, served] of [[[NOBODY], true], [[12345], false]] as const) {
    const pool = Pool.create({ bytes: 1 << 20 });
    const listener = await listen(`shm://${join(dir, "socket")}`, { pool, uids });
    const fd = asNobody(() => dial(listener.address));
    if (served) {
      const [peer, channel] = await Promise.all([Hostile.over(fd), listener.accept()]);
      peer.publish({ kind: EAGER, len: 4 });
      assert.equal((await channel.recv())!.byteLength, 4);
      peer.close();
      await channel.close();
    } else {
      await hungUp(fd);
      close([fd]);
      await assertServes(listener);
    }
    await listener.close();
    await pool.close();
  }
});

testUsers(
  "connect() to another user's listener is refused, unless uids names the user",
  async (dir) => {
    const pool = Pool.create({ bytes: 1 << 20 });
    for (const uids of [[], [NOBODY]]) {
      const address = `shm://${join(dir, "socket")}`;
      let answered!: Promise<void>;
      asNobody(() => {
        answered = answerOnce(address, async (fd) => {
          const fds = uids.length > 0 ? good() : [];
          if (fds.length > 0) sendPacket(fd, greeting(), fds);
          close(fds);
          await hungUp(fd);
        });
      });
      const code = codeOf(connect(address, { pool, uids }).then((channel) => channel.abort()));
      assert.equal(await code, uids.length > 0 ? "resolved" : "PERMISSION_DENIED");
      await answered;
    }
    await pool.close();
  },
);
