/**
 * Runs one part of the benchmarks in a process (and a process group) of its own, so that a crash ends this part alone
 * and whoever started it can end all that the part has started:
 *
 *     deno run -A tools/report/part.ts MODULE PART CONTEXT FILE
 *
 * Progress is what it prints; the results, or why there are none, go to the file, as JSON. It ends when its input does.
 *
 * @module
 */
import { writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { faults, type Part } from "../../bench/results.ts";
import { cleanUp } from "../vm/vm.ts";

const [module, name, context, file] = Deno.args as [string, string, string, string];
const stop = new AbortController();

async function main(): Promise<void> {
  const { parts }: { parts: readonly Part[] } = await import(pathToFileURL(module).href);
  const part = parts.find((each) => each.name === name)!;
  const results = await part.run({
    ...JSON.parse(context),
    say: (line: string) => console.log(line),
    signal: stop.signal,
  });
  const wrong = results.flatMap(faults);
  if (results.length === 0) wrong.push("it gave no results");
  writeFileSync(file, JSON.stringify({ results, wrong }));
}

Deno.addSignalListener("SIGTERM", () => {
  stop.abort(new Error("interrupted"));
  // A part that does not listen to the signal loses what it has started a little later.
  setTimeout(() => leave(143), 1000);
});

function leave(status: number): never {
  cleanUp();
  Deno.exit(status);
}

// Whoever started this is gone: nobody else would end what the part has started.
(async () => {
  for await (const _ of Deno.stdin.readable);
  cleanUp();
  Deno.kill(-Deno.pid, "SIGKILL");
})();

try {
  await main();
} catch (error) {
  const why = error instanceof Error ? error.stack ?? error.message : String(error);
  writeFileSync(file, JSON.stringify({ error: why }));
  leave(1);
}
leave(0);
