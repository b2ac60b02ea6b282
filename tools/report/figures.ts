/**
 * Charts as they stand in the page before they are drawn.
 *
 * @module
 */
import type { Result } from "../../bench/results.ts";
import { type Axis, type Chart, type Panel, seriesOf } from "./chart.ts";
import { unitName } from "./format.ts";
import { type Html, markup } from "./html.ts";
import { styleOf } from "./style.ts";
import { howList, resultTable } from "./tables.ts";

const SYMBOLS: Record<string, string> = {
  circle: "M6 2a4 4 0 1 0 .01 0z",
  square: "M2.5 2.5h7v7h-7z",
  triangle: "M6 1.5l4.6 8.4H1.4z",
  diamond: "M6 .8L9.6 6 6 11.2 2.4 6z",
  star: "M6 .8l1.4 3.4 3.6.3-2.7 2.4.8 3.6L6 8.6l-3.1 1.9.8-3.6L1 4.5l3.6-.3z",
  cross: "M4.4 1.5h3.2v2.9h2.9v3.2H7.600v2.9H4.400V7.600H1.500V4.400h2.900z",
  wye: "M2.200 1.800L6 4.200l3.800-2.400 1.200 2L7.400 6.400v4.200H4.600V6.400L1 3.800z",
};

function legend(chart: Chart): Html {
  return markup`<ul class="legend">${
    seriesOf(chart).map((name) => {
      const { color, symbol, dash } = styleOf(name);
      const key = chart.kind === "lines"
        ? markup`
          <svg width="34" height="12" aria-hidden="true">
            <path d="M0 6h34" stroke="var(--${color})" stroke-width="2" ${
          dash
            ? markup`
                stroke-dasharray="${dash}"
              `
            : ""
        } />
            <path transform="translate(11)" fill="var(--${color})" d="${SYMBOLS[symbol]}" />
          </svg>
        `
        : markup`
          <svg width="12" height="12" aria-hidden="true">
            <rect width="12" height="12" rx="2" fill="var(--${color})" />
          </svg>
        `;
      return markup`<li>${key}${name}</li>`;
    })
  }</ul>`;
}

function panelView(chart: Chart, { title, points }: Panel): Html {
  // A place as high as its drawing keeps the page from jumping.
  const rows = new Set(points.map(({ row }) => row)).size;
  const height = chart.kind === "lines" ? 230 : rows * 26 + 40;
  return markup`<div class="panel">${
    title === "" ? "" : markup`<h4>${title}</h4>`
  }<div class="plot" style="min-height:${height}px"></div></div>`;
}

/** What is along the axes. */
function axes({ kind, x, y, reference }: Chart): string {
  const of = ({ label, scale }: Axis): string =>
    `${unitName(label)}${scale === "log" ? ", logarithmic" : ""}`;
  const places = kind === "lines" ? [`vertical: ${of(y)}`, `horizontal: ${of(x)}`] : [of(y)];
  const line = reference ? [`the line at ${reference.value} is ${reference.label}`] : [];
  const text = [...places, ...line].join("; ");
  return kind === "lines" ? text[0]!.toUpperCase() + text.slice(1) : text;
}

/** A chart as a figure: legend, places for the drawings, table and methods. */
export function figure(chart: Chart, name: string): Html {
  const caption = chart.title === "" ? name : `${name}: ${chart.title}`;
  return markup`<figure id="chart-${chart.id}" class="${chart.kind} of-${
    Math.min(chart.panels.length, 4)
  }">
<figcaption>${chart.title === "" ? "" : markup`<h3>${chart.title}</h3>`}<p class="axis">${
    axes(chart)
  }</p>${chart.kind === "lines" || chart.kind === "dots" ? legend(chart) : ""}</figcaption>
<div class="panels">${chart.panels.map((panel) => panelView(chart, panel))}</div>
${disclosures(chart.results, caption)}
</figure>`;
}

/** The figures themselves, and how they were measured. */
export function disclosures(results: readonly Result[], caption: string): Html {
  return markup`<details><summary>Figures</summary>${resultTable(results, caption)}</details>
<details><summary>How it was measured</summary>${howList(results)}</details>`;
}
