/**
 * Makes the page: one file that needs nothing else and asks for nothing.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import type { Part, Report } from "../../bench/results.ts";
import type { Bundle } from "./bundle.ts";
import type { Chart } from "./chart.ts";
import { chartsOf, sections } from "./sections.ts";
import { disclosures, figure } from "./figures.ts";
import { Html, markup, scriptJson } from "./html.ts";
import { duration } from "./progress.ts";
import { summary } from "./summary.ts";
import { interopTables } from "./tables.ts";

function notRun(part: string): Html {
  return markup`<p class="missing">Not run. <code>deno task report --only ${part}</code> runs it.</p>`;
}

function failed(error: string): Html {
  return markup`
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
    ? markup`<div class="tables">${part === "interop" ? interopTables(own) : ""}${
      disclosures(own, title)
    }</div>`
    : "";
  return markup`
    <section id="${part}">
    <h2>${title}</h2>
    <p>${text}</p>
    ${error === undefined ? "" : failed(error)}${
    own.length === 0 && error === undefined ? notRun(part) : ""
  }${tables}
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
  const shares = report.facts["busy with other work"];
  const busy = shares === undefined
    ? ""
    : markup`<p class="missing">Something else was running on this machine before these parts began, so that their figures say little: ${shares} of the processors.</p>`;
  const sentences = summary(report.results);
  const findings = sentences.length === 0
    ? ""
    : markup`<ul class="findings">${sentences.map((each) => markup`<li>${each}</li>`)}</ul>`;
  return markup`
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
    <p>Moat sends what lies in a program’s own pages and guards them while they are in flight. This page shows what that costs and what it gives, against copying and against other programs on the same machine.</p>
    ${findings}
    <p class="byline">${report.date.slice(0, 16).replace("T", " ")} UTC, ${
    report
      .facts["cpu"]
  }, ${report.facts["cores"]} cores, ${
    report
      .facts[
        "kernel"
      ]
  }. <a href="#setting">Machine and versions</a>, <a href="report.json">raw figures</a>.</p>
    ${
    failures.length === 0
      ? ""
      : markup`<p class="failed">Failed: ${
        failures.map((name, i) => markup`${i > 0 ? ", " : ""}<a href="#${name}">${name}</a>`)
      }.</p>`
  }${busy}<nav aria-label="Contents"><ol>${
    all.map(({ part, title }) => markup`<li><a href="#${part}">${title}</a></li>`)
  }</ol></nav>
    <noscript><p class="missing">The charts are drawn by a script, which is off; every figure is in the tables.</p></noscript>
        </header>
        <main>
    ${
    all.map((each) => section(each, report, chartsOf(each, report.results)))
  }<section id="setting">
    <h2>Machine, versions and options</h2>
    <div class="scroll"><table class="facts"><tbody>${
    Object.entries({
      ...report.facts,
      date: report.date,
      "time of all parts": duration(ran),
    }).map(([name, fact]) =>
      markup`
        <tr>
          <th scope="row">${name}</th>
          <td>${fact}</td>
        </tr>
      `
    )
  }</tbody></table></div>
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
