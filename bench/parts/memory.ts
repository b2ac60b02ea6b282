/**
 * Memory per idle connection.
 *
 * @module
 */
import type { MemoryResult } from "../programs/memory.ts";
import type { Context, Part, Result } from "../results.ts";
import { pivot, target } from "../support/collect.ts";
import { addressFor, programOn, runtimesOf, serverAndClient } from "../support/processes.ts";

/** What is told of each process, and how it is known. */
const WHAT = {
  "beyond its ring":
    "proportional set size (/proc/self/smaps_rollup) less the ring, plus page tables",
  "resident": "proportional set size (/proc/self/smaps_rollup)",
  "ring":
    "proportional set size of memfd:moat-ring (/proc/self/smaps); over rdma:// of the slots and of /dev/infiniband",
  "page tables": "VmPTE (/proc/self/status)",
  "heap": "used of the runtime's heap after a collection (process.memoryUsage())",
} as const;

/** The results of one run. */
export function memoryResults(
  part: string,
  runtime: string,
  transport: string,
  result: MemoryResult,
): Result[] {
  return (["client", "server"] as const).flatMap((side) => {
    const { pss, ring, tables, heap } = result[side];
    const values: Record<keyof typeof WHAT, number> = {
      ...{ "beyond its ring": pss - ring + tables, resident: pss, ring },
      ...{ "page tables": tables, heap },
    };
    return Object.entries(values).map(([what, value]): Result => ({
      ...{ part, series: "moat", runtime, unit: "KiB", samples: result.connections },
      at: { transport, connections: result.connections, side, what },
      // A collection in between can leave less than there was; that is no memory of a connection.
      ...{ value: Math.max(0, value), statistic: "mean" },
      how:
        `bench/programs/memory.ts over ${transport}://: growth of ${
          WHAT[what as keyof typeof WHAT]
        } ` +
        `by ${result.connections} connections that have carried a message each way, divided by them`,
    }));
  });
}

async function run(context: Context): Promise<Result[]> {
  const results: Result[] = [];
  for (const runtime of runtimesOf(context)) {
    for (const transport of ["shm", "tcp"]) {
      for (const count of context.quick ? [1000] : [100, 1000]) {
        context.say(`${runtime}, ${transport}://, ${count} connections`);
        const program = (role: string, address: string): string[] => {
          return [
            "prlimit",
            "--nofile=16384:",
            ...programOn(context, runtime, "memory", [role, address, String(count)]),
          ];
        };
        const lines = await serverAndClient(
          context,
          program("serve", addressFor(transport)),
          (said) => program("connect", said.replace("ready ", "")),
        );
        results.push(...memoryResults("memory", runtime, transport, JSON.parse(lines[0]!)));
      }
    }
  }
  return results;
}

/** Memory of connections. */
export const memory: Part = {
  name: "memory",
  title: "Memory per idle connection",
  about: "What a connection takes of each of its two processes when nothing happens on it.",
  packages: [],
  seconds: { quick: 20, full: 40 },
  run,
  print: (results) =>
    [
      "KiB a connection",
      pivot(
        results,
        ({ at, runtime }) => `${at["transport"]} ${runtime} ${at["side"]}, ${at["connections"]}`,
        ({ at }) => String(at["what"]),
      ),
      ...results.filter(({ at }) => at["what"] === "beyond its ring").map((result) => {
        const { at, runtime, value } = result;
        const name = `${runtime}, ${at["transport"]}://, ${at["side"]}, ${at["connections"]}`;
        return target(name, value, true, 256);
      }),
    ].join("\n"),
};
