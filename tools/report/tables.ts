/**
 * The tables of the report: the figures behind a chart, and the four ways of avoiding copies.
 *
 * @module
 */
import type { Quantiles, Result } from "../../bench/results.ts";
import { groupBy, runtimeName, seriesName } from "./chart.ts";
import { number, place, quantity, unitName } from "./format.ts";
import { type Html, markup } from "./html.ts";

const QUANTILES: [keyof Quantiles, string][] = [
  ["min", "fastest"],
  ["p25", "25 in 100"],
  ["p50", "median"],
  ["p75", "75 in 100"],
  ["p99", "99 in 100"],
  ["p999", "999 in 1,000"],
  ["max", "slowest"],
];

interface Column {
  name: string;
  figure: boolean;
  cell(result: Result): string | undefined;
}

/** Every result with all that is known of it; columns that are empty or say nothing are left out. */
export function resultTable(results: readonly Result[], caption: string): Html {
  const keys = [...new Set(results.flatMap(({ at }) => Object.keys(at)))];
  const all: Column[] = [
    { name: "what", figure: false, cell: seriesName },
    ...keys.map((key): Column => ({
      name: key,
      figure: results.some(({ at }) => typeof at[key] === "number"),
      cell: ({ at }) => at[key] === undefined ? undefined : place(key, at[key]),
    })),
    { name: "value", figure: true, cell: ({ value }) => number(value) },
    { name: "unit", figure: false, cell: ({ unit }) => unitName(unit) },
    { name: "is", figure: false, cell: ({ statistic }) => statistic },
    { name: "samples", figure: true, cell: ({ samples }) => samples?.toLocaleString("en") },
    ...QUANTILES.map(([key, name]): Column => ({
      name,
      figure: true,
      cell: ({ quantiles }) => quantiles?.[key] === undefined ? undefined : number(quantiles[key]),
    })),
  ];
  const columns = all.filter(({ cell }) => results.some((each) => cell(each) !== undefined));
  const attribute = ({ figure }: Column): Html =>
    figure
      ? markup`
        class="figure"
      `
      : markup``;
  return markup`
    <div class="scroll" tabindex="0" role="region" aria-label="${caption}">
      <table>
        <caption>${caption}</caption>
        <thead>
          <tr>${
    columns.map((column) =>
      markup`
              <th scope="col" ${attribute(column)}>${column.name}</th>
            `
    )
  }</tr>
        </thead>
        <tbody>
    ${
    results.map((result) =>
      markup`
        <tr>${
        columns.map((column, i) =>
          i === 0
            ? markup`<th scope="row">${column.cell(result)}</th>`
            : markup`<td${attribute(column)}>${column.cell(result)}</td>`
        )
      }</tr>
      `
    )
  }</tbody>
      </table>
    </div>
  `;
}

/** How results were measured: each method once, with what was measured by it. */
export function howList(results: readonly Result[]): Html {
  return markup`<dl class="how">${
    groupBy(results, ({ how }) => how).map(([how, members]) => {
      const names = [...new Set(members.map(seriesName))];
      return markup`
        <dt>${names.join("; ")}</dt>
        <dd><code>${how}</code></dd>
      `;
    })
  }</dl>`;
}

const WAYS = ["copied", "not copied"];
/** What is told of a way beside its speed. */
const SAID: Record<string, string> = { both: "processors", copies: "copied by the library" };

/** Two by two: copies in the network, copies in file I/O. */
export function interopTables(results: readonly Result[]): Html {
  const groups = groupBy(
    results.filter(({ at }) =>
      WAYS.includes(String(at["network"])) && WAYS.includes(String(at["file"]))
    ),
    ({ at, runtime }) =>
      [`${at["transport"] ?? ""}://`, runtimeName(runtime)].filter(Boolean).join(", "),
  );
  return markup`<div class="ways">${
    groups.map(([name, group]) => {
      const rates = group.filter(({ unit }) => unit === "GB/s");
      const best = Math.max(...rates.map(({ value }) => value));
      const cell = (network: string, file: string): Html => {
        const own = group.filter(({ at }) => at["network"] === network && at["file"] === file);
        const rate = own.find(({ unit }) => unit === "GB/s");
        const share = rate ? (100 * rate.value / best).toFixed(1) : "0";
        const others = own.flatMap((result) => {
          const said = SAID[String(result.at["what"])];
          return said === undefined ? [] : [`${said}: ${quantity(result.value, result.unit)}`];
        });
        return markup`<td><div class="rate"><b>${
          rate ? quantity(rate.value, rate.unit) : "–"
        }</b><i style="width:${share}%"></i></div>${
          others.map((other) => markup`<small>${other}</small>`)
        }</td>`;
      };
      return markup`
        <table class="way">
          <caption>${name}</caption>
          <thead>
            <tr><td></td>${WAYS.map((file) => markup`<th scope="col">file ${file}</th>`)}</tr>
          </thead>
          <tbody>${
        WAYS.map((network) =>
          markup`<tr><th scope="row">network ${network}</th>${
            WAYS.map((file) => cell(network, file))
          }</tr>`
        )
      }</tbody>
        </table>
      `;
    })
  }</div>`;
}
