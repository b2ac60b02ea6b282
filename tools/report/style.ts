/**
 * What a series looks like: the same on every chart. No two on one chart differ by colour alone.
 *
 * @module
 */

/** The look of a series. */
export interface Style {
  /** A colour of style.css, which has one for light and one for dark pages. */
  color: string;
  symbol: "circle" | "square" | "triangle" | "diamond" | "star" | "cross" | "wye";
  dash: string;
  order: number;
}

const LOOKS: [RegExp, Omit<Style, "order">][] = [
  [/^Moat(, spinning)?, Deno$/, { color: "blue", symbol: "circle", dash: "" }],
  [/^Moat(, spinning)?, Bun$/, { color: "green", symbol: "square", dash: "" }],
  [/^Moat(, spinning)?, Deno to Bun$/, { color: "sky", symbol: "triangle", dash: "" }],
  [/^processor’s time, Deno$/, { color: "blue", symbol: "diamond", dash: "2 3" }],
  [/^processor’s time, Bun$/, { color: "green", symbol: "cross", dash: "2 3" }],
  [/^Moat/, { color: "blue", symbol: "circle", dash: "" }],
  [/^auto\b/, { color: "ink", symbol: "star", dash: "" }],
  [/^cow\b/, { color: "blue", symbol: "circle", dash: "" }],
  [/^wait\b/, { color: "green", symbol: "square", dash: "" }],
  [/^copy\b/, { color: "red", symbol: "triangle", dash: "" }],
  [/^none\b/, { color: "grey", symbol: "cross", dash: "4 3" }],
  [/^ucx/, { color: "red", symbol: "diamond", dash: "6 3" }],
  [/^fi_/, { color: "purple", symbol: "wye", dash: "6 3" }],
  [/^iperf/, { color: "amber", symbol: "star", dash: "6 3" }],
  [/^(perftest|ib_)/, { color: "amber", symbol: "diamond", dash: "6 3" }],
  [/^(Sockets of Deno|Plain sockets)/, { color: "grey", symbol: "cross", dash: "2 3" }],
  [/^Sockets of Bun/, { color: "grey", symbol: "triangle", dash: "2 3" }],
  [/^Deno$/, { color: "blue", symbol: "circle", dash: "" }],
  [/^Bun$/, { color: "green", symbol: "square", dash: "" }],
];
const OTHER: Omit<Style, "order"> = { color: "purple", symbol: "wye", dash: "1 3" };

/** The look of the series with this name. */
export function styleOf(name: string): Style {
  const found = LOOKS.findIndex(([pattern]) => pattern.test(name));
  return found < 0 ? { ...OTHER, order: LOOKS.length } : { ...LOOKS[found]![1], order: found };
}
