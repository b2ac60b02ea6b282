import assert from "node:assert/strict";
import { readdirSync, readlinkSync } from "node:fs";
import process from "node:process";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import { type Channel, connect, listen, type Listener, type MoatError, Pool } from "../mod.ts";
import { helper } from "../ffi/helper.ts";
import { C, libc } from "../ffi/libc.ts";
import { encodeHello, HELLO_SIZE } from "../lib/tcp/hello.ts";
import {
  connected,
  listenSocket,
  portOf,
  readSome,
  resetOnClose,
  sendFew,
  startConnect,
} from "../lib/tcp/socket.ts";
import { type HostAddress, parseAddress } from "../lib/address.ts";
import { resolveData } from "../lib/memory/resolve.ts";
import { coreOf } from "../lib/memory/pool.ts";
import { connectTcp } from "../lib/tcp/connect.ts";
import { acceptSocket } from "../lib/acceptor.ts";
import { leftovers } from "./support/leftovers.ts";
import { assertBytes, pattern } from "./support/bytes.ts";
import { Child, other } from "./support/child.ts";
import { codeOf } from "./support/errors.ts";
import { settled } from "./support/settled.ts";

const KIB = 1 << 10, MIB = 1 << 20, POOL = 4 * MIB;

async function until<T>(look: () => T | undefined | false): Promise<T> {
  for (let i = 0; i < 10_000; i++) {
    const found = look();
    if (found !== undefined && found !== false) return found;
    await sleep(2);
  }
  throw new Error("it did not happen in 20 s");
}

// ---- a peer made of a bare socket

/** Connects a bare socket. */
async function dial(address: string): Promise<number> {
  const [, host, port] = /^tcp:\/\/([^:]*):(\d+)$/.exec(address)!;
  const to = { host: host!, port: Number(port) }, fd = startConnect(to, address);
  await until(() => connected(fd, to, address));
  return fd;
}

function hello(): Uint8Array {
  return encodeHello(0);
}

interface Frame {
  kind?: number;
  flag?: number;
  head?: number;
  zero?: number;
  len?: bigint | number;
}
function frame({ kind = 1, flag = 0, head = 0, zero = 0, len = 0 }: Frame): Uint8Array {
  const bytes = new Uint8Array(16), view = new DataView(bytes.buffer);
  view.setUint8(0, kind);
  view.setUint8(1, flag);
  view.setUint16(2, head, true);
  view.setUint32(4, zero, true);
  view.setBigUint64(8, BigInt.asUintN(64, BigInt(len)), true);
  return bytes;
}
function join(...parts: Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
const message = (bytes: Uint8Array): Uint8Array => join(frame({ len: bytes.length }), bytes);
const BYE = frame({ kind: 2, flag: 1 }), ABORT = frame({ kind: 2, flag: 2 });

/** Sends all of it, however little the socket takes at a time. */
async function deliver(fd: number, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    const n = libc().send(
      fd,
      bytes.subarray(at),
      bytes.length - at,
      C.MSG_NOSIGNAL | C.MSG_DONTWAIT,
    );
    if (n > 0) at += n;
    else await sleep(1);
  }
}

async function hungUp(fd: number): Promise<void> {
  const sink = new Uint8Array(65536);
  await until(() => readSome(fd, sink) === 0);
}

// ---- what a bad peer must not leave behind

async function assertServes(listener: Listener): Promise<void> {
  const { address, pool } = listener;
  const [a, b] = await Promise.all([connect(address, { pool }), listener.accept()]);
  for (const bytes of [100, 200_000]) {
    const data = pattern(bytes, bytes), sent = a.send(data);
    using message = await b.recv();
    assertBytes(message!.bytes, data, `a message of ${bytes} bytes`);
    await sent;
  }
  await Promise.all([a.close(), b.close()]);
}

/** Long enough for everybody who does greet, and as long as one takes who does not. */
const PATIENCE = 20_000, IMPATIENCE = 600;

/** Runs `body` with a pool and a listener; afterwards both serve a good peer, and nothing is left. */
async function withVictim(
  body: (listener: Listener, pool: Pool) => Promise<void>,
  timeout = PATIENCE,
): Promise<void> {
  const before = leftovers();
  const pool = Pool.create({ bytes: POOL });
  const listener = await listen("tcp://127.0.0.1:0", { pool, timeout });
  await body(listener, pool);
  await assertServes(listener);
  for (let i = 0; i < 1000 && pool.stats().bytesAvailable < POOL; i++) await sleep(10);
  const { freeFrames, reserveFrames, bytesAvailable } = pool.stats();
  assert.deepEqual([freeFrames, bytesAvailable], [reserveFrames, POOL]);
  await listener.close();
  await pool.close();
  for (let i = 0; i < 1000 && !isDeepStrictEqual(leftovers(), before); i++) await sleep(10);
  assert.deepEqual(leftovers(), before);
}
// Threads, sockets and caches that the first connection makes are no leftovers.
{
  const pool = Pool.create({ bytes: POOL }), listener = await listen("tcp://127.0.0.1:0", { pool });
  await assertServes(listener);
  await listener.close();
  await pool.close();
}

/** A listener's channel to a bare socket that has greeted. */
async function meet(listener: Listener): Promise<{ fd: number; channel: Channel }> {
  const fd = await dial(listener.address);
  sendFew(fd, hello());
  const channel = await listener.accept(), bytes = new Uint8Array(HELLO_SIZE);
  await until(() => readSome(fd, bytes));
  return { fd, channel };
}

// ---- greetings

/** What becomes of connecting to somebody who says `bytes` and hangs up, or does not. */
async function connectTo(
  pool: Pool,
  bytes: Uint8Array,
  { hang = false, timeout = PATIENCE } = {},
): Promise<string> {
  const server = listenSocket({ host: "127.0.0.1", port: 0 }, "here");
  const connecting = codeOf(
    connect(`tcp://127.0.0.1:${portOf(server)}`, { pool, timeout }).then((c) => c.close()),
  );
  const fd = await until(() => {
    const got = acceptSocket(server);
    return got >= 0 && got;
  });
  sendFew(fd, bytes);
  if (hang) libc().shutdown(fd, C.SHUT_WR);
  const code = await connecting;
  libc().close(fd);
  libc().close(server);
  return code;
}

const altered = (at: number, value: number): Uint8Array => {
  const bytes = hello();
  bytes[at] = value;
  return bytes;
};
const GREETINGS: Record<string, Uint8Array> = {
  "another magic": altered(0, 0),
  "another version": altered(4, 2),
  "another length": altered(6, 33),
  "something where nothing is": altered(12, 1),
  "HTTP": new TextEncoder().encode("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
  "random bytes": pattern(7, 4096),
};
for (const [name, bytes] of Object.entries(GREETINGS)) {
  test(`a greeting with ${name} is refused, by either side`, () =>
    withVictim(async (listener, pool) => {
      const fd = await dial(listener.address);
      sendFew(fd, bytes);
      await hungUp(fd);
      libc().close(fd);
      assert.equal(await connectTo(pool, bytes), "PEER_PROTOCOL");
    }));
}

test("a greeting that stops in the middle: PEER_LOST, or TIMED_OUT if the peer stays", () =>
  withVictim(async (listener, pool) => {
    const fd = await dial(listener.address);
    sendFew(fd, hello().subarray(0, 20));
    await assertServes(listener);
    await hungUp(fd);
    libc().close(fd);
    const bytes = hello().subarray(0, 20);
    assert.equal(await connectTo(pool, bytes, { hang: true }), "PEER_LOST");
    assert.equal(await connectTo(pool, bytes, { timeout: IMPATIENCE }), "TIMED_OUT");
  }, IMPATIENCE));

// ---- frames

const GARBAGE: Record<string, Uint8Array> = {
  "random bytes": pattern(3, 100_000).map((byte, i) => i === 0 ? 77 : byte),
  "a frame of kind 0": frame({ kind: 0 }),
  "a frame of kind 3": frame({ kind: 3, len: 5 }),
  "a message with a flag": frame({ flag: 1, len: 5 }),
  "a message with something where nothing is": frame({ zero: 1, len: 5 }),
  "a message larger than the pool": frame({ len: POOL + 1 }),
  "a message of 2^63 bytes": frame({ len: 2n ** 63n }),
  "a message of 2^64 - 1 bytes": frame({ len: -1 }),
  "a header larger than headers are": frame({ head: 1025, len: 5000 }),
  "a header of 65,535 bytes": frame({ head: 65535, len: 100 }),
  "a goodbye of a kind that there is not": frame({ kind: 2, flag: 3 }),
  "a goodbye with data": frame({ kind: 2, flag: 1, len: 5 }),
  "a message after the goodbye": join(BYE, message(new Uint8Array(5))),
  "a byte after the goodbye": join(BYE, new Uint8Array(1)),
  "a good message, then nonsense": join(message(pattern(1, 100)), frame({ kind: 99 })),
};
for (const [name, bytes] of Object.entries(GARBAGE)) {
  test(`${name}: PEER_PROTOCOL for everything that waits, and the peer is hung up on`, () =>
    withVictim(async (listener, pool) => {
      const { fd, channel } = await meet(listener);
      const into = pool.alloc(64 * KIB);
      // What comes in order before it is received.
      const first = name.startsWith("a good message") ? channel.recv() : undefined;
      const waiting = [codeOf(channel.recv()), codeOf(channel.recv(into))];
      sendFew(fd, bytes);
      if (first) assertBytes((await first)!.bytes, pattern(1, 100), "the good message");
      // A goodbye is one until more comes behind it.
      const codes = (await Promise.all(waiting)).map((code) =>
        name.includes("after the goodbye") && code === "resolved" ? "PEER_PROTOCOL" : code
      );
      assert.deepEqual(codes, ["PEER_PROTOCOL", "PEER_PROTOCOL"]);
      await hungUp(fd);
      libc().close(fd);
      into.free();
      await channel.close();
    }));
}

test("places for messages that were to come are given back when nonsense comes instead", () =>
  withVictim(async (listener) => {
    for (const received of [1, 2, 3]) {
      const { fd, channel } = await meet(listener);
      for (let i = 0; i < received; i++) {
        const data = pattern(i, 100_000), asked = channel.recv();
        await deliver(fd, message(data));
        using got = await asked;
        assertBytes(got!.bytes, data, `message ${i}`);
      }
      await deliver(fd, message(pattern(9, 100_000)));
      await sleep(20); // it is received ahead
      sendFew(fd, frame({ kind: 99 }));
      await hungUp(fd);
      assert.equal(await codeOf(channel.recv()), "PEER_PROTOCOL");
      libc().close(fd);
      await channel.close();
    }
  }));

test("what is received ahead never takes more than a quarter of the pool", () =>
  withVictim(async (listener, pool) => {
    const { fd, channel } = await meet(listener), data = pattern(1, 86 * 4096 + 1);
    for (let i = 0; i < 20; i++) {
      await deliver(fd, message(data));
      await sleep(i % 4); // some come before they are asked for
      using got = await channel.recv();
      assert.equal(got!.byteLength, data.length);
      await sleep(2);
      const places = (POOL - pool.stats().bytesAvailable) / (87 * 4096);
      assert.ok(places <= 3, `${places} places: the message's, and those ahead`);
    }
    await channel.close();
    libc().close(fd);
  }));

const TRUNCATED: Record<string, Uint8Array> = {
  "in the middle of a frame's header": frame({ len: 100 }).subarray(0, 9),
  "in the middle of a small message": message(pattern(1, 1000)).subarray(0, 500),
  "in the middle of a large message": message(pattern(1, 100_000)).subarray(0, 50_000),
  "behind the header of a large message": frame({ len: 150_000 }),
  "between two messages": message(pattern(1, 10)),
};
for (const [name, bytes] of Object.entries(TRUNCATED)) {
  for (const how of ["end", "reset"] as const) {
    test(`a stream that ends (${how}) ${name}: PEER_LOST`, () =>
      withVictim(async (listener, pool) => {
        const { fd, channel } = await meet(listener);
        const into = pool.alloc(200_000), large = name.includes("large");
        const waiting = [large ? codeOf(channel.recv(into)) : codeOf(channel.recv())];
        waiting.push(codeOf(channel.recv()));
        sendFew(fd, bytes);
        if (how === "reset") {
          await sleep(5); // else nothing of it is there
          resetOnClose(fd);
        }
        libc().close(fd);
        const codes = await Promise.all(waiting);
        assert.equal(codes[1], "PEER_LOST");
        if (name !== "between two messages") assert.equal(codes[0], "PEER_LOST");
        assert.equal(await codeOf(channel.send(new Uint8Array(4))), "PEER_LOST");
        into.free();
        await channel.close();
      }));
  }
}

test("a peer that stalls in the middle of a message holds up nobody who closes", () =>
  withVictim(async (listener, pool) => {
    for (const receive of ["into", "alone"]) {
      const { fd, channel } = await meet(listener);
      const into = pool.alloc(200_000);
      const code = codeOf(receive === "into" ? channel.recv(into) : channel.recv());
      sendFew(fd, message(pattern(1, 100_000)).subarray(0, 50_000));
      await sleep(20);
      const closed = channel.close();
      assert.equal(await code, "CHANNEL_CLOSED");
      libc().shutdown(fd, C.SHUT_WR);
      await closed;
      libc().close(fd);
      into.free();
    }
  }));

test("messages that arrive byte by byte arrive", () =>
  withVictim(async (listener) => {
    const { fd, channel } = await meet(listener);
    const data = pattern(2, 300), received = channel.recv();
    for (const byte of message(data)) {
      sendFew(fd, Uint8Array.of(byte));
      if (byte % 16 === 0) await sleep(0);
    }
    assertBytes((await received)!.bytes, data, "the message");
    sendFew(fd, BYE);
    libc().shutdown(fd, C.SHUT_WR);
    assert.equal(await channel.recv(), null);
    await channel.close();
    libc().close(fd);
  }));

test("without a free frame a message has one receiver, however late JavaScript looks", async () => {
  await using pool = Pool.create({ bytes: POOL, reserve: 0 });
  await using listener = await listen("tcp://127.0.0.1:0", { pool });
  const { fd, channel } = await meet(listener);
  const first = channel.recv();
  await sleep(5); // it sleeps
  sendFew(fd, message(pattern(1, 1000)));
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20); // the doorbell's thread receives it
  sendFew(fd, message(pattern(2, 500)));
  const second = channel.recv();
  assertBytes((await first)!.bytes, pattern(1, 1000), "the first message");
  assertBytes((await second)!.bytes, pattern(2, 500), "the second message");
  sendFew(fd, BYE);
  libc().shutdown(fd, C.SHUT_WR);
  await channel.close();
  libc().close(fd);
});

test("a header before the data is taken out, and exactly its bytes are patched", () =>
  withVictim(async (listener, pool) => {
    for (const size of [5, 1000, 16 * KIB, 100_000, MIB]) {
      for (const head of [1, 64, 1024]) {
        const { fd, channel } = await meet(listener);
        const start = pool.stats().bytesPatched, into = pool.alloc(MIB + 4096);
        const own = pattern(8, head), data = pattern(9, size), flip = head <= size ? head : 0;
        const bytes = join(
          frame({ head, len: size }),
          own,
          data.subarray(flip),
          data.subarray(0, flip),
        );
        const view = into.bytes.subarray(4093, 4093 + size), received = channel.recv(view);
        for (let at = 0; at < bytes.length;) {
          const n = libc().send(fd, bytes.subarray(at), bytes.length - at, C.MSG_NOSIGNAL);
          if (n > 0) at += n;
          else await sleep(1);
        }
        assert.equal((await received)!.bytes, size);
        assertBytes(view, data, `${size} bytes behind a header of ${head}`);
        assert.equal(pool.stats().bytesPatched - start, flip);
        sendFew(fd, ABORT);
        assert.equal(await codeOf(channel.recv()), "PEER_ABORTED");
        libc().close(fd);
        into.free();
        await channel.close();
      }
    }
  }));

test("the last bytes of a message wake up who sleeps, however few they are", () =>
  withVictim(async (listener, pool) => {
    const { fd, channel } = await meet(listener);
    const size = MIB, head = 100, into = pool.alloc(size), data = pattern(4, size);
    const bytes = join(
      frame({ head, len: size }),
      pattern(5, head),
      data.subarray(head),
      data.subarray(0, head),
    );
    for (const ends of [[size - 300_000, size - 1], [size, size + 16 + 60], [size + 16 + 99]]) {
      const received = channel.recv(into);
      let at = 0;
      for (const end of [...ends, bytes.length]) {
        while (at < end) {
          const n = libc().send(fd, bytes.subarray(at, end), end - at, C.MSG_NOSIGNAL);
          if (n > 0) at += n;
          else await sleep(1);
        }
        await sleep(30); // it has gone to sleep
      }
      assert.equal(
        await Promise.race([received.then(() => "there"), sleep(20_000, "lost", { ref: false })]),
        "there",
      );
      assertBytes(into.bytes, data, `after ${ends}`);
    }
    sendFew(fd, ABORT);
    assert.equal(await codeOf(channel.recv()), "PEER_ABORTED");
    libc().close(fd);
    into.free();
    await channel.close();
  }));

test("sockets say at once what they have, and ask peers that are silent", () =>
  withVictim(async (listener, pool) => {
    const sockets = (): string[] =>
      readdirSync("/proc/self/fd").filter((fd) => {
        try {
          return /^socket:/.test(readlinkSync(`/proc/self/fd/${fd}`));
        } catch {
          return false;
        }
      });
    const before = new Set(sockets());
    const [a, b] = await Promise.all([connect(listener.address, { pool }), listener.accept()]);
    const made = sockets().filter((fd) => !before.has(fd)).map(Number);
    assert.equal(made.length, 2);
    const option = (fd: number, level: number, name: number): number => {
      const value = new Uint8Array(4), length = Uint8Array.of(4, 0, 0, 0);
      assert.equal(libc().getsockopt(fd, level, name, value, length), 0);
      return new DataView(value.buffer).getInt32(0, true);
    };
    for (const fd of made) {
      assert.equal(option(fd, C.IPPROTO_TCP, C.TCP_NODELAY), 1);
      assert.equal(option(fd, C.SOL_SOCKET, C.SO_KEEPALIVE), 1);
      const silence = option(fd, C.IPPROTO_TCP, C.TCP_KEEPIDLE) +
        option(fd, C.IPPROTO_TCP, C.TCP_KEEPINTVL) * option(fd, C.IPPROTO_TCP, C.TCP_KEEPCNT);
      assert.ok(silence <= 30, `${silence} s`);
    }
    await Promise.all([a.close(), b.close()]);
  }));

test("both sides close with messages of the other's on the way: neither waits for the other", () =>
  withVictim(async (listener, pool) => {
    const [a, b] = await Promise.all([connect(listener.address, { pool }), listener.accept()]);
    const buf = pool.alloc(MIB);
    const sends = [a, b].flatMap((channel) =>
      Array.from({ length: 16 }, () => codeOf(channel.send(buf, { guard: "cow" })))
    );
    await Promise.all([a.close(), b.close()]);
    for (const code of await Promise.all(sends)) assert.match(code, /^(resolved|CHANNEL_CLOSED)$/);
    buf.free();
  }));

test("names, IPv6 and addresses that cannot be", async () => {
  const pool = Pool.create({ bytes: MIB });
  const listener = await listen("tcp://localhost:0", { pool });
  await assertServes(listener);
  const port = Number(listener.address.split(":").at(-1));
  assert.equal(await codeOf(listen(`tcp://localhost:${port}`, { pool })), "ADDRESS_IN_USE");
  await listener.close();
  assert.equal(await codeOf(connect(`tcp://localhost:${port}`, { pool })), "CONNECTION_REFUSED");
  assert.equal(await codeOf(connect("tcp://no.such.host.invalid:1", { pool })), "ADDRESS_ERROR");
  for (const address of ["tcp://:1", "tcp://h", "tcp://127.0.0.1:0", "tcp://h:65536"]) {
    assert.equal(await codeOf(connect(address, { pool })), "INVALID_ARGUMENT");
  }
  const six = await listen("tcp://[::1]:0", { pool }).catch((error) => {
    if (/EADDRNOTAVAIL|EAFNOSUPPORT|errno 97/.test(String(error))) return undefined; // a host without IPv6
    throw error;
  });
  if (six) {
    await assertServes(six);
    await six.close();
  }
  await pool.close();
});

test("abort between two messages is told to the peer", () =>
  withVictim(async (listener, pool) => {
    for (const size of [100, MIB]) {
      const [a, b] = await Promise.all([connect(listener.address, { pool }), listener.accept()]);
      const sent = a.send(pattern(1, size)), message = await b.recv();
      assert.equal(message!.byteLength, size);
      message!.release();
      await sent;
      const waiting = codeOf(b.recv());
      a.abort();
      assert.equal(await waiting, "PEER_ABORTED");
      assert.equal(await codeOf(b.send(new Uint8Array(3))), "PEER_ABORTED");
      await b.close();
    }
  }));

// ---- what is sent

test("a header goes before the data, in the place of its first bytes", async () => {
  const server = listenSocket({ host: "127.0.0.1", port: 0 }, "here");
  const pool = Pool.create({ bytes: POOL }), core = coreOf(pool);
  const settings = { timeout: 20_000, signal: undefined, uids: [], raw: undefined };
  const address = parseAddress(`tcp://127.0.0.1:${portOf(server)}`) as HostAddress;
  const connecting = connectTcp(core, address, settings);
  const fd = await until(() => {
    const got = acceptSocket(server);
    return got >= 0 && got;
  });
  sendFew(fd, hello());
  const transport = await connecting, greeting = new Uint8Array(HELLO_SIZE);
  await until(() => readSome(fd, greeting));
  const buf = pool.alloc(MIB);
  for (const size of [1, 63, 64, 65, 5000, 100_000, MIB - 5000]) {
    for (const head of [1, 64, 1024]) {
      const view = buf.bytes.subarray(4093, 4093 + size), data = pattern(size, size);
      view.set(data);
      const own = pattern(head, head), flip = head <= size ? head : 0;
      const op = core.out(resolveData(core, view, "send").region!, view, "cow");
      assert.equal(helper().moat_op_header(op, own, head), 0);
      transport.send(op);
      view.fill(0xee); // private pages, so that the next one is scattered
      const expected = join(
        frame({ head, len: size }),
        own,
        data.subarray(flip),
        data.subarray(0, flip),
      );
      const got = new Uint8Array(expected.length);
      let have = 0, ended = false;
      await until(() => {
        const seen = transport.next();
        if (seen) {
          assert.deepEqual([seen.op, seen.status], [op, 0]);
          ended = true;
        }
        have += readSome(fd, got.subarray(have)) ?? 0;
        return ended && have === got.length;
      });
      assertBytes(got, expected, `${size} bytes with a header of ${head}`);
      core.ended(op);
    }
  }
  await transport.giveUp();
  for (const each of [fd, server]) libc().close(each);
  buf.free();
  const { freeFrames, reserveFrames } = pool.stats();
  assert.equal(freeFrames, reserveFrames);
  await pool.close();
});

// ---- peers that are slow, stop, or die

async function program(
  t: { after(fn: () => void): void },
  mode: string,
  ms: number,
): Promise<{ pool: Pool; channel: Channel; child: Child; end(): Promise<void> }> {
  const pool = Pool.create({ bytes: 32 * MIB });
  const listener = await listen("tcp://127.0.0.1:0", { pool });
  const child = new Child(t, "peer", [listener.address, mode, String(ms)], other());
  const channel = await listener.accept();
  await listener.close();
  const end = async (): Promise<void> => {
    await channel.close();
    const { freeFrames, reserveFrames } = pool.stats();
    assert.equal(freeFrames, reserveFrames);
    await pool.close();
  };
  return { pool, channel, child, end };
}

test("a peer that does not receive holds the sender back, and a stopped one is not lost", async (t) => {
  const { pool, channel, child, end } = await program(t, "silent", 60_000);
  const buf = pool.alloc(MIB);
  let done = 0;
  const sends = Array.from(
    { length: 64 },
    () =>
      codeOf(channel.send(buf, { guard: "cow" })).then((code) => {
        if (code === "resolved") done++;
        return code;
      }),
  );
  const before = await settled(() => done);
  process.kill(child.process.pid!, "SIGSTOP");
  await sleep(1000);
  assert.ok(before < 32, `${before} MiB went into the sockets' buffers`);
  assert.equal(done, before);
  assert.equal(channel.closed, false);
  process.kill(child.process.pid!, "SIGKILL");
  const codes = await Promise.all(sends);
  assert.deepEqual(codes.slice(done), codes.slice(done).map(() => "PEER_LOST"));
  assert.ok(done < 64);
  await end();
});

test("abort in the middle of a message: its pages come back, and the peer is not told a message", async (t) => {
  const { pool, channel, end } = await program(t, "silent", 10_000);
  const buf = pool.alloc(30 * MIB);
  buf.bytes.fill(1);
  const sends = [channel.send(buf, { guard: "cow" }), channel.send(buf, { guard: "cow" })].map(
    codeOf,
  );
  await sleep(50);
  channel.abort();
  buf.bytes.fill(2);
  assert.deepEqual(await Promise.all(sends), ["ABORTED", "ABORTED"]);
  await until(() => pool.stats().freeFrames === pool.stats().reserveFrames);
  await end();
});

test("a peer killed while a read waits for it: the read goes on", async (t) => {
  const { pool, channel, end } = await program(t, "hold", 300);
  const buf = pool.alloc(100_000);
  buf.bytes.fill(3);
  channel.send(new Uint8Array(1)).catch(() => {}); // from now on it has its 300 ms
  const received = codeOf(channel.recv(buf));
  assert.equal(buf.bytes[50_000], 3); // held here until the peer is gone
  assert.equal(pool.stats().waits.count, 1);
  assert.equal(pool.stats().timeouts.waited, 0);
  assert.equal(await received, "PEER_LOST");
  await end();
});

test("a peer killed while a write waits for it: the write goes on", async (t) => {
  const { pool, channel, end } = await program(t, "silent", 800);
  const buf = pool.alloc(30 * MIB);
  const sent = codeOf(channel.send(buf, { guard: "wait" }));
  buf.bytes[29 * MIB] = 7; // held here until the peer is gone
  assert.equal(pool.stats().waits.count, 1);
  assert.equal(pool.stats().timeouts.waited, 0);
  assert.equal(await sent, "PEER_LOST");
  await end();
});

test("a peer killed in the middle of sending: what came whole is whole, then PEER_LOST", async (t) => {
  const { channel, end } = await program(t, "dribble", 500);
  let whole = 0, code = "";
  try {
    for await (using message of channel) {
      assert.equal(message.byteLength, MIB);
      if (message.bytes.every((byte) => byte === 1)) whole++;
    }
  } catch (error) {
    code = (error as MoatError).code;
  }
  assert.equal(code, "PEER_LOST");
  assert.ok(whole > 0);
  await end();
});
