/**
 * The demo: what a guard does, on a real file between two processes.
 *
 *     deno task demo
 *     deno run -A examples/demo.ts --size 64k --guard wait
 *     bun examples/demo.ts --runtimes bun,bun
 *     deno task vm -- deno task demo --transport rdma
 *
 * A sender sends a file over shared memory or RDMA and overwrites each buffer as soon as `send` has returned; a
 * receiver that is later than that hashes what arrives. With a guard the file arrives as it was; without,
 * it does not. The two programs are demo/sender.ts and demo/receiver.ts.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import process from "node:process";
import { pipeline } from "node:stream/promises";
import type { Guard } from "../mod.ts";
import { HELP, type Options, parseOptions, UsageError } from "./demo/options.ts";
import { CAPTION, ProgressBar, type Row, table } from "./demo/report.ts";
import { killChildren, runPair } from "./demo/run.ts";
import { findRuntime, type Runtime, type RuntimeName } from "./demo/runtimes.ts";

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(signal, () => {
    killChildren();
    process.exit(1);
  });
}
process.exit(await main(process.argv.slice(2)));

async function main(args: string[]): Promise<number> {
  try {
    const options = parseOptions(args);
    if (options === undefined) process.stdout.write(HELP);
    else await demo(options);
    return 0;
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    if (error instanceof UsageError) {
      console.error(`demo: ${why}\n(--help lists the options)`);
      return 2;
    }
    console.log(`demo: failed: ${why}`);
    return 1;
  }
}

async function demo(options: Options): Promise<void> {
  const { file, fileSize, size, transport } = options;
  const [sender, receiver] = findRuntimes(options.runtimes);
  const count = Math.ceil(fileSize / size);
  console.log(
    `${file}: ${fileSize.toLocaleString("en")} bytes in ${count.toLocaleString("en")} ` +
      `message${count === 1 ? "" : "s"} of up to ${
        size.toLocaleString("en")
      } bytes, over ${transport}://\n` +
      `sender: ${sender.name} ${sender.version}; receiver: ${receiver.name} ${receiver.version}\n`,
  );

  const hash = createHash("sha256");
  await pipeline(createReadStream(file), hash);
  const sha256 = hash.digest("hex");

  const rows: Row[] = [];
  for (const [guard, overwrite] of plan(options.guard)) {
    const title = `guard ${guard}, buffers ${overwrite ? "overwritten" : "left alone"}`;
    const bar = new ProgressBar(title, fileSize);
    try {
      const onProgress = (bytes: number): void => bar.draw(bytes);
      const outcome = await runPair({
        ...{ file, fileSize, size, guard, transport, overwrite, sender, receiver },
        onProgress,
      });
      const intact = outcome.received.sha256 === sha256;
      rows.push({ guard, overwritten: overwrite, outcome, intact });
    } finally {
      bar.clear();
    }
  }
  console.log(table(rows));
  console.log(CAPTION);
  judge(rows);
  for (const row of rows) if (row.overwritten || row.guard === "move") console.log(lesson(row));
  console.log("\ndemo: ok");
}

// Left alone, a guard costs next to nothing; overwritten, it shows what it is for. Without one, the same
// overwriting reaches the receiver. What has been moved is not the sender's to overwrite.
function plan(guard: Guard): [Guard, boolean][] {
  const unguarded: [Guard, boolean] = ["none", true];
  if (guard === "none") return [unguarded];
  if (guard === "move") return [["move", false], unguarded];
  return [[guard, false], [guard, true], unguarded];
}

function judge(rows: Row[]): void {
  for (const { guard, overwritten, intact } of rows) {
    const how = `with the guard "${guard}" and buffers ${
      overwritten ? "overwritten" : "left alone"
    }`;
    if (guard !== "none" && !intact) throw new Error(`the file arrived corrupted ${how}`);
    if (guard === "none" && intact) throw new Error(`the file arrived intact ${how}`);
  }
}

function lesson({ guard }: Row): string {
  if (guard === "none") {
    return "Overwritten in flight without a guard, the file arrived corrupted, as expected.";
  }
  return guard === "move"
    ? 'Given away with "move", no buffer could be overwritten, and the file arrived intact.'
    : `Overwritten in flight under the guard "${guard}", the file arrived as it was at send().`;
}

// Deno sends and Bun receives, unless it was said otherwise or one of them cannot be had.
function findRuntimes(names: [RuntimeName, RuntimeName] | undefined): [Runtime, Runtime] {
  const found = new Map<RuntimeName, Runtime | undefined>();
  const find = (name: RuntimeName): Runtime | undefined => {
    if (!found.has(name)) found.set(name, findRuntime(name));
    return found.get(name);
  };
  const need = (name: RuntimeName): Runtime => {
    const runtime = find(name);
    if (runtime) return runtime;
    throw new Error(`${name} is neither on PATH in a version that will do nor to be had from npx`);
  };
  if (names) return [need(names[0]), need(names[1])];
  const sender = find("deno"), receiver = find("bun");
  const both = sender ?? receiver;
  if (!both) throw new Error("neither Deno nor Bun could be run");
  if (!sender || !receiver) {
    console.log(`${sender ? "Bun" : "Deno"} is not to be had, so both run on ${both.name}`);
  }
  return [sender ?? both, receiver ?? both];
}
