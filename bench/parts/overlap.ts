/**
 * Overlap of computation and communication.
 *
 * @module
 */
import type { OverlapPlan, OverlapResult } from "../programs/overlap.ts";
import type { Context, Part, Result } from "../results.ts";
import { digits, median, sizeName } from "../stats.ts";
import { find, pivot, target } from "../support/collect.ts";
import { overlap as share } from "../support/overlap.ts";
import { measureSockets, measureWithPeer, runtimesOf } from "../support/processes.ts";

const KIB = 1 << 10, MIB = 1 << 20;
const TRANSPORTS = ["shm", "tcp"] as const;
const SOCKETS = { shm: "unix", tcp: "tcp" } as const;
const DONE = {
  sender: {
    await: 'send(buf, { guard: "cow" }) until its promise, when the receiver has read every byte',
    touch: 'send(buf, { guard: "wait" }) until a write to the buffer, which waits for the receiver',
    stream: 'send(buf, { guard: "cow" }) of many in turn, nothing awaited before the last',
  },
  receiver: {
    await: "recv(buf) and a request until the promise",
    touch: "recv(buf) and a request until a read of the buffer, which waits for the message",
    stream:
      "recv(buf) of many, four ahead; each is read in turn, nothing is awaited before the last",
  },
};

async function run(context: Context): Promise<Result[]> {
  const plan: OverlapPlan = {
    sizes: [64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB],
    rounds: context.quick ? 15 : 51,
  };
  const results: Result[] = [];
  const add = (series: string, runtime: string, transport: string, line: OverlapResult): void => {
    const { bytes, side, end, transfer, compute, both } = line;
    const us = [transfer, compute, both].map((each) => digits(median(each)));
    const what = series === "moat"
      ? `bench/programs/overlap.ts over ${transport}://: ${DONE[side][end]}`
      : `bench/programs/sockets.ts (${
        SOCKETS[transport as "shm" | "tcp"]
      }): the write and the read begun`;
    results.push({
      ...{ part: "overlap", series, runtime, at: { transport, bytes, side, end } },
      ...{ value: share(line), unit: "ratio", statistic: "median", samples: both.length },
      how:
        `${what}; 1 - (both - C) / T of each round, cut off at 0 and 1; in the median T, the transfer alone, is ${
          us[0]
        } us; ` +
        `C, a computation as long, ${us[1]} us; both at once, ${us[2]} us` +
        (end === "stream" ? ", each a message" : ""),
    });
  };
  for (const runtime of runtimesOf(context)) {
    for (const transport of TRANSPORTS) {
      context.say(`${runtime}, ${transport}://`);
      const pair = [runtime, runtime] as const;
      const lines = await measureWithPeer<OverlapResult>(context, pair, "overlap", plan, {
        transport,
      });
      for (const line of lines) add("moat", runtime, transport, line);
      const kind = SOCKETS[transport], all = { what: "overlap", ...plan };
      const plain = await measureSockets<OverlapResult>(context, runtime, kind, all);
      for (const line of plain) add("own sockets", runtime, transport, line);
    }
  }
  return results;
}

/** Overlap. */
export const overlap: Part = {
  name: "overlap",
  title: "Overlap of computation and communication",
  about:
    "The share of a transfer that a computation of the same length hides, in code that has no " +
    "waits in it: the operation is begun, the program computes, and then asks for the end; or it " +
    "goes on with the next message of a stream.",
  packages: [],
  seconds: { quick: 50, full: 60 },
  run,
  print: (results) =>
    [
      "share of the transfer that is hidden, 1 is all",
      pivot(
        results,
        ({ at }) =>
          `${at["transport"]} ${sizeName(at["bytes"] as number)} ${at["side"]} ${at["end"]}`,
        ({ series, runtime }) => `${series} ${runtime}`,
      ),
      ...[...new Set(results.map((each) => each.runtime!))].flatMap((runtime) =>
        ["sender", "receiver"].flatMap((side) => {
          const at = { transport: "shm", bytes: 4 * MIB, side, end: "stream" };
          const result = find(results, "moat", runtime, at);
          const name = `${runtime}, shm://, 4 MiB, ${side}`;
          return result ? [target(name, result.value, false, 0.95)] : [];
        })
      ),
    ].join("\n"),
};
