/**
 * Figures and places as people read them.
 *
 * @module
 */
import { sizeName } from "../../bench/stats.ts";

/** A number in three digits. */
export function number(value: number): string {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e15 || size < 1e-4) return value.toExponential(2);
  return Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 7 });
}

/** A figure with its unit. */
export function quantity(value: number, unit: string): string {
  switch (unit) {
    case "ratio":
      return `${number(value * 100)} %`;
    case "copies":
      return `${number(value)} times`;
    case "ns":
      return value >= 1e6
        ? `${number(value / 1e6)} ms`
        : value >= 1000
        ? `${number(value / 1000)} µs`
        : `${number(value)} ns`;
    case "us":
      return value >= 1e6
        ? `${number(value / 1e6)} s`
        : value >= 1000
        ? `${number(value / 1000)} ms`
        : `${number(value)} µs`;
    case "KiB":
      return value >= 1024 ? `${number(value / 1024)} MiB` : `${number(value)} KiB`;
    case "messages/s":
      return value >= 1e6
        ? `${number(value / 1e6)} million messages/s`
        : `${number(value)} messages/s`;
    default:
      return `${number(value)} ${unit}`;
  }
}

/** A unit as it stands at an axis or in the head of a column. */
export function unitName(unit: string): string {
  return unit === "us" ? "µs" : unit === "ratio" ? "share" : unit;
}

/** A number on an axis. */
export function tick(value: number, unit: string): string {
  if (unit === "ratio") return `${number(value * 100)} %`;
  if (value >= 1e6) return `${number(value / 1e6)}M`;
  return value >= 1e4 ? `${number(value / 1e3)}k` : number(value);
}

/** What `at` says under a key. */
export function place(key: string, value: string | number): string {
  if (key === "bytes" && typeof value === "number") return sizeName(value);
  return typeof value === "number" ? value.toLocaleString("en") : value;
}
