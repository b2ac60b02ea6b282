/**
 * Charts as data: what is drawn in the page and what is in the table below a chart come from the same
 * {@linkcode Chart}. Nothing here needs a browser.
 *
 * @module
 */
import type { Result } from "../../bench/results.ts";
import { styleOf } from "./style.ts";

/** A figure at its place in a chart. */
export interface Point {
  /** What gives it its colour. */
  series: string;
  /** Where it stands on a chart that has rows: all that are not of lines. */
  row: string;
  /** The place along the axis of a chart of lines. */
  x: number;
  y: number;
  result: Result;
}

/** Points that are drawn together; a chart has several where one would be too full. */
export interface Panel {
  title: string;
  points: Point[];
}

/** An axis: what its figures are, and how far apart they are drawn. */
export interface Axis {
  label: string;
  /** `bytes` is logarithmic to base 2, `log` to base 10. */
  scale: "bytes" | "log" | "linear";
}

/** Lines over an axis; or rows of bars, of dots where there is no zero to begin a bar at, or of distributions. */
export interface Chart {
  /** Different for every chart of a page; given by its section. */
  id: string;
  title: string;
  kind: "lines" | "bars" | "dots" | "ranges";
  x: Axis;
  y: Axis;
  /** A line at this value of y. */
  reference?: { value: number; label: string };
  panels: Panel[];
  /** All results of the chart, for its table. */
  results: Result[];
}

/** What a chart is made of. */
export interface ChartOptions {
  title: string;
  kind: Chart["kind"];
  /** The key of `at` along the x axis, on a chart of lines. */
  along?: string;
  x?: Axis;
  y: Axis;
  /** The panel of a result. */
  panel?: (result: Result) => string;
  /** The line, bar or distribution of a result. */
  series?: (result: Result) => string;
  /** Its row, if that is not the same. */
  row?: (result: Result) => string;
  value?: (result: Result) => number;
  /** What is in the table, if that is more than what is drawn. */
  all?: readonly Result[];
  reference?: Chart["reference"];
}

const RUNTIMES: Record<string, string> = { deno: "Deno", bun: "Bun", "deno-bun": "Deno to Bun" };

/** Series of the library itself. */
const OWN: Record<string, string> = {
  moat: "Moat",
  "moat, spinning": "Moat, spinning",
  processor: "processor’s time",
};

/** A runtime, or both as sender and receiver, as people write it. */
export function runtimeName(runtime: string | undefined): string {
  return runtime === undefined ? "" : RUNTIMES[runtime] ?? runtime;
}

/** What a reader calls the line of a result. */
export function seriesName({ series, runtime }: Result): string {
  const on = runtimeName(runtime);
  const known = OWN[series];
  if (known !== undefined) return on === "" ? known : `${known}, ${on}`;
  if (series === "own sockets") return on === "" ? "Plain sockets" : `Sockets of ${on}`;
  return on === "" ? series : `${series}, ${on}`;
}

/** Puts things under what `key` says of them, in the order in which the keys come. */
export function groupBy<T>(items: readonly T[], key: (item: T) => string): [string, T[]][] {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const group = groups.get(key(item));
    if (group) group.push(item);
    else groups.set(key(item), [item]);
  }
  return [...groups];
}

/** Makes a chart of results; undefined if there are none. */
export function chart(results: readonly Result[], options: ChartOptions): Chart | undefined {
  const { along, panel = (): string => "", series = seriesName, row = series } = options;
  const value = options.value ?? ((result: Result): number => result.value);
  // A place that is no number is not on the axis.
  const placed = results.filter(({ at }) => along === undefined || typeof at[along] === "number");
  if (placed.length === 0) return undefined;
  const panels = groupBy(placed, panel).map(([title, members]): Panel => ({
    title,
    points: members.map((result) => ({
      series: series(result),
      row: row(result),
      x: along === undefined ? 0 : result.at[along] as number,
      y: value(result),
      result,
    })),
  }));
  return {
    id: "",
    title: options.title,
    kind: options.kind,
    x: options.x ?? { label: "", scale: "linear" },
    y: options.y,
    ...(options.reference ? { reference: options.reference } : {}),
    panels,
    results: [...options.all ?? placed],
  };
}

/** The series of a chart, each once, in the order in which every chart has them. */
export function seriesOf({ panels }: Chart): string[] {
  const names = new Set(panels.flatMap(({ points }) => points.map(({ series }) => series)));
  return [...names].sort((a, b) => styleOf(a).order - styleOf(b).order || a.localeCompare(b));
}

/** The rows of a panel, each once: as its series are ordered, or as they come. */
export function rowsOf(chart: Chart, { points }: Panel): string[] {
  const rows = [...new Set(points.map(({ row }) => row))];
  if (points.some(({ row, series }) => row !== series)) return rows;
  const order = seriesOf(chart);
  return rows.sort((a, b) => order.indexOf(a) - order.indexOf(b));
}
