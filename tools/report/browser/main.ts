/// <reference lib="dom" />
/**
 * The program of the page: draws the charts of the results that are embedded in it, again whenever their width
 * changes. Everything else is in the page already.
 *
 * @module
 */
import type { Report } from "../../../bench/results.ts";
import { chartsOf, sections } from "../sections.ts";
import { drawPanel } from "./draw.ts";

const report: Report = JSON.parse(document.getElementById("report")!.textContent!);

for (const section of sections) {
  for (const chart of chartsOf(section, report.results)) {
    const places = document.querySelectorAll<HTMLElement>(`#chart-${chart.id} .plot`);
    chart.panels.forEach((panel, i) => {
      const place = places[i]!;
      let drawn = 0;
      new ResizeObserver(() => {
        const width = Math.floor(place.clientWidth);
        if (width === drawn || width === 0) return;
        drawn = width;
        place.replaceChildren(drawPanel(chart, panel, width));
      }).observe(place);
    });
  }
}
