import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import {
  CmId,
  type CompletionQueue,
  type ConnectRequest,
  EventChannel,
  type MemoryRegion,
  MoatError,
  type ProtectionDomain,
  type QueuePair,
} from "../../lib/verbs/mod.ts";
import { completions } from "../support/loopback.ts";

const HOST = "10.9.0.1";
const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
const decode = (bytes: Uint8Array): string => new TextDecoder().decode(bytes).replace(/\0+$/, "");

interface Side {
  pd: ProtectionDomain;
  cq: CompletionQueue;
  qp: QueuePair;
  memory: MemoryRegion;
}

function prepare(id: CmId): Side {
  const { context } = id, pd = context.allocPd();
  const cq = context.createCq({ channel: context.createCompletionChannel() });
  return { pd, cq, qp: id.createQp(pd, { sendCq: cq }), memory: pd.allocate(4096) };
}

async function resolved(port: number): Promise<CmId> {
  const id = CmId.create();
  await id.resolveAddr(HOST, port, { timeout: 20_000 });
  await id.resolveRoute({ timeout: 20_000 });
  return id;
}

async function listening(): Promise<CmId> {
  const listener = CmId.create();
  await listener.listen(HOST, 0);
  return listener;
}

function failure(code: string, ...texts: RegExp[]): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof MoatError, String(error));
    assert.equal(error.code, code, error.message);
    for (const text of texts) assert.match(error.message, text);
    return true;
  };
}

/** Connects and accepts, and hands over both ends. */
async function connected(
  run: (a: Side & { id: CmId }, b: Side & { id: CmId }) => Promise<void>,
): Promise<void> {
  using listener = await listening();
  using id = await resolved(listener.localPort);
  const a = prepare(id), connecting = id.connect();
  using other = (await listener.nextRequest())!.id;
  const b = prepare(other);
  await other.accept();
  await connecting;
  try {
    await run({ ...a, id }, { ...b, id: other });
  } finally {
    for (const one of [a, b]) {
      one.pd.close();
      one.cq.channel!.close();
    }
  }
}

test("resolving finds the device and the own address", async () => {
  using id = CmId.create();
  await id.resolveAddr(HOST, 7000);
  assert.equal(id.context.deviceName, "rxe0");
  assert.equal(id.port, 1);
  assert.equal(id.localAddress, HOST);
  assert.equal(id.peerAddress, HOST);
  assert.equal(id.peerPort, 7000);
});

test("all ids of a device have the same context", async () => {
  using one = await resolved(7000);
  using other = await resolved(7001);
  assert.equal(one.context, other.context);
});

test("a connection carries private data both ways, and then messages", async () => {
  using listener = await listening();
  using id = await resolved(listener.localPort);
  const a = prepare(id);
  const connecting = id.connect({
    privateData: encode("who is there"),
    responderResources: 3,
    initiatorDepth: 2,
  });
  const request = (await listener.nextRequest(AbortSignal.timeout(20_000))) as ConnectRequest;
  using other = request.id;
  assert.equal(decode(request.privateData), "who is there");
  assert.deepEqual([request.responderResources, request.initiatorDepth], [2, 3]);
  assert.equal(request.qpNum, a.qp.qpNum);
  assert.equal(other.peerAddress, HOST);
  assert.equal(other.peerPort, id.localPort);
  const b = prepare(other);
  b.qp.postRecv({ id: 1, segments: b.memory.segment() });
  await other.accept({ privateData: encode("nobody") });
  assert.equal(decode(await connecting), "nobody");
  assert.equal(decode(id.privateData), "nobody");
  assert.equal(a.qp.query().state, "RTS");
  a.memory.bytes.set(encode("hello"));
  a.qp.send(a.memory.segment(0, 5), { id: 2 });
  await completions(a.cq, 1);
  const [got] = await completions(b.cq, 1);
  assert.equal(decode(b.memory.bytes.slice(0, got!.byteLength)), "hello");
  a.pd.close();
  b.pd.close();
});

test("disconnecting reaches both sides and flushes what is posted", async () => {
  await connected(async (a, b) => {
    b.qp.postRecv({ id: 6, segments: b.memory.segment() });
    a.id.disconnect();
    await Promise.all([a.id.disconnected, b.id.disconnected]);
    assert.equal(b.qp.query().state, "ERR");
    const wc = await b.cq.next(AbortSignal.timeout(20_000));
    assert.deepEqual([wc!.wrId, wc!.status], [6, "WR_FLUSH_ERR"]);
  });
});

test("closing an id disconnects the other side", async () => {
  await connected(async (a, b) => {
    a.id.close();
    await b.id.untilDisconnected({ timeout: 20_000 });
    assert.equal(a.qp.closed, true);
  });
});

test("a rejection brings its reason and its private data", async () => {
  using listener = await listening();
  using id = await resolved(listener.localPort);
  const a = prepare(id), connecting = id.connect();
  const { id: other } = (await listener.nextRequest())!;
  other.reject(encode("no room"));
  other.close();
  await assert.rejects(
    connecting,
    failure("REJECTED", /reason 28/, /said no/, new RegExp(`${HOST}:${listener.localPort}`)),
  );
  assert.equal(decode(id.privateData), "no room");
  a.pd.close();
});

test("closing a request that was not answered rejects it", async () => {
  using listener = await listening();
  using id = await resolved(listener.localPort);
  const a = prepare(id), connecting = id.connect();
  (await listener.nextRequest())!.id.close();
  await assert.rejects(connecting, failure("REJECTED"));
  a.pd.close();
});

test("closing a listener rejects the requests nobody took", async () => {
  const listener = await listening();
  using id = await resolved(listener.localPort);
  const a = prepare(id), connecting = id.connect();
  const asked = new Promise<void>((resolve) => listener.onEvent = (): void => resolve());
  await asked;
  listener.close();
  await assert.rejects(connecting, (error) => error instanceof MoatError);
  a.pd.close();
});

test("a port where nobody listens refuses", async () => {
  using id = await resolved(7999);
  const { pd } = prepare(id);
  await assert.rejects(id.connect(), failure("CONNECTION_REFUSED", /nobody listens/, /REJECTED/));
  pd.close();
});

test("connecting has a time limit of its own", async () => {
  using listener = await listening();
  using id = await resolved(listener.localPort);
  const { pd } = prepare(id);
  await assert.rejects(id.connect({ timeout: 300 }), failure("TIMED_OUT", /300 ms/));
  pd.close();
});

test("connecting ends with its signal", async () => {
  using listener = await listening();
  using id = await resolved(listener.localPort);
  const { pd } = prepare(id), abort = new AbortController();
  const connecting = id.connect({ signal: abort.signal });
  abort.abort(new Error("changed my mind"));
  await assert.rejects(connecting, /changed my mind/);
  pd.close();
});

test("closing an id ends what it was waiting for", async () => {
  using listener = await listening();
  const id = await resolved(listener.localPort), { pd } = prepare(id);
  const connecting = id.connect();
  id.close();
  await assert.rejects(connecting, failure("RESOURCE_CLOSED", /connecting to/));
  pd.close();
});

test("an address nobody has is not resolved, in time", async () => {
  using id = CmId.create();
  await assert.rejects(
    id.resolveAddr("10.9.0.250", 1, { timeout: 400 }),
    failure("TIMED_OUT", /10\.9\.0\.250/),
  );
});

test("an address without a route is an address error", async () => {
  using id = CmId.create();
  await assert.rejects(
    id.resolveAddr("203.0.113.9", 1),
    failure("ADDRESS_ERROR", /203\.0\.113\.9/),
  );
});

test("a name nobody knows is an address error", async () => {
  using id = CmId.create();
  await assert.rejects(
    id.resolveAddr("no-such-host.invalid", 1),
    failure("ADDRESS_ERROR", /no-such-host/),
  );
});

test("an id is resolved once", async () => {
  using id = CmId.create();
  await id.resolveAddr(HOST, 1);
  await assert.rejects(id.resolveAddr(HOST, 2), failure("VERB_FAILED", /resolved once/));
});

test("two cannot listen at one port", async () => {
  using listener = await listening();
  using other = CmId.create();
  await assert.rejects(
    other.listen(HOST, listener.localPort),
    failure("ADDRESS_IN_USE", new RegExp(String(listener.localPort))),
  );
});

test("listening at an address of another host is refused", async () => {
  using id = CmId.create();
  await assert.rejects(id.listen("203.0.113.9", 7777), failure("ADDRESS_ERROR", /rdma_bind_addr/));
});

test("connecting needs a queue pair", async () => {
  using id = await resolved(7000);
  await assert.rejects(id.connect(), failure("INVALID_ARGUMENT", /createQp/));
});

test("too much private data is refused", async () => {
  using listener = await listening();
  using id = await resolved(listener.localPort);
  const { pd } = prepare(id);
  await assert.rejects(
    id.connect({ privateData: new Uint8Array(200) }),
    failure("VERB_FAILED", /rdma_connect/),
  );
  await assert.rejects(
    id.connect({ privateData: new Uint8Array(300) }),
    failure("INVALID_ARGUMENT", /private data/),
  );
  pd.close();
});

test("options are taken", async () => {
  using id = CmId.create();
  id.setReuseAddress();
  id.setTypeOfService(16);
  await id.resolveAddr(HOST, 7000);
  id.setAckTimeout(10);
  await id.resolveRoute();
  const { pd, qp } = prepare(id);
  assert.equal(qp.closed, false);
  pd.close();
});

test("an id can be moved to another channel", async () => {
  using listener = await listening();
  using channel = new EventChannel();
  using id = await resolved(listener.localPort);
  id.migrate(channel);
  const a = prepare(id), connecting = id.connect();
  using other = (await listener.nextRequest())!.id;
  const b = prepare(other);
  await other.accept();
  await connecting;
  assert.equal(id.channel, channel);
  a.pd.close();
  b.pd.close();
});

test("the shared channel is closed with its last id", async () => {
  const one = CmId.create(), other = CmId.create(), { channel } = one;
  assert.equal(other.channel, channel);
  one.close();
  assert.equal(channel.closed, false);
  other.close();
  assert.equal(channel.closed, true);
  using again = CmId.create();
  await again.resolveAddr(HOST, 7000);
  assert.notEqual(again.channel, channel);
});

test("closing a channel closes its ids and their queue pairs", async () => {
  const channel = new EventChannel(), id = CmId.create(channel);
  await id.resolveAddr(HOST, 7000);
  const { qp, pd } = prepare(id);
  channel.close();
  assert.deepEqual([id.closed, qp.closed, pd.closed], [true, true, false]);
  pd.close();
});

test("connections made and closed leave no descriptor behind", async () => {
  const count = (): number => readdirSync("/proc/self/fd").length;
  await connected(() => Promise.resolve());
  const before = count();
  for (let i = 0; i < 5; i++) await connected(() => Promise.resolve());
  assert.equal(count(), before);
});

test("a request of rping is rejected, and rping ends", async () => {
  using listener = await listening();
  const serving = (async (): Promise<string> => {
    const { id, privateData } = (await listener.nextRequest(AbortSignal.timeout(30_000)))!;
    id.reject(encode("not today"));
    id.close();
    return `${privateData.length}`;
  })();
  const child = spawn("rping", ["-c", "-a", HOST, "-p", `${listener.localPort}`, "-C", "1"], {
    stdio: "ignore",
  });
  const ended = new Promise((resolve) => child.on("exit", resolve));
  assert.match(await serving, /^\d+$/);
  await ended;
});
