/**
 * Makes the page: one file that needs nothing else and asks for nothing.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import type { Part, Report, Result } from "../../bench/results.ts";
import type { Bundle } from "./bundle.ts";
import { type Chart, type Panel, seriesOf } from "./chart.ts";
import { chartsOf, sections } from "./sections.ts";
import { unitName } from "./format.ts";
import { Html, html, scriptJson } from "./html.ts";
import { duration } from "./progress.ts";
import { styleOf } from "./style.ts";
import { summary } from "./summary.ts";
import { howList, interopTables, resultTable } from "./tables.ts";

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
  return html`<ul class="legend">${
    seriesOf(chart).map((name) => {
      const { color, symbol, dash } = styleOf(name);
      const key = chart.kind === "lines"
        ? html`
          <svg width="34" height="12" aria-hidden="true">
            <path d="M0 6h34" stroke="var(--${color})" stroke-width="2" ${dash
              ? html`
                stroke-dasharray="${dash}"
              `
              : ""} />
            <path transform="translate(11)" fill="var(--${color})" d="${SYMBOLS[symbol]}" />
          </svg>
        `
        : html`
          <svg width="12" height="12" aria-hidden="true">
            <rect width="12" height="12" rx="2" fill="var(--${color})" />
          </svg>
        `;
      return html`<li>${key}${name}</li>`;
    })
  }</ul>`;
}

function panelView(chart: Chart, { title, points }: Panel): Html {
  // A place as high as its drawing keeps the page from jumping.
  const rows = new Set(points.map(({ series }) => series)).size;
  const height = chart.kind === "lines" ? 230 : rows * 26 + 40;
  return html`<div class="panel">${
    title === "" ? "" : html`<h4>${title}</h4>`
  }<div class="plot" style="min-height:${height}px"></div></div>`;
}

function figure(chart: Chart, name: string): Html {
  const caption = chart.title === "" ? name : `${name}: ${chart.title}`;
  const form = chart.kind === "lines" ? "lines" : "rows";
  const axis = unitName(chart.y.label);
  return html`<figure id="chart-${chart.id}" class="${form} of-${Math.min(chart.panels.length, 3)}">
<figcaption>${chart.title === "" ? "" : html`<h3>${chart.title}</h3>`}<p class="axis">${
    chart.kind === "lines"
      ? html`
        Vertical:
      `
      : ""
  }${axis}${chart.y.scale === "log" ? ", logarithmic" : ""}${
    chart.reference ? html`; the line at ${chart.reference.value} is ${chart.reference.label}` : ""
  }</p>${chart.kind === "lines" ? legend(chart) : ""}</figcaption>
<div class="panels">${chart.panels.map((panel) => panelView(chart, panel))}</div>
${disclosures(chart.results, caption)}
</figure>`;
}

function disclosures(results: readonly Result[], caption: string): Html {
  return html`<details><summary>Figures</summary>${resultTable(results, caption)}</details>
<details><summary>How it was measured</summary>${howList(results)}</details>`;
}

function notRun(part: string): Html {
  return html`<p class="missing">Not run. <code>deno task report --only ${part}</code> runs it.</p>`;
}

function failed(error: string): Html {
  return html`
    <div class="failed" role="note">
      <p><strong>This part failed.</strong></p>
      <pre>${error}</pre>
    </div>
  `;
}

function section(
  { part, title, text }: { part: string; title: string; text: string },
  report: Report,
  charts: readonly Chart[],
): Html {
  const own = report.results.filter((result) => result.part === part);
  const error = report.failed[part];
  const tables = charts.length > 0
    ? charts.map((chart) => figure(chart, title))
    : own.length > 0
    ? html`<div class="tables">${part === "interop" ? interopTables(own) : ""}${
      disclosures(own, title)
    }</div>`
    : "";
  return html`
    <section id="${part}">
    <h2>${title}</h2>
    <p>${text}</p>
    ${error === undefined ? "" : failed(error)}${own.length === 0 && error === undefined
      ? notRun(part)
      : ""}${tables}
    </section>
  `;
}

/** What {@linkcode page} is made of. */
export interface PageOptions {
  report: Report;
  /** All parts that there are. */
  parts: readonly Pick<Part, "name" | "title" | "about">[];
  bundle: Bundle;
}

/** The page. */
export function page({ report, parts, bundle }: PageOptions): string {
  const style = readFileSync(new URL("style.css", import.meta.url), "utf8");
  const hash = createHash("sha256").update(bundle.script).digest("base64");
  const policy = `default-src 'none'; script-src 'sha256-${hash}'; style-src 'unsafe-inline'; ` +
    "img-src data:; base-uri 'none'; form-action 'none'";
  const known = new Set(sections.map(({ part }) => part));
  const all = [
    ...sections,
    ...parts.filter(({ name }) => !known.has(name)).map(({ name, title, about }) => ({
      ...{ part: name, title, text: about, charts: () => [] },
    })),
  ];
  const ran = Object.values(report.seconds).reduce((sum, seconds) => sum + seconds, 0);
  const failures = Object.keys(report.failed);
  const sentences = summary(report.results);
  return html`
    <!DOCTYPE html>
    <html lang="en">
      <head>
        <meta charset="utf-8">
        <meta http-equiv="Content-Security-Policy" content="${policy}">
        <meta name="viewport" content="width=device-width, initial-scale=1">
        <meta name="color-scheme" content="light dark">
        <meta name="referrer" content="no-referrer">
        <link rel="icon" href="data:,">
        <title>Moat: measurements</title>
        <style>
    ${new Html(style)}</style>
      </head>
      <body>
        <header>
    <h1>Moat: measurements</h1>
    <p>Moat sends what lies in a program’s own pages and guards them while they are in flight. This page shows what that costs and what it gives, against copying and against other programs on the same machine.${sentences
      .map((sentence) =>
        html`
          ${sentence}
        `
      )}</p>
    <p class="byline">${report.date.slice(0, 16).replace("T", " ")} UTC, ${report
      .facts["cpu"]}, ${report.facts["cores"]} cores, ${report
      .facts[
        "kernel"
      ]}. <a href="#setting">Machine and versions</a>, <a href="report.json">raw figures</a>.</p>
    ${failures.length === 0
      ? ""
      : html`<p class="failed">Failed: ${
        failures.map((name, i) => html`${i > 0 ? ", " : ""}<a href="#${name}">${name}</a>`)
      }.</p>`}<nav aria-label="Contents"><ol>${all.map(({ part, title }) =>
        html`<li><a href="#${part}">${title}</a></li>`
      )}</ol></nav>
    <noscript><p class="missing">The charts are drawn by a script, which is off; every figure is in the tables.</p></noscript>
        </header>
        <main>
    ${all.map((each) =>
      section(each, report, chartsOf(each, report.results))
    )}<section id="setting">
    <h2>Machine, versions and options</h2>
    <div class="scroll"><table class="facts"><tbody>${Object.entries({
      ...report.facts,
      date: report.date,
      "time of all parts": duration(ran),
    }).map(([name, fact]) =>
      html`
        <tr>
          <th scope="row">${name}</th>
          <td>${fact}</td>
        </tr>
      `
    )}</tbody></table></div>
    <p>What is compared was measured in turns in one run. A figure is a median where its table does not say otherwise. The raw figures are in <a href="report.json">report.json</a> beside this page and, the same, in the page itself.</p>
    </section>
        </main>
        <footer>
          <p>Drawn with Observable Plot and D3; their licences are at the end of this page’s source.</p>
        </footer>
        <script type="application/json" id="report">${scriptJson(report)}</script>
        <script type="module">${new Html(bundle.script)}</script>
      </body>
    </html>
    <!--
    ${new Html(bundle.licences.replaceAll("--", "- -"))}
    -->
  `.text;
}
