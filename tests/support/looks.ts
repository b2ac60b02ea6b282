/**
 * What is asked of a page in a browser: functions that run there, so nothing outside of them is in reach.
 *
 * @module
 */
/// <reference lib="dom" />

/** A drawing of a chart. */
export interface Drawing {
  name: string;
  /** Pixels. */
  width: number;
  room: number;
  /** Shapes that stand for figures, by what they are. */
  marks: number;
}

/** The drawings of the page, and the figures that should have one. */
export function drawings(): { figures: number; drawings: Drawing[] } {
  const shapes = ["dot", "line", "bar", "link", "tick"].map((name) => `g[aria-label=${name}] *`);
  const found = [...document.querySelectorAll<HTMLElement>("figure .plot")].map((plot) => {
    const svg = plot.querySelector("svg");
    const marks = [...plot.querySelectorAll(shapes.join())].filter((shape) => {
      const { width, height } = shape.getBoundingClientRect();
      return width + height > 0;
    });
    return {
      name: `${plot.closest("figure")!.id}: ${svg?.getAttribute("aria-label")}`,
      ...{ width: svg?.getBoundingClientRect().width ?? 0, room: plot.clientWidth },
      marks: marks.length,
    };
  });
  return { figures: document.querySelectorAll("figure").length, drawings: found };
}

/** What is wider than the screen, or writes beyond its edge. */
export function overflowing(): string[] {
  const { scrollWidth, clientWidth } = document.documentElement;
  const found = scrollWidth > clientWidth ? [`the page: ${scrollWidth} of ${clientWidth}`] : [];
  for (const text of document.querySelectorAll("svg text")) {
    const { left, right, width } = text.getBoundingClientRect();
    if (width > 0 && (left < 0 || right > clientWidth)) found.push(`"${text.textContent}"`);
  }
  return found;
}

/** Texts whose contrast to what they stand on is below 4.5, as WCAG 2 computes it. */
export function faint(): string[] {
  const parse = (text: string): number[] => (text.match(/[\d.]+/g) ?? []).map(Number);
  const luminance = (text: string): number => {
    const [r, g, b] = parse(text).slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    }) as [number, number, number];
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element: Element | null): string => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (parse(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = new Set<string>();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement!;
    if (node.textContent!.trim() === "" || element.closest("script, style, noscript")) continue;
    const style = getComputedStyle(element);
    const color = element.closest("svg") ? style.fill : style.color, under = ground(element);
    const [a, b] = [luminance(color), luminance(under)].sort((x, y) => y - x) as [number, number];
    const contrast = (a + 0.05) / (b + 0.05);
    if (!(contrast >= 4.5)) {
      found.add(
        `${node.textContent!.trim().slice(0, 30)}: ${color} on ${under}, ${contrast.toFixed(2)}`,
      );
    }
  }
  return [...found];
}
