/**
 * The first lines of the report: what was found, in sentences, every figure taken from the results.
 *
 * @module
 */
import type { Result } from "../../bench/results.ts";
import { sizeName } from "../../bench/stats.ts";
import { runtimeName } from "./chart.ts";
import { quantity } from "./format.ts";
import { type Html, markup } from "./html.ts";

type At = Record<string, string | number>;

/** The result of a series at a place; of Deno where there are several. */
export function find(
  results: readonly Result[],
  part: string,
  series: string,
  at: At = {},
  runtime?: string,
): Result | undefined {
  const found = results.filter((result) =>
    result.part === part && result.series === series &&
    (runtime === undefined || result.runtime === runtime) &&
    Object.entries(at).every(([key, value]) => result.at[key] === value)
  );
  return found.find((result) => result.runtime === "deno") ?? found[0];
}

function strong(result: Result): Html {
  return markup`<strong>${quantity(result.value, result.unit)}</strong>`;
}

function on({ runtime }: Result): string {
  return runtime === undefined ? "" : ` on ${runtimeName(runtime)}`;
}

/** The smallest size from which on a message left alone costs less guarded than copied. */
export function crossover(results: readonly Result[], runtime: string): number | undefined {
  const at = (bytes: number, series: string): number | undefined =>
    find(results, "guards", series, { bytes, touched: "untouched", holding: 0 }, runtime)?.value;
  const sizes = [
    ...new Set(results.filter(({ part }) => part === "guards").map(({ at }) => at["bytes"])),
  ]
    .filter((bytes) => typeof bytes === "number").sort((a, b) => b - a);
  let least: number | undefined;
  for (const bytes of sizes) {
    const cow = at(bytes, "cow"), copy = at(bytes, "copy");
    if (cow === undefined || copy === undefined) continue;
    if (cow > copy) break;
    least = bytes;
  }
  return least;
}

function guards(results: readonly Result[]): Html | undefined {
  const bytes = 1 << 20, at = { bytes, touched: "untouched", holding: 0 };
  const cow = find(results, "guards", "cow", at), copy = find(results, "guards", "copy", at);
  const none = find(results, "guards", "none", at);
  if (!cow || !copy) return undefined;
  const from = crossover(results, cow.runtime ?? "");
  const rest = from === undefined
    ? markup`, and no size was found from which on guarding costs less than copying`
    : markup`; guarding costs less than copying from <strong>${sizeName(from)}</strong> on`;
  return markup`A message of 1 MiB whose buffer is guarded while it is in flight takes ${
    strong(cow)
  }${on(cow)}, ${strong(copy)} if it is copied first${
    none ? markup`, and ${strong(none)} without any protection` : ""
  }${rest}.`;
}

function against(
  results: readonly Result[],
  part: string,
  series: string,
  at: At,
): Html | undefined {
  const moat = find(results, part, series, at);
  if (!moat) return undefined;
  const ucx = find(results, part, "ucx_perftest", at);
  return markup`${strong(moat)}${
    ucx ? markup` (ucx_perftest: ${quantity(ucx.value, ucx.unit)})` : ""
  }`;
}

function transfers(results: readonly Result[]): Html | undefined {
  const shm = { transport: "shm" };
  const bulk = against(results, "throughput", "moat", {
    ...{ ...shm, bytes: 1 << 20, touched: "untouched" },
  });
  const small = against(results, "latency", "moat, spinning", { ...shm, bytes: 8 });
  const slept = find(results, "latency", "moat", { ...shm, bytes: 8 });
  if (!bulk && !small) return undefined;
  return markup`Between two processes of one machine, ${
    bulk ? markup`messages of 1 MiB that neither side looks at pass at ${bulk}` : ""
  }${bulk && small ? ", and " : ""}${small ? markup`one of 8 bytes is there after ${small}` : ""}${
    small && slept ? markup`, or ${strong(slept)} if the receiver sleeps` : ""
  }.`;
}

function scaling(results: readonly Result[]): Html | undefined {
  const said: Html[] = [];
  const range = (found: readonly Result[]): Html | undefined => {
    if (found.length === 0) return undefined;
    const sorted = [...found].sort((a, b) => a.value - b.value);
    const least = sorted[0]!, most = sorted.at(-1)!;
    return quantity(most.value, "") === quantity(least.value, "")
      ? strong(least)
      : markup`${strong(least)} to ${strong(most)}`;
  };
  const hidden = range(
    results.filter(({ part, series, at }) =>
      part === "overlap" && series === "moat" && at["transport"] === "shm" &&
      at["bytes"] === 4 << 20 && at["side"] === "sender" && at["end"] === "stream"
    ),
  );
  if (hidden) said.push(markup`Of sends of 4 MiB, ${hidden} is hidden behind computation`);
  const at = { operation: "send", bytes: 64 };
  const few = find(results, "inflight", "moat", { ...at, inFlight: 10 });
  const many = find(results, "inflight", "moat", { ...at, inFlight: 100_000 }, few?.runtime);
  if (few && many) {
    const times = (many.value / few.value).toFixed(2);
    said.push(
      markup`a send among 100,000 in flight costs <strong>${times} times</strong> that among 10${
        on(few)
      }`,
    );
  }
  const memory = range(
    results.filter(({ part, at }) =>
      part === "memory" && at["transport"] === "shm" && at["what"] === "beyond its ring"
    ),
  );
  if (memory) said.push(markup`an idle connection takes ${memory} of a process beyond its ring`);
  if (said.length === 0) return undefined;
  return markup`${said.map((each, i) => i === 0 ? each : markup`; ${each}`)}.`;
}

/** The sentences for which there are results. */
export function summary(results: readonly Result[]): Html[] {
  return [guards, transfers, scaling].flatMap((sentence) => sentence(results) ?? []);
}
