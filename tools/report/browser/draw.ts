/// <reference lib="dom" />
/**
 * Draws a panel of a chart with Observable Plot. Colours are variables of the page's style sheet, so that a drawing
 * is right in light and dark.
 *
 * @module
 */
import * as Plot from "npm:@observablehq/plot@0.6.17";
import type { Quantiles } from "../../../bench/results.ts";
import { type Axis, type Chart, type Panel, type Point, rowsOf, seriesOf } from "../chart.ts";
import { number, quantity, tick } from "../format.ts";
import { styleOf } from "../style.ts";
import { bytesTicks, logTicks } from "../ticks.ts";
import { sizeName } from "../../../bench/stats.ts";

const INK = "var(--ink)", SOFT = "var(--rule)";

function color(series: string): string {
  return `var(--${styleOf(series).color})`;
}

/** What a reader is told of a point. */
function say(chart: Chart, { series, x, y, result }: Point): string {
  const head = chart.kind === "lines"
    ? `${series}, ${chart.x.scale === "bytes" ? sizeName(x) : number(x)}`
    : series;
  const own = quantity(result.value, result.unit);
  const lines = [head, y === result.value ? own : `${number(y)} × (${own})`];
  if (result.quantiles) {
    const { min, p50, p99, p999, max } = result.quantiles;
    const said = (name: string, value: number | undefined): void => {
      if (value !== undefined) lines.push(`${name} ${quantity(value, result.unit)}`);
    };
    said("fastest", min);
    said("median", p50);
    said("99 in 100", p99);
    said("999 in 1,000", p999);
    said("slowest", max);
  }
  return lines.join("\n");
}

function unitOf(chart: Chart): string {
  // A chart of multiples has no unit.
  return chart.panels[0]!.points.some(({ y, result }) => y !== result.value)
    ? "×"
    : chart.results[0]!.unit;
}

interface Scaled {
  options: Plot.ScaleOptions;
  ticks: number | number[];
  format: (value: number) => string;
}

/** The scale of an axis on which these values are, with ticks that fit in so many pixels. */
function scale(
  { scale: form }: Axis,
  values: readonly number[],
  unit: string,
  room: number,
): Scaled {
  const least = Math.min(...values), most = Math.max(...values);
  if (form === "bytes") {
    const ticks = bytesTicks(least, most, Math.floor(room / 58));
    return { options: { type: "log", base: 2, domain: [least, most] }, ticks, format: sizeName };
  }
  const format = (value: number): string => tick(value, unit);
  if (form === "log") {
    const margin = Math.max(1.04, (most / least) ** 0.04);
    const domain: [number, number] = [least / margin, most * margin];
    const ticks = logTicks(...domain, Math.floor(room / 44));
    return { options: { type: "log", domain }, ticks, format };
  }
  const domain = [0, unit === "ratio" ? 1 : (most || 1) * 1.06];
  return { options: { domain }, ticks: Math.max(2, Math.floor(room / 70)), format };
}

/** The axis: by hand where the ticks are, because a logarithmic scale would leave out some of their labels. */
function axis(kind: "X" | "Y", { ticks, format }: Scaled, tickSize: number): Plot.Markish {
  const all = { label: null, tickSize, fontSize: 12 };
  if (typeof ticks === "number") {
    const own = { ...all, ticks, tickFormat: format };
    return kind === "X" ? Plot.axisX(own) : Plot.axisY(own);
  }
  const own = { ...all, text: format };
  return kind === "X" ? Plot.axisX(ticks, own) : Plot.axisY(ticks, own);
}

function grid(kind: "X" | "Y", { ticks }: Scaled): Plot.Markish {
  const all = { stroke: SOFT, strokeOpacity: 1 };
  if (typeof ticks === "number") {
    return kind === "X" ? Plot.gridX({ ...all, ticks }) : Plot.gridY({ ...all, ticks });
  }
  return kind === "X" ? Plot.gridX(ticks, all) : Plot.gridY(ticks, all);
}

function values(chart: Chart): number[] {
  const all = chart.panels.flatMap(({ points }) => points);
  const spread = chart.kind === "ranges"
    ? all.flatMap(({ result: { quantiles } }) =>
      quantiles ? [quantiles.min, quantiles.p999 ?? quantiles.p99] : []
    )
    : [];
  return [...all.map(({ y }) => y), ...spread, ...(chart.reference ? [chart.reference.value] : [])];
}

function tip(points: readonly Point[], chart: Chart, pointer: Plot.TipOptions): Plot.Markish {
  return Plot.tip(
    points,
    Plot.pointer({
      ...pointer,
      title: (point: Point) => say(chart, point),
      fill: "var(--paper)",
      stroke: "var(--rule-strong)",
      fontSize: 12,
      lineHeight: 1.3,
    }),
  );
}

function lines(chart: Chart, panel: Panel, width: number): Plot.PlotOptions {
  const points = [...panel.points].sort((a, b) => a.x - b.x);
  const series = seriesOf(chart).filter((name) => points.some((point) => point.series === name));
  const xs = chart.panels.flatMap((each) => each.points.map(({ x }) => x));
  const { reference } = chart;
  const height = Math.round(Math.min(320, Math.max(220, width * 0.62)));
  const x = scale(chart.x, xs, "", width - 60);
  const y = scale(chart.y, values(chart), unitOf(chart), height * 1.4);
  // Numbers of things were measured at round places.
  const places = [...new Set(xs)];
  if (chart.x.scale === "log" && places.length * 44 < width) x.ticks = places;
  return {
    height,
    marginTop: 10,
    marginLeft: 44,
    marginRight: 22,
    marginBottom: 26,
    x: { ...x.options, insetLeft: 6, insetRight: 6, axis: null },
    y: { ...y.options, axis: null },
    marks: [
      grid("Y", y),
      axis("X", x, 4),
      axis("Y", y, 0),
      ...(reference
        ? [Plot.ruleY([reference.value], { stroke: INK, strokeOpacity: 0.55, strokeWidth: 1.2 })]
        : []),
      // One mark for each series, because a mark has one kind of dashes.
      ...series.toReversed().flatMap((name) => {
        const own = points.filter((point) => point.series === name);
        const { symbol, dash } = styleOf(name);
        return [
          Plot.lineY(own, {
            ...{ x: "x", y: "y", stroke: color(name), strokeWidth: 2, curve: "linear" },
            ...(dash ? { strokeDasharray: dash } : {}),
          }),
          Plot.dot(own, {
            ...{ x: "x", y: "y", symbol, r: 3.6, fill: color(name) },
            ...{ stroke: "var(--paper)", strokeWidth: 0.8 },
          }),
        ];
      }),
      Plot.dot(
        points,
        Plot.pointer({ x: "x", y: "y", r: 6, fill: "none", stroke: INK, strokeWidth: 1.5 }),
      ),
      tip(points, chart, { x: "x", y: "y" }),
    ],
  };
}

/** The value that a row stands for, in words. */
function words({ result }: Point): string {
  return quantity(result.quantiles?.p50 ?? result.value, result.unit);
}

/** Rows with their names beside them; above them where it is narrow, so that the figures have room. */
function rows(chart: Chart, panel: Panel, width: number): Plot.PlotOptions {
  const { points } = panel, { kind } = chart;
  const names = rowsOf(chart, panel);
  const longest = (texts: string[]): number => 7 * Math.max(...texts.map(({ length }) => length));
  const label = longest(names) + 18;
  const beside = width >= 400 && label < width * 0.45;
  const marginLeft = beside ? label : 4;
  const marginRight = kind === "dots" ? 28 : longest(points.map(words)) + 14;
  const x = scale(chart.y, values(chart), unitOf(chart), width - marginLeft - marginRight);
  const text = { fill: INK, fontSize: 12.5, stroke: "var(--paper)", strokeWidth: 4 };
  const above = { ...text, textAnchor: "start" as const, frameAnchor: "left" as const, dy: -17 };
  const row = (kind === "ranges" ? 30 : 26) + (beside ? 0 : 20);
  return {
    height: names.length * row + 30 + (beside ? 4 : 10),
    marginLeft,
    marginRight,
    marginTop: beside ? 4 : 10,
    marginBottom: 26,
    x: { ...x.options, axis: null },
    y: { domain: names, axis: null, padding: 1 - 16 / row },
    marks: [
      grid("X", x),
      axis("X", x, 0),
      beside
        ? Plot.axisY({ tickSize: 0, label: null, fill: INK, fontSize: 12.5 })
        : Plot.text(names, { ...above, y: (name: string) => name, text: (name: string) => name }),
      ...(kind === "bars" ? bars(points) : kind === "dots" ? dots(points) : ranges(points)),
      // At the end of a bar, and at the end of the row of anything else.
      ...(kind === "bars"
        ? [
          Plot.text(points, { ...text, x: "y", y: "row", textAnchor: "start", dx: 6, text: words }),
        ]
        : []),
      ...(kind === "ranges"
        ? [
          Plot.text(points, {
            ...text,
            y: "row",
            frameAnchor: "right",
            textAnchor: "start",
            dx: 8,
            text: words,
          }),
        ]
        : []),
      tip(points, chart, { x: "y", y: "row" }),
    ],
  };
}

function bars(points: readonly Point[]): Plot.Markish[] {
  const fill = (point: Point): string => color(point.series);
  return [Plot.barX(points, { x: "y", y: "row", fill, fillOpacity: 0.88, rx2: 2 })];
}

function dots(points: readonly Point[]): Plot.Markish[] {
  const x = "y", y = "row";
  return [
    Plot.ruleY(
      points,
      Plot.groupY({ x1: "min", x2: "max" }, {
        x,
        y,
        stroke: "var(--rule-strong)",
        strokeWidth: 1.5,
      }),
    ),
    Plot.dot(points, {
      ...{ x, y, r: 5, fill: (point: Point) => color(point.series) },
      symbol: (point: Point) => styleOf(point.series).symbol,
      ...{ stroke: "var(--paper)", strokeWidth: 1 },
    }),
  ];
}

function ranges(points: readonly Point[]): Plot.Markish[] {
  const spread = points.filter(({ result }) => result.quantiles !== undefined);
  const at = (name: keyof Quantiles) => (point: Point) => point.result.quantiles?.[name];
  const stroke = (point: Point): string => color(point.series);
  const y = "row";
  return [
    Plot.link(spread, { x1: at("min"), x2: at("p99"), y, stroke, strokeWidth: 2 }),
    Plot.link(spread, { x1: at("p25"), x2: at("p75"), y, stroke, strokeWidth: 12 }),
    Plot.dot(spread, { x: at("p999"), y, r: 3.2, fill: stroke }),
    // The middle half may be narrower than a line is thick: the median has to be seen all the same.
    Plot.tickX(spread, { x: at("p50"), y, stroke: INK, strokeWidth: 2 }),
    Plot.dot(points.filter(({ result }) => result.quantiles === undefined), {
      ...{ x: "y", y, r: 5, symbol: "diamond", fill: stroke },
    }),
  ];
}

/** Draws a panel, `width` pixels wide. */
export function drawPanel(chart: Chart, panel: Panel, width: number): Element {
  const options = chart.kind === "lines" ? lines(chart, panel, width) : rows(chart, panel, width);
  return Plot.plot({
    ...options,
    width,
    ariaLabel: [chart.title, panel.title].filter(Boolean).join(", ") || chart.id,
    style: { fontSize: "12px", fontFamily: "inherit", background: "none", overflow: "visible" },
  });
}
