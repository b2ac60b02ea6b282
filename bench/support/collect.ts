/**
 * From rounds of measurements to results, and from results to tables.
 *
 * @module
 */
import type { Result } from "../results.ts";
import { digits, median, table } from "../stats.ts";

/** What identifies a figure, and how it was measured. */
export type Figure = Omit<Result, "value" | "statistic" | "samples" | "rounds">;

/** Values that were measured, by what they are of. */
export class Rounds {
  readonly #results = new Map<string, Result>();

  /** Adds what a round gave. */
  add(figure: Figure, value: number): void {
    const { part, series, runtime, at, unit } = figure;
    const key = JSON.stringify([part, series, runtime, at, unit]);
    const result = this.#results.get(key) ?? { ...figure, value: 0, rounds: [] };
    result.rounds!.push(value);
    this.#results.set(key, result);
  }

  /** The results: of each the median of its rounds. */
  results(): Result[] {
    return [...this.#results.values()].map((result) => ({
      ...result,
      value: median(result.rounds!),
      statistic: "median",
      samples: result.rounds!.length,
    }));
  }
}

/** Finds the one result of a series and a runtime whose `at` has these values. */
export function find(
  results: readonly Result[],
  series: string,
  runtime: string | undefined,
  at: Record<string, string | number>,
): Result | undefined {
  return results.find((result) =>
    result.series === series && result.runtime === runtime &&
    Object.entries(at).every(([key, value]) => result.at[key] === value)
  );
}

/** A value as it is printed in a table. */
export function cell({ value, unit }: Result): string {
  return unit === "messages/s" ? `${(value / 1e6).toFixed(2)} M` : digits(value);
}

/** A table with a row for each `row` and a column for each `column` that there is, in the order of the results. */
export function pivot(
  results: readonly Result[],
  row: (result: Result) => string,
  column: (result: Result) => string,
  show: (result: Result) => string = cell,
): string {
  const rows = [...new Set(results.map(row))], columns = [...new Set(results.map(column))];
  const cells = new Map(results.map((result) => [`${row(result)}\n${column(result)}`, result]));
  return table([
    ["", ...columns],
    ...rows.map((each) => [
      each,
      ...columns.map((other) => {
        const result = cells.get(`${each}\n${other}`);
        return result ? show(result) : "";
      }),
    ]),
  ]);
}

/** The target of a comparison, as a line: "ok" or "missed". */
export function target(name: string, value: number, most: boolean, wanted: number): string {
  const ok = most ? value <= wanted : value >= wanted;
  const limit = `${most ? "at most" : "at least"} ${wanted}`;
  return `  ${ok ? "ok    " : "missed"}  ${name}: ${digits(value)}, target ${limit}`;
}
