/**
 * What verbs cost on the device that is there: `deno bench -A bench/verbs_bench.ts`, `bun bench/verbs_bench.ts`; without a
 * device, `deno task vm -- deno bench -A bench/verbs_bench.ts`. Two queue pairs of this process are connected with each
 * other. MOAT_RDMA_DEVICE names the device; the first by default.
 *
 * @module
 */
import process from "node:process";
import {
  type CompletionQueue,
  devices,
  MoatError,
  openDevice,
  type QueuePair,
} from "../lib/verbs/mod.ts";
import { group, leaveOut, run } from "./support/bench.ts";

/** The device, or why there is none. */
function wanted(): string | Error {
  try {
    const name = process.env["MOAT_RDMA_DEVICE"] ?? devices()[0]?.name;
    return name ?? new Error("this host has no RDMA device; deno task vm -- COMMAND has one");
  } catch (error) {
    if (error instanceof MoatError) return error;
    throw error;
  }
}

function take(cq: CompletionQueue, count: number): void {
  while (count > 0) {
    const n = cq.poll();
    for (let i = 0; i < n; i++) {
      const error = cq.error(i);
      if (error) throw error;
    }
    count -= n;
  }
}

function verbs(name: string): void {
  const BATCH = 32, BYTES = 8;
  const device = openDevice(name), pd = device.allocPd();
  const [sends, receives] = [device.createCq({ entries: 256 }), device.createCq({ entries: 256 })];
  const everything = { localWrite: true, remoteWrite: true, remoteRead: true };
  const memory = pd.allocate(1 << 20, everything);
  const make = (): QueuePair =>
    pd.createQp({ sendCq: sends, recvCq: receives, maxSendWr: 64, maxRecvWr: 64 });
  const a = make(), b = make(), gid = device.preferredGid()!;
  for (const [qp, peer] of [[a, b], [b, a]] as const) {
    qp.init({ access: { remoteWrite: true, remoteRead: true } });
    qp.rtr({ destQpNum: peer.qpNum, remoteGid: gid, sgidIndex: gid.index });
    qp.rts();
  }

  const calls = group(`a call, ${name}`);
  calls.bench("ibv_poll_cq, nothing there", () => void sends.poll());
  calls.bench("ibv_req_notify_cq", () => sends.arm());
  calls.bench("ibv_query_qp", () => void a.query());
  calls.bench("ibv_reg_mr and ibv_dereg_mr, 4 KiB", () => pd.allocate(4096, everything).close());

  const from = memory.segment(0, BYTES), to = memory.remote(4096);
  const one = group(`posted and polled until done, ${BYTES} bytes, ${name}`);
  one.bench("RDMA WRITE", () => {
    a.rdmaWrite(from, to);
    take(sends, 1);
  });
  const write = { opcode: "RDMA_WRITE", segments: from, remote: to } as const;
  const prepared = a.prepareSend(write);
  one.bench("RDMA WRITE, prepared", () => {
    prepared.post();
    take(sends, 1);
  });
  one.bench("RDMA READ", () => {
    a.rdmaRead(from, to);
    take(sends, 1);
  });
  one.bench("SEND and its receive", () => {
    b.postRecv({ id: 1, segments: memory.segment(8192, BYTES) });
    a.send(from);
    take(receives, 1);
    take(sends, 1);
  });
  const many = a.prepareSend(Array.from({ length: BATCH }, () => write));
  one.bench(`${BATCH} RDMA WRITEs, prepared, in one post`, () => {
    many.post();
    take(sends, BATCH);
  });
}

const name = wanted();
if (typeof name === "string") verbs(name);
else leaveOut("verbs", name.message);

await run();
