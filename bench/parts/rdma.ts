/**
 * The transport over verbs against perftest, rdma-core's own benchmarks: on the device that is there, or in a VM that has
 * a soft-RoCE device.
 *
 * @module
 */
import { fileURLToPath } from "node:url";
import process from "node:process";
import type { Context, Part, Result } from "../results.ts";
import { pivot } from "../support/collect.ts";
import { Running } from "../support/processes.ts";

const PROGRAM = fileURLToPath(new URL("../programs/rdma.ts", import.meta.url));
const VM = fileURLToPath(new URL("../../tools/vm.ts", import.meta.url));

/** Where the measuring is done: the command in front of the program's, and what is said of it. */
function place({ runtimes, quick }: Context): [words: string[], where: string] {
  // Set by who has a device: the address of its interface.
  const address = process.env["MOAT_RDMA_ADDRESS"];
  if (address !== undefined) return [[], `on the device of ${address}`];
  const { deno } = runtimes;
  if (!deno) throw new Error("without MOAT_RDMA_ADDRESS it runs in a VM, and that takes Deno");
  const time = quick ? 400 : 1500;
  return [
    [...deno, VM, "--timeout", String(time), "--"],
    "on soft-RoCE in an emulated machine (deno task vm)",
  ];
}

async function run(context: Context): Promise<Result[]> {
  const [words, where] = place(context), { deno, bun } = context.runtimes;
  const plan = { runtimes: context.runtimes, quick: context.quick, where };
  const program = new Running([...words, ...(deno ?? bun)!, PROGRAM, JSON.stringify(plan)]);
  const stop = (): void => void program.kill();
  context.signal?.addEventListener("abort", stop);
  try {
    const results: Result[] = [];
    for (let line; (line = await program.line()) !== undefined;) {
      if (line.startsWith("{")) results.push(JSON.parse(line) as Result);
      else if (line.startsWith("say ")) context.say(line.slice(4));
    }
    if (results.length === 0) throw new Error(`nothing was measured:\n${program.errors}`);
    return results;
  } finally {
    context.signal?.removeEventListener("abort", stop);
    await program.kill();
  }
}

/** Real verbs. */
export const rdma: Part = {
  name: "rdma",
  title: "rdma:// against perftest",
  about:
    "Throughput, latency and memory over verbs beside rdma-core's own benchmarks, on the device " +
    "at MOAT_RDMA_ADDRESS, or else on soft-RoCE in an emulated machine, where only ratios mean anything.",
  packages: ["perftest"],
  seconds: { quick: 240, full: 600 },
  run,
  print: (results) =>
    pivot(
      results,
      ({ at, unit }) =>
        `${Object.values(at).filter((value) => value !== "rdma").join(" ")}, ${unit}`,
      ({ series, runtime }) => runtime ? `${series} ${runtime}` : series,
      ({ value }) => value.toPrecision(3),
    ),
};
