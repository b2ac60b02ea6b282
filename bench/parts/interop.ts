/**
 * Brustoloni's experiment of 1999: a file server and a client, with and without copying in the network, with and
 * without copying in file I/O.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { createReadStream, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import type { InteropPlan, InteropUsage } from "../programs/interop.ts";
import type { Context, Part, Result } from "../results.ts";
import { digits } from "../stats.ts";
import { find, pivot, Rounds } from "../support/collect.ts";
import { addressFor, programOn, Running, runtimesOf } from "../support/processes.ts";

const MIB = 1 << 20, GIB = 1 << 30;
/** Where the file is: on the disk that this checkout is on. */
const DIRECTORY = fileURLToPath(new URL("../..", import.meta.url));

async function sha256(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash);
  return hash.digest("hex");
}

async function once(
  server: readonly string[],
  client: (ready: string) => readonly string[],
  signal: AbortSignal | undefined,
): Promise<[InteropUsage, InteropUsage]> {
  signal?.throwIfAborted();
  const one = new Running(server);
  let other: Running | undefined;
  try {
    other = new Running(client((await one.json<{ ready: string }>()).ready));
    return await Promise.all([one.json<InteropUsage>(), other.json<InteropUsage>()]);
  } finally {
    await other?.kill();
    await one.kill();
  }
}

const WAYS = [[true, true], [true, false], [false, true], [false, false]] as const;

function copied(copy: boolean): string {
  return copy ? "copied" : "not copied";
}

async function run(context: Context): Promise<Result[]> {
  const { quick, signal } = context, rounds = new Rounds();
  const bytes = (quick ? 128 : 1024) * MIB;
  const directory = mkdtempSync(join(DIRECTORY, ".interop-"));
  const source = join(directory, "source"), target = join(directory, "target");
  try {
    const piece = new Uint8Array(MIB).map((_, i) => i * 2654435761 >>> 13);
    for (let at = 0; at < bytes; at += piece.length) {
      new DataView(piece.buffer).setUint32(0, at);
      writeFileSync(source, piece, { flag: "a" });
    }
    const expected = await sha256(source);
    for (const transport of ["shm", "tcp"]) {
      for (const runtime of runtimesOf(context)) {
        context.say(`${runtime}, ${transport}://, a file of ${bytes / MIB} MiB`);
        for (let round = 0; round < (quick ? 1 : 3); round++) {
          for (const [copyNetwork, copyFile] of WAYS) {
            const plan: InteropPlan = {
              ...{ source, target, bytes, message: MIB, depth: 8, copyFile, copyNetwork },
            };
            const text = JSON.stringify(plan);
            const address = addressFor(transport);
            const [server, client] = await once(
              programOn(context, runtime, "interop", ["serve", address, text]),
              (ready) => programOn(context, runtime, "interop", ["fetch", ready, text]),
              signal,
            );
            if (round === 0 && await sha256(target) !== expected) {
              throw new Error(`${transport}, ${runtime}: what arrived is not what was sent`);
            }
            const ways = { network: copied(copyNetwork), file: copied(copyFile) };
            const add = (what: string, value: number, unit: string, how: string): void => {
              rounds.add({
                ...{ part: "interop", series: `${ways.network}, ${ways.file}`, runtime, unit },
                at: { transport, ...ways, what },
                how: `bench/programs/interop.ts, ${bytes / MIB} MiB in messages of 1 MiB: ${how}`,
              }, value);
            };
            const slower = Math.max(server.milliseconds, client.milliseconds);
            add(
              "throughput",
              bytes / slower / 1e6,
              "GB/s",
              "from the first byte read to the last written",
            );
            const cpu = (usage: InteropUsage): number => usage.cpu / 1e6 * GIB / bytes;
            add("server", cpu(server), "s/GiB", "the processor's time of the server");
            add("client", cpu(client), "s/GiB", "the processor's time of the client");
            add("both", cpu(server) + cpu(client), "s/GiB", "the processor's time of both");
            const past = "the share of the file that went past the page cache";
            add("direct, server", server.direct / bytes, "ratio", `${past}, at the server`);
            add("direct, client", client.direct / bytes, "ratio", `${past}, at the client`);
            const copies = (server.copied + client.copied) / bytes;
            add("copies", copies, "copies", "bytes that the library copied in both, for each byte");
          }
        }
      }
    }
    return rounds.results();
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** What the figures say of the paper's claim: that the greatest benefit is in avoiding both copies. */
function claim(results: readonly Result[], transport: string, runtime: string): string[] {
  const cost = (network: boolean, file: boolean): number | undefined => {
    const at = { transport, network: copied(network), file: copied(file), what: "both" };
    return find(results, `${at.network}, ${at.file}`, runtime, at)?.value;
  };
  const all = cost(true, true), network = cost(true, false), file = cost(false, true);
  const none = cost(false, false);
  if (!all || !network || !file || !none) return [];
  const [alone, other, together] = [all - network, all - file, all - none];
  const most = together >= Math.max(alone, other);
  return [
    `${transport}, ${runtime}: of ${digits(all)} s/GiB, not copying in the file saves ` +
    `${digits(alone)}, in the network ${digits(other)}, in both ${digits(together)}: ` +
    (most ? "the greatest benefit is in both" : "both is not the best") +
    (together >= alone + other ? ", more than the sum" : ", less than the sum"),
  ];
}

/** Interoperation of copy avoidance. */
export const interop: Part = {
  name: "interop",
  title: "Copy avoidance in network and file I/O",
  about: "A file server and its client, with and without copies in the network and in file I/O: " +
    "Brustoloni's experiment of 1999.",
  packages: [],
  seconds: { quick: 20, full: 400 },
  run,
  print: (results) => {
    const each = new Set(results.map(({ at, runtime }) => `${at["transport"]} ${runtime}`));
    return [
      "network, file; the processor's time in s/GiB",
      pivot(
        results,
        ({ at, runtime, series }) => `${at["transport"]} ${runtime}: ${series}`,
        ({ at, unit }) => unit === "s/GiB" ? `${at["what"]} s/GiB` : String(at["what"]),
      ),
      ...[...each].flatMap((name) => {
        const [transport, runtime] = name.split(" ") as [string, string];
        return claim(results, transport, runtime);
      }),
    ].join("\n");
  },
};
