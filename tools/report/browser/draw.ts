/// <reference lib="dom" />
/**
 * Draws a panel of a chart with Observable Plot. Colours are variables of the page's style sheet, so that a drawing
 * is right in light and dark.
 *
 * @module
 */
import * as Plot from "@observablehq/plot@0.6.17";
import { type Axis, type Chart, type Panel, type Point, seriesOf } from "../chart.ts";
import { number, quantity, tick } from "../format.ts";
import { styleOf } from "../style.ts";
import { bytesTicks, logTicks } from "../ticks.ts";
import { sizeName } from "../../../bench/stats.ts";

const BAR = 26, INK = "var(--ink)", SOFT = "var(--rule)";

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

/** The scale of an axis on which figures are, with ticks that fit. */
function scale(
  { scale: form }: Axis,
  values: readonly number[],
  unit: string,
  ticks: number,
): Plot.ScaleOptions {
  const least = Math.min(...values), most = Math.max(...values);
  if (form === "bytes") {
    const all = bytesTicks(least, most, ticks);
    return { type: "log", base: 2, domain: [least, most], ticks: all, tickFormat: sizeName };
  }
  const tickFormat = (value: number): string => tick(value, unit);
  if (form === "log") {
    const margin = Math.max(1.04, (most / least) ** 0.04);
    const domain = [least / margin, most * margin];
    return { type: "log", domain, ticks: logTicks(domain[0]!, domain[1]!, ticks), tickFormat };
  }
  return { domain: [0, unit === "ratio" ? 1 : most * 1.06], ticks, tickFormat };
}

function values(chart: Chart): number[] {
  const all = chart.panels.flatMap(({ points }) => points);
  const spread = chart.kind === "ranges"
    ? all.flatMap(({ result: { quantiles } }) => quantiles ? [quantiles.min, quantiles.max] : [])
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
  return {
    height: Math.round(Math.min(320, Math.max(230, width * 0.62))),
    marginLeft: 44,
    marginRight: 18,
    marginBottom: 34,
    x: {
      ...scale(chart.x, xs, "", Math.max(2, Math.floor(width / 76))),
      label: chart.x.label,
      labelAnchor: "right",
      labelArrow: "none",
      tickSize: 4,
      insetLeft: 6,
      insetRight: 6,
    },
    y: { ...scale(chart.y, values(chart), unitOf(chart), 6), label: null, tickSize: 0 },
    marks: [
      Plot.gridY({ stroke: SOFT, strokeOpacity: 1 }),
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
            ...{ x: "x", y: "y", symbol, r: 3.4, fill: color(name) },
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

/** A row for every series: its name above, so that a narrow page has room for the figures. */
function rows(chart: Chart, panel: Panel, width: number): Plot.PlotOptions {
  const { points } = panel;
  const order = seriesOf(chart);
  const names = [...new Set(points.map(({ series }) => series))].sort((a, b) =>
    order.indexOf(a) - order.indexOf(b)
  );
  const wide = width >= 560;
  const longest = Math.max(...names.map((name) => name.length));
  const marginLeft = wide ? Math.min(260, Math.max(110, longest * 6.9 + 16)) : 8;
  const row = chart.kind === "ranges" ? 34 : wide ? BAR : 40;
  const unit = unitOf(chart);
  const y = { domain: names, label: null, tickSize: 0, padding: wide ? 0.34 : 0.62 };
  const x = scale(chart.y, values(chart), unit, Math.max(2, Math.floor((width - marginLeft) / 90)));
  const least = (x.domain as number[])[0]!;
  const marks: Plot.Markish[] = [Plot.gridX({ stroke: SOFT, strokeOpacity: 1 })];
  if (chart.kind === "bars") {
    marks.push(
      Plot.barX(points, {
        ...{ x1: () => least, x2: "y", y: "series", rx2: 2 },
        fill: (point: Point) => color(point.series),
        fillOpacity: 0.85,
      }),
      Plot.text(points, {
        ...{ x: "y", y: "series", textAnchor: "start", dx: 6, fill: INK },
        text: (point: Point) => quantity(point.result.value, point.result.unit),
        stroke: "var(--paper)",
        strokeWidth: 4,
      }),
    );
  } else {
    marks.push(...ranges(points));
  }
  if (chart.reference) {
    marks.push(Plot.ruleX([chart.reference.value], { stroke: INK, strokeDasharray: "3 3" }));
  }
  if (wide) marks.push(Plot.axisY({ tickSize: 0, label: null, fill: INK, fontSize: 13 }));
  else {
    marks.push(Plot.text(names, {
      ...{ y: (name: string) => name, text: (name: string) => name, frameAnchor: "left" as const },
      ...{ textAnchor: "start" as const, dx: 0, dy: -16, fill: INK, fontSize: 13 },
    }));
  }
  marks.push(tip(points, chart, { x: "y", y: "series" }));
  return {
    height: names.length * row + 34 + (wide ? 0 : 12),
    marginLeft,
    marginRight: chart.kind === "bars" ? 110 : 24,
    marginTop: wide ? 6 : 16,
    marginBottom: 28,
    x: { ...x, label: null, tickSize: 0 },
    y: { ...y, axis: null },
    marks,
  };
}

function ranges(points: readonly Point[]): Plot.Markish[] {
  const spread = points.filter(({ result }) => result.quantiles !== undefined);
  const at = (name: "min" | "p25" | "p50" | "p75" | "p99" | "p999" | "max") => (point: Point) =>
    point.result.quantiles?.[name];
  const stroke = (point: Point): string => color(point.series);
  const y = "series";
  return [
    Plot.link(spread, { x1: at("min"), x2: at("p99"), y, stroke, strokeWidth: 2 }),
    Plot.link(spread, {
      ...{ x1: at("p25"), x2: at("p75"), y, stroke, strokeWidth: 12, strokeLinecap: "butt" },
    }),
    Plot.dot(spread, { x: at("p999"), y, r: 3, fill: stroke }),
    Plot.dot(spread, { x: at("max"), y, r: 3, stroke, fill: "var(--paper)", strokeWidth: 1.6 }),
    // The middle half may be narrower than a line is thick: the median has to be seen all the same.
    Plot.tickX(spread, {
      x: at("p50"),
      y,
      stroke: "var(--paper)",
      strokeWidth: 5,
      insetTop: 4,
      insetBottom: 4,
    }),
    Plot.tickX(spread, {
      x: at("p50"),
      y,
      stroke: INK,
      strokeWidth: 2,
      insetTop: 3,
      insetBottom: 3,
    }),
    Plot.dot(points.filter(({ result }) => result.quantiles === undefined), {
      ...{ x: "y", y, r: 5, symbol: "diamond", fill: stroke },
    }),
    Plot.text(points, {
      ...{ x: (point: Point) => at("p50")(point) ?? point.y, y, dy: -17, fill: INK },
      text: (point: Point) => quantity(at("p50")(point) ?? point.y, point.result.unit),
      ...{ stroke: "var(--paper)", strokeWidth: 4 },
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
