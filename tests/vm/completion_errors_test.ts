import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type CompletionQueue,
  MoatError,
  openDevice,
  type WorkCompletion,
} from "../../lib/verbs/mod.ts";
import { completions, EVERYTHING, loopback } from "../support/loopback.ts";

async function next(cq: CompletionQueue): Promise<WorkCompletion> {
  return (await cq.next(AbortSignal.timeout(20_000)))!;
}

/** What the next completion says, which has to be an error. */
async function failure(cq: CompletionQueue, status: string, hint: RegExp): Promise<MoatError> {
  const { error, status: seen } = await next(cq);
  assert.ok(error instanceof MoatError, `completed with ${seen}`);
  assert.equal(error.code, "COMPLETION_ERROR");
  assert.equal(error.status, status, error.message);
  assert.match(error.message, hint);
  return error;
}

test("no receive posted, with a finite limit of tries: the sender is told so", async () => {
  using loop = loopback({ rts: { rnrRetry: 1 } });
  const { a, b } = loop;
  a.qp.send(a.memory.segment(0, 10), { id: 5 });
  const error = await failure(a.sends, "RNR_RETRY_EXC_ERR", /the receiver had no receive posted/);
  assert.equal(error.opcode, "SEND");
  assert.equal(error.qpNum, a.qp.qpNum);
  assert.equal(error.peer, `QP ${b.qp.qpNum}`);
  assert.equal(error.flushed, false);
  assert.equal(typeof error.vendorError, "number");
  assert.match(
    error.message,
    new RegExp(`^SEND 5 on QP ${a.qp.qpNum} with QP ${b.qp.qpNum} completed`),
  );
  assert.equal(a.qp.firstError, error);
  assert.equal(a.qp.query().state, "ERR");
});

test("a receive that is too short: both sides are told, the receiver with its size", async () => {
  using loop = loopback();
  const { a, b } = loop;
  b.qp.postRecv({ id: 8, segments: b.memory.segment(0, 4096) });
  a.qp.send(a.memory.segment(0, 5000), { id: 9 });
  const got = await failure(
    b.recvs,
    "LOC_QP_OP_ERR", // a card says LOC_LEN_ERR
    /the receive buffer of 4096 B was smaller than the message/,
  );
  assert.equal(got.opcode, "RECV");
  const sent = await failure(a.sends, "REM_OP_ERR", /receive buffer may be too small/);
  assert.equal(sent.opcode, "SEND");
});

test("a wrong rkey is refused by the peer", async () => {
  using loop = loopback();
  const { a, b } = loop;
  const remote = { address: b.memory.addr, rkey: b.memory.rkey ^ 0x5500 };
  a.qp.rdmaWrite(a.memory.segment(0, 8), remote);
  const error = await failure(a.sends, "REM_ACCESS_ERR", /wrong rkey/);
  assert.equal(error.opcode, "RDMA_WRITE");
});

test("an address outside the peer's region is refused", async () => {
  using loop = loopback();
  const { a, b } = loop;
  const remote = { address: b.memory.addr + b.memory.length - 4, rkey: b.memory.rkey };
  a.qp.rdmaRead(a.memory.segment(0, 8), remote);
  const error = await failure(a.sends, "REM_ACCESS_ERR", /outside its region/);
  assert.equal(error.opcode, "RDMA_READ");
});

test("a region the peer may only read is not written", async () => {
  using loop = loopback({ memoryAccess: { localWrite: true, remoteRead: true } });
  const { a, b } = loop;
  a.memory.bytes.fill(7);
  a.qp.rdmaWrite(a.memory.segment(0, 8), b.memory.remote());
  await failure(a.sends, "REM_ACCESS_ERR", /without remoteRead, remoteWrite/);
  assert.ok(b.memory.bytes.every((byte) => byte === 0), "nothing was written");
});

test("a queue pair that does not allow RDMA refuses it", async () => {
  using loop = loopback({ access: {} });
  const { a, b } = loop;
  a.qp.rdmaRead(a.memory.segment(0, 8), b.memory.remote());
  await failure(a.sends, "REM_INV_REQ_ERR", /queue pair does not allow RDMA/);
});

test("an atomic at an odd address is refused when it is posted", () => {
  using loop = loopback();
  const { a, b } = loop;
  assert.throws(
    () => a.qp.fetchAndAdd(a.memory.segment(0, 8), b.memory.remote(3), 1n),
    (error) =>
      error instanceof MoatError && error.code === "VERB_FAILED" &&
      /multiple of 8/.test(error.message),
  );
});

test("a wrong local key fails here", async () => {
  using loop = loopback();
  const { a, b } = loop;
  b.qp.postRecv({ segments: b.memory.segment() });
  a.qp.send({ ...a.memory.segment(0, 8), lkey: a.memory.lkey ^ 0x5500 });
  await failure(a.sends, "LOC_QP_OP_ERR", /not inside its memory region/);
});

test("a receive into memory without localWrite fails at both sides", async () => {
  using loop = loopback({ memoryAccess: {} });
  const { a, b } = loop;
  b.qp.postRecv({ id: 1, segments: b.memory.segment() });
  a.qp.send(a.memory.segment(0, 8));
  const got = await failure(b.recvs, "LOC_QP_OP_ERR", /not inside a memory region with localWrite/);
  assert.equal(got.opcode, "RECV");
  await failure(a.sends, "REM_OP_ERR", /could not complete the request/);
});

test("a peer whose queue pair is gone does not acknowledge", async () => {
  using loop = loopback({ rts: { timeout: 8, retryCount: 2 } });
  const { a, b } = loop;
  b.qp.close();
  a.qp.send(a.memory.segment(0, 8));
  await failure(a.sends, "RETRY_EXC_ERR", /did not acknowledge in time/);
});

test("what was posted behind a request that failed is flushed with that one as the cause", async () => {
  using loop = loopback({ rts: { rnrRetry: 1 } });
  const { a } = loop;
  a.qp.postRecv({ id: 100, segments: a.memory.segment() });
  a.qp.postSend([1, 2, 3].map((id) => ({ id, segments: a.memory.segment(0, 8) })));
  const first = await failure(a.sends, "RNR_RETRY_EXC_ERR", /SEND 1 /);
  assert.equal(first.cause, undefined);
  for (const id of [2, 3]) {
    const error = await failure(a.sends, "WR_FLUSH_ERR", /an earlier request failed/);
    assert.match(error.message, new RegExp(`^SEND ${id} `));
    assert.equal(error.flushed, true);
    assert.equal(error.cause, first);
  }
  const received = await failure(a.recvs, "WR_FLUSH_ERR", /RECV 100/);
  assert.equal(received.cause, first);
});

test("what is posted when the queue pair is taken to error is flushed without a cause", async () => {
  using loop = loopback();
  const { b } = loop;
  b.qp.postRecv([{ id: 1, segments: b.memory.segment() }, { id: 2 }]);
  b.qp.error();
  for (const id of [1, 2]) {
    const error = await failure(b.recvs, "WR_FLUSH_ERR", /went to the error state/);
    assert.equal(error.flushed, true);
    assert.equal(error.cause, undefined);
    assert.match(error.message, new RegExp(`^RECV ${id} `));
  }
});

test("after a failure a queue pair is reset and connected again", async () => {
  using loop = loopback({ rts: { rnrRetry: 1 } });
  const { a, b, context } = loop, gid = context.preferredGid()!;
  a.qp.send(a.memory.segment(0, 8));
  await failure(a.sends, "RNR_RETRY_EXC_ERR", /no receive/);
  for (const [{ qp }, peer] of [[a, b], [b, a]] as const) {
    qp.reset();
    qp.init({ access: EVERYTHING });
    qp.rtr({ destQpNum: peer.qp.qpNum, remoteGid: gid, sgidIndex: gid.index });
    qp.rts();
  }
  assert.equal(a.qp.firstError, undefined);
  b.qp.postRecv({ id: 4 });
  a.qp.send(a.memory.segment(0, 0), { id: 3 });
  assert.equal((await completions(a.sends, 1))[0]!.wrId, 3);
});

test("requests of the same number on one queue of completions are told apart where that can be", async () => {
  using context = openDevice();
  const cq = context.createCq({ channel: context.createCompletionChannel() });
  const pd = context.allocPd(), memory = pd.allocate(4096), gid = context.preferredGid()!;
  const a = pd.createQp({ sendCq: cq }), b = pd.createQp({ sendCq: cq });
  for (const [qp, peer] of [[a, b], [b, a]] as const) {
    qp.init();
    qp.rtr({ destQpNum: peer.qpNum, remoteGid: gid, sgidIndex: gid.index, minRnrTimer: 1 });
    qp.rts({ rnrRetry: 1, timeout: 8 });
  }
  a.postRecv({ id: 1, segments: memory.segment() });
  a.send(memory.segment(0, 8), { id: 1 });
  const error = await failure(cq, "RNR_RETRY_EXC_ERR", /no receive posted/);
  assert.equal(error.opcode, "SEND");
});
