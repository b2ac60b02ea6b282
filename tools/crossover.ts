/**
 * Draws docs/images/crossover.svg: what a message costs that is copied, and one that is guarded, by its size.
 *
 *     deno run --allow-read --allow-write tools/crossover.ts RESULTS.json [--runtime bun]
 *
 * RESULTS.json is what the benchmarks write; its part "guards" is drawn. The colours can be told apart on light and
 * on dark backgrounds, which are the page's.
 *
 * @module
 */
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { sizeName } from "../bench/stats.ts";

/** What is read of the results. */
export interface Results {
  facts: Record<string, string>;
  date: string;
  results: {
    part: string;
    series: string;
    runtime?: string;
    at: Record<string, string | number>;
    value: number;
  }[];
}

interface Point {
  bytes: number;
  us: number;
}
/** The lines of one panel, by guard. */
type Lines = Map<string, Point[]>;

const COLOURS: Record<string, string> = {
  copy: "#cf6a17",
  cow: "#2f81f7",
  wait: "#2c974b",
  none: "#8a63d2",
};
const GREY = "#767676";
const WIDTH = 840, HEIGHT = 372, TOP = 40, BOTTOM = 84, LEFT = 58, PANEL = 316, GAP = 80;

/** The lines of what was measured where the receiver releases each message at once. */
function linesOf({ results }: Results, runtime: string, touched: string, guards: string[]): Lines {
  return new Map(guards.map((guard) => {
    const points = results
      .filter(({ part, series, at, ...rest }) =>
        part === "guards" && rest.runtime === runtime && series === guard &&
        at["touched"] === touched && Number(at["holding"] ?? 0) === 0
      )
      .map(({ at, value }) => ({ bytes: Number(at["bytes"]), us: value }))
      .sort((a, b) => a.bytes - b.bytes);
    if (points.length < 2) throw new Error(`no results: ${guard}, ${touched}, on ${runtime}`);
    return [guard, points];
  }));
}

/** The size from which on the guard costs less than the copy at every size; undefined if it never does. */
function crossover(copy: Point[], guard: Point[]): number | undefined {
  const less = copy.map(({ us }, i) => guard[i]!.us < us), last = less.lastIndexOf(false);
  return copy[last + 1]?.bytes;
}

function timeName(us: number): string {
  return us >= 1000 ? `${us / 1000} ms` : `${us} µs`;
}

function text(x: number, y: number, words: string, more = ""): string {
  const escaped = words.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}"${more}>${escaped}</text>`;
}

/** Places for labels beside each other: in the order of `wanted`, at least `apart` from one another. */
function spread(wanted: number[], apart: number): number[] {
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a]! - wanted[b]!);
  const places = [...wanted];
  order.slice(1).forEach((each, i) => {
    places[each] = Math.max(places[each]!, places[order[i]!]! + apart);
  });
  return places;
}

interface Scale {
  x(bytes: number): number;
  y(us: number): number;
}

function panel(
  title: string,
  lines: Lines,
  guard: string,
  { x, y }: Scale,
  decades: number[],
): string {
  const copy = lines.get("copy")!, from = crossover(copy, lines.get(guard)!), parts = [];
  const left = x(copy[0]!.bytes), right = x(copy.at(-1)!.bytes), bottom = HEIGHT - BOTTOM;
  parts.push(text(left, TOP - 16, title, ' class="title"'));
  for (const us of decades) {
    parts.push(`<path class="grid" d="M${left} ${y(us).toFixed(1)}H${right.toFixed(1)}"/>`);
    if (left === LEFT) parts.push(text(left - 8, y(us) + 4, timeName(us), ' text-anchor="end"'));
  }
  copy.filter((_, i) => i % 2 === 0).forEach(({ bytes }) =>
    parts.push(text(x(bytes), bottom + 18, sizeName(bytes), ' text-anchor="middle"'))
  );
  if (from !== undefined && from > copy[0]!.bytes) {
    const words = `"${guard}" costs less from ${sizeName(from)} on`;
    parts.push(
      `<path class="from" d="M${x(from).toFixed(1)} ${TOP}V${bottom}"/>`,
      x(from) < left + PANEL / 2
        ? text(x(from) + 6, TOP + 12, words)
        : text(x(from) - 6, TOP + 12, words, ' text-anchor="end"'),
    );
  }
  const names = [...lines.keys()];
  const places = spread(names.map((name) => y(lines.get(name)!.at(-1)!.us)), 15);
  names.forEach((name, i) => {
    const points = lines.get(name)!, colour = COLOURS[name]!;
    const path = points.map(({ bytes, us }) => `${x(bytes).toFixed(1)} ${y(us).toFixed(1)}`).join(
      "L",
    );
    parts.push(
      `<path d="M${path}" stroke="${colour}" fill="none" stroke-width="2"/>`,
      ...points.map(({ bytes, us }) =>
        `<circle cx="${x(bytes).toFixed(1)}" cy="${y(us).toFixed(1)}" r="2.5" fill="${colour}"/>`
      ),
      text(right + 8, places[i]! + 4, `"${name}"`, ` style="fill:${colour}" class="name"`),
    );
  });
  return parts.join("\n");
}

/** The picture, as SVG. */
export function draw(results: Results, runtime: string): string {
  const alone = linesOf(results, runtime, "untouched", ["copy", "cow", "none"]);
  const rewritten = linesOf(results, runtime, "rewritten", ["copy", "cow", "wait"]);
  const points = [...alone.values(), ...rewritten.values()].flat();
  const decade = (pick: (...all: number[]) => number, round: (n: number) => number): number =>
    round(Math.log10(pick(...points.map(({ us }) => us))));
  const low = decade(Math.min, Math.floor), high = decade(Math.max, Math.ceil);
  const decades = Array.from({ length: high - low + 1 }, (_, i) => 10 ** (low + i));
  const least = Math.min(...points.map(({ bytes }) => bytes));
  const most = Math.max(...points.map(({ bytes }) => bytes));
  const y = (us: number): number =>
    HEIGHT - BOTTOM - (Math.log10(us) - low) / (high - low) * (HEIGHT - BOTTOM - TOP);
  const scale = (left: number): Scale => ({
    x: (bytes) => left + Math.log2(bytes / least) / Math.log2(most / least) * PANEL,
    y,
  });
  const { facts, date } = results, version = facts[runtime] ?? "";
  const machine = [facts["cpu"], `${facts["cores"]} cores`, facts["kernel"]?.split("-")[0]].join(
    ", ",
  );
  const name = runtime === "bun" ? "Bun" : "Deno";
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img">
<title>Time of a message over shm:// by its size: copied, and guarded</title>
<style>
text { font: 12px system-ui, sans-serif; fill: ${GREY}; }
.title, .name { font-weight: 600; }
.grid { stroke: ${GREY}; stroke-opacity: 0.25; }
.from { stroke: ${GREY}; stroke-dasharray: 3 4; }
</style>
${panel("left alone after send()", alone, "cow", scale(LEFT), decades)}
${panel("rewritten at once, every byte", rewritten, "cow", scale(LEFT + PANEL + GAP), decades)}
${
    text(
      LEFT,
      HEIGHT - 36,
      "Time of a message from send() to its promise, by the size of the message; shm://, two processes; both axes logarithmic.",
    )
  }
${text(LEFT, HEIGHT - 16, `${name} ${version}; ${machine}; ${date.slice(0, 10)}. Medians.`)}
</svg>
`;
}

if (import.meta.main) {
  const { values: { runtime }, positionals: [file] } = parseArgs({
    args: Deno.args,
    options: { runtime: { type: "string", default: "deno" } },
    allowPositionals: true,
  });
  if (file === undefined) {
    console.error("which results? tools/crossover.ts RESULTS.json");
    Deno.exit(2);
  }
  const results = JSON.parse(Deno.readTextFileSync(file)) as Results;
  const target = fileURLToPath(new URL("../docs/images/crossover.svg", import.meta.url));
  Deno.writeTextFileSync(target, draw(results, runtime));
}
