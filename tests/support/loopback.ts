import {
  type AccessFlags,
  type CompletionQueue,
  type Context,
  type MemoryRegion,
  openDevice,
  type ProtectionDomain,
  type QueuePair,
  type QueuePairOptions,
  type RtsAttributes,
  type WorkCompletion,
} from "../../lib/verbs/mod.ts";

/** One end of a connection: a queue pair with a queue for what it sends and one for what it receives. */
export interface End {
  qp: QueuePair;
  sends: CompletionQueue;
  recvs: CompletionQueue;
  memory: MemoryRegion;
}

/** Two connected queue pairs of this process. */
export interface Loopback extends Disposable {
  context: Context;
  pd: ProtectionDomain;
  a: End;
  b: End;
}

export const EVERYTHING: AccessFlags = {
  localWrite: true,
  remoteRead: true,
  remoteWrite: true,
  remoteAtomic: true,
};

/** Settings of {@linkcode loopback}. */
export interface LoopbackOptions {
  bytes?: number;
  queuePair?: Partial<QueuePairOptions>;
  /** What `b` lets `a` do. */
  access?: AccessFlags;
  /** What the memory of `b` may be used for. */
  memoryAccess?: AccessFlags;
  rts?: RtsAttributes;
}

/** Connects two queue pairs by hand. */
export function loopback(options: LoopbackOptions = {}): Loopback {
  const { bytes = 1 << 16, queuePair = {}, access = EVERYTHING, rts = {} } = options;
  const context = openDevice("rxe0"), pd = context.allocPd();
  const channel = context.createCompletionChannel();
  const end = (memoryAccess: AccessFlags): End => {
    const sends = context.createCq({ channel }), recvs = context.createCq({ channel });
    const qp = pd.createQp({ sendCq: sends, recvCq: recvs, ...queuePair });
    return { qp, sends, recvs, memory: pd.allocate(bytes, memoryAccess) };
  };
  const a = end(EVERYTHING), b = end(options.memoryAccess ?? EVERYTHING);
  const gid = context.preferredGid()!;
  for (const [{ qp }, peer, may] of [[a, b, EVERYTHING], [b, a, access]] as const) {
    qp.init({ access: may });
    qp.rtr({ destQpNum: peer.qp.qpNum, remoteGid: gid, sgidIndex: gid.index, minRnrTimer: 1 });
    qp.rts({ timeout: 14, retryCount: 7, ...rts });
  }
  return { context, pd, a, b, [Symbol.dispose]: () => context.close() };
}

/** The next `n` completions, without errors. */
export async function completions(cq: CompletionQueue, n: number): Promise<WorkCompletion[]> {
  const found: WorkCompletion[] = [];
  while (found.length < n) {
    const wc = (await cq.next(AbortSignal.timeout(20_000)))!;
    if (wc.error) throw wc.error;
    found.push(wc);
  }
  return found;
}

/** Bytes that look like nothing else. */
export function pattern(bytes: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length: bytes }, (_, i) => (i * 31 + seed * 17 + (i >> 8)) & 0xff);
}
