import assert from "node:assert/strict";
import { before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type Channel, connect, listen, type Listener, MoatError, Pool } from "../mod.ts";
import { helper, URING_QUERY } from "../ffi/helper.ts";
import { C, libc } from "../ffi/libc.ts";
import { type HostAddress, parseAddress } from "../lib/address.ts";
import { resolveData } from "../lib/memory/resolve.ts";
import { coreOf } from "../lib/memory/pool.ts";
import { ringOf } from "../lib/ring.ts";
import { acceptSocket } from "../lib/acceptor.ts";
import { connectTcp } from "../lib/tcp/connect.ts";
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
import { RING_FROM, type TcpTransport } from "../lib/tcp/transport.ts";
import { assertBytes, fill, pattern } from "./support/bytes.ts";
import { Child, other } from "./support/child.ts";
import { codeOf } from "./support/errors.ts";
import { leftovers } from "./support/leftovers.ts";

// Both pools have their rings before anybody connects: on this host they are used because they are there.

const SO_SNDBUF = 7;
const KIB = 1 << 10, MIB = 1 << 20, PAGE = 4096;
RING_FROM.send = 64 * KIB; // whatever this machine is calibrated to
const skip = helper().moat_uring_probe() < 0 ? "io_uring cannot be had here" : false;

async function until<T>(look: () => T | undefined | false, what: string): Promise<T> {
  for (let i = 0; i < 20_000; i++) {
    const found = look();
    if (found !== undefined && found !== false) return found;
    await sleep(1);
  }
  throw new Error(`not in 20 s: ${what}`);
}

const underWay = (pool: Pool): number =>
  helper().moat_uring_query(coreOf(pool).index, URING_QUERY.underWay);

async function assertClean(pool: Pool): Promise<void> {
  await until(() => underWay(pool) === 0, "the ring is empty");
  await until(() => {
    const { bytes, bytesAvailable, freeFrames, reserveFrames } = pool.stats();
    return bytes === bytesAvailable && freeFrames === reserveFrames;
  }, "the pool has all it had");
}
async function assertAccounted(pool: Pool): Promise<void> {
  await until(() => {
    const { sends, zeroCopySends, copiedSends } = pool.stats().ring;
    return sends === zeroCopySends + copiedSends;
  }, "every notification came");
}

let pool: Pool, far: Pool, listener: Listener, start: unknown;
before(async () => {
  if (skip) return;
  // Threads and sockets that the first connection makes are no leftovers.
  const first = Pool.create({ bytes: MIB });
  ringOf(coreOf(first));
  await (await listen("tcp://127.0.0.1:0", { pool: first })).close();
  await first.close();
  start = leftovers();
  pool = Pool.create({ bytes: 40 * MIB, reserve: 2 * MIB });
  far = Pool.create({ bytes: 40 * MIB });
  for (const each of [pool, far]) assert.equal(ringOf(coreOf(each)).refused, undefined);
  listener = await listen("tcp://127.0.0.1:0", { pool });
});
/** What one side does to the other, and back. */
async function pair(body: (a: Channel, b: Channel) => Promise<void>): Promise<void> {
  const [a, b] = await Promise.all([connect(listener.address, { pool: far }), listener.accept()]);
  assert.deepEqual([a.transport, b.transport], ["tcp (io_uring)", "tcp (io_uring)"]);
  await body(a, b);
  await Promise.all([a.close(), b.close()]);
}

const SIZES = [MIB, MIB + 1, 3 * MIB - 1, 16 * MIB - 4099];
for (const size of SIZES) {
  test(`${size} bytes at odd offsets, both ways, with and without a place`, { skip }, async () => {
    const before = [pool, far].map((each) => each.stats().ring);
    await pair(async (a, b) => {
      for (const [from, to, source, target] of [[a, b, far, pool], [b, a, pool, far]] as const) {
        for (const head of [0, 100]) {
          const buf = source.alloc(size + 4093), into = target.alloc(size + 17);
          const data = pattern(size + head, size), own = pattern(head, head);
          const view = buf.bytes.subarray(4093, 4093 + size);
          view.set(data);
          const place = into.bytes.subarray(13, 13 + size);
          const received = to.recv(place), sent = from.send(view, { guard: "cow", header: own });
          const { bytes, header } = (await received)!;
          assert.deepEqual([bytes, [...header]], [size, [...own]]);
          assertBytes(place, data, "into its place");
          await sent;
          into.free();
          if (size < 8 * MIB) {
            const again = from.send(view, { guard: "wait", header: own });
            using message = await to.recv();
            assertBytes(message!.bytes, data, "into a place found for it");
            await again;
          }
          buf.free();
        }
      }
    });
    for (const [i, each] of [pool, far].entries()) {
      await assertAccounted(each);
      const { sends, receives } = each.stats().ring;
      assert.ok(receives > before[i]!.receives, "received by the ring");
      assert.ok(sends > before[i]!.sends, "sent by the ring");
      await assertClean(each);
    }
  });
}

test("a place of scattered frames takes more than one request", { skip }, async () => {
  await pair(async (a, b) => {
    const pages = 512, into = pool.alloc(pages * PAGE), rest = pool.alloc(pages * PAGE);
    for (let i = 0; i < pages; i += 2) {
      const end = (i + 1) * PAGE;
      pool.swap(into.bytes.subarray(i * PAGE, end), rest.bytes.subarray(i * PAGE, end));
    }
    const data = pattern(7, pages * PAGE - 5), before = pool.stats().ring.receives;
    const received = b.recv(into.bytes.subarray(3, 3 + data.length)), sent = a.send(data);
    await received;
    assertBytes(into.bytes.subarray(3, 3 + data.length), data, "scattered");
    await sent;
    assert.ok(pool.stats().ring.receives - before > 1);
    for (const each of [into, rest]) each.free();
  });
});

// ---- with a bare socket at the other end

/** The pool's end of a connection to a bare socket, and that. */
async function meet(): Promise<{ fd: number; channel: Channel }> {
  const [, host, port] = /^tcp:\/\/([^:]*):(\d+)$/.exec(listener.address)!;
  const to = { host: host!, port: Number(port) }, fd = startConnect(to, listener.address);
  await until(() => connected(fd, to, listener.address), "connected");
  sendFew(fd, encodeHello(0));
  const channel = await listener.accept(), bytes = new Uint8Array(HELLO_SIZE);
  await until(() => readSome(fd, bytes), "the greeting");
  return { fd, channel };
}
function frame(kind: number, flag: number, len: number): Uint8Array {
  const bytes = new Uint8Array(16), view = new DataView(bytes.buffer);
  view.setUint8(0, kind);
  view.setUint8(1, flag);
  view.setUint32(8, len, true);
  return bytes;
}
async function sendAll(fd: number, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    const rest = bytes.subarray(at), n = libc().send(fd, rest, rest.length, C.MSG_NOSIGNAL);
    if (n > 0) at += n;
    else await sleep(1);
  }
}

const SIZE = 2 * MIB, HALF = 700_001;

/** A message of 2 MiB of which the first part is there, and for the rest of which a request waits in the ring. */
async function halfway(
  place: boolean,
  body: (
    on: { fd: number; channel: Channel; data: Uint8Array; view: Uint8Array },
    received: Promise<unknown>,
  ) => Promise<void>,
  signal?: AbortSignal,
): Promise<void> {
  const { fd, channel } = await meet(), into = pool.alloc(SIZE + 1), data = pattern(3, SIZE);
  const view = into.bytes.subarray(1), options = signal ? { signal } : {};
  const received = place ? channel.recv(view, options) : channel.recv(options);
  received.catch(() => {});
  await sendAll(fd, frame(1, 0, SIZE));
  await sendAll(fd, data.subarray(0, HALF));
  await until(() => underWay(pool) === 1, "a request in the ring");
  await body({ fd, channel, data, view }, received);
  into.free();
  await assertClean(pool);
}

for (const place of [true, false]) {
  const into = place ? "in its place" : "in a place found for it";
  for (const how of ["ends", "is reset"]) {
    test(
      `a stream that ${how} in the middle of a message ${into}: PEER_LOST`,
      { skip },
      () =>
        halfway(place, async ({ fd, channel }, received) => {
          const next = codeOf(channel.recv());
          if (how === "is reset") resetOnClose(fd);
          libc().close(fd);
          assert.deepEqual([await codeOf(received), await next], ["PEER_LOST", "PEER_LOST"]);
          await channel.close();
        }),
    );
  }

  test(
    `close in the middle of a message ${into}`,
    { skip },
    () =>
      halfway(place, async ({ fd, channel, data }, received) => {
        const closed = channel.close();
        assert.equal(await codeOf(received), "CHANNEL_CLOSED");
        // What still comes is for nobody, up to the goodbye.
        await sendAll(fd, data.subarray(HALF));
        await sendAll(fd, frame(2, 1, 0));
        libc().shutdown(fd, C.SHUT_WR);
        await closed;
        libc().close(fd);
      }),
  );

  test(
    `abort in the middle of a message ${into}`,
    { skip },
    () =>
      halfway(place, async ({ fd, channel, view }, received) => {
        channel.abort();
        assert.equal(await codeOf(received), "ABORTED");
        if (place) {
          await until(() => underWay(pool) === 0, "taken back");
          view.fill(9); // the place is the program's again
          await sendAll(fd, new Uint8Array(1000));
          await sleep(5);
          assert.ok(view.every((byte) => byte === 9));
        }
        libc().close(fd);
      }),
  );

  test(`a message ${into} that has begun is not lost by its signal`, { skip }, async () => {
    const controller = new AbortController();
    await halfway(place, async ({ fd, channel, data, view }, received) => {
      controller.abort();
      await sleep(5);
      await sendAll(fd, data.subarray(HALF));
      if (place) {
        await received;
        assertBytes(view, data, "the message");
      } else {
        await assert.rejects(received, { name: "AbortError" });
        using message = await channel.recv();
        assertBytes(message!.bytes, data, "the message, for the next one who asks");
      }
      const closed = channel.close();
      await sendAll(fd, frame(2, 1, 0));
      libc().shutdown(fd, C.SHUT_WR);
      await closed;
      libc().close(fd);
    }, controller.signal);
  });
}

// ---- the other end

/** A transport of the pool `far`, and the bare socket at its other end. */
async function reach(): Promise<{ transport: TcpTransport; fd: number }> {
  const server = listenSocket({ host: "127.0.0.1", port: 0 }, "here");
  const address = parseAddress(`tcp://127.0.0.1:${portOf(server)}`) as HostAddress;
  const settings = { timeout: 20_000, signal: undefined, uids: [], raw: undefined };
  const connecting = connectTcp(coreOf(far), address, settings);
  const fd = await until(() => {
    const got = acceptSocket(server);
    return got >= 0 && got;
  }, "accepted");
  libc().close(server);
  sendFew(fd, encodeHello(0));
  const transport = await connecting, greeting = new Uint8Array(HELLO_SIZE);
  await until(() => readSome(fd, greeting), "the greeting");
  return { transport, fd };
}

test("the guard of a send ends with the notification, not with the result", { skip }, async () => {
  const { transport, fd } = await reach(), core = coreOf(far);
  // More than the other end's buffer takes, and less than this one's: the kernel here takes it all, and keeps the
  // pages in its queue.
  const room = new Uint8Array(Uint32Array.of(400_000).buffer);
  assert.equal(libc().setsockopt(transport.fd, C.SOL_SOCKET, SO_SNDBUF, room, 4), 0);
  const size = 160 * KIB, buf = far.alloc(size), before = far.stats();
  fill(buf.bytes, 1);
  const data = buf.bytes.slice(),
    op = core.out(resolveData(core, buf, "send").region!, data, "cow");
  let ended = false;
  const collect = (): void => {
    for (let seen; (seen = transport.next());) {
      assert.deepEqual([seen.op, seen.status], [op, 0]);
      ended = true;
    }
  };
  transport.send(op);
  await until(() => {
    collect();
    return far.stats().ring.sends === before.ring.sends + 1;
  }, "the result");
  await sleep(20);
  collect();
  const { sends, zeroCopySends, copiedSends } = far.stats().ring;
  assert.equal(sends, zeroCopySends + copiedSends + 1, "the notification is not there");
  assert.equal(ended, false);
  buf.bytes.fill(0xee); // goes to private pages, because the old ones are still being sent
  assert.ok(far.stats().privatePages > before.privatePages);
  const got = new Uint8Array(16 + size);
  let have = 0;
  await until(() => {
    collect();
    have += readSome(fd, got.subarray(have)) ?? 0;
    return have === got.length && ended;
  }, "everything");
  assertBytes(got.subarray(16), data, "what was sent");
  assert.equal(helper().moat_op_free(op), 0);
  await assertAccounted(far);
  await transport.giveUp();
  libc().close(fd);
  buf.free();
});

// ---- another process

test(
  "a read waits in the handler for what the ring receives; then the peer is killed",
  { skip },
  async (t) => {
    const child = new Child(t, "peer", [listener.address, "dribble", "700"], other());
    const channel = await listener.accept(), before = pool.stats();
    let whole = 0, code = "";
    try {
      for (;;) {
        using buf = pool.alloc(MIB + 1);
        const view = buf.bytes.subarray(1);
        view.fill(2);
        const received = channel.recv(view);
        received.catch(() => {});
        const last = view[MIB - 1]; // nothing of JavaScript runs until it is there
        await received;
        assert.equal(last, 1);
        assert.ok(view.every((byte) => byte === 1));
        whole++;
      }
    } catch (error) {
      if (!(error instanceof MoatError)) throw error;
      code = error.code;
    }
    assert.equal(code, "PEER_LOST");
    const { ring, waits, timeouts } = pool.stats();
    assert.ok(whole > 0);
    assert.ok(ring.receives > before.ring.receives);
    assert.ok(waits.count > before.waits.count);
    assert.equal(timeouts.waited, before.timeouts.waited);
    await channel.close();
    await child.exit;
  },
);

// A test, because not every runner tells of a hook that fails.
test("nothing is left of all that", { skip }, async () => {
  await listener.close();
  for (const each of [pool, far]) {
    await assertClean(each);
    await assertAccounted(each);
    await each.close();
  }
  await until(
    () => JSON.stringify(leftovers()) === JSON.stringify(start),
    "descriptors, operations",
  );
});
