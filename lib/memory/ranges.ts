/**
 * Ranges of pages: which parts of a window are taken.
 *
 * @module
 */

/**
 * Hands out ranges of a fixed number of pages. A range given back is kept as it is and handed out
 * first when one of the same size is asked for (the region cache of Brustoloni's "move": its mappings
 * are warm); ranges are joined only when a request cannot be met otherwise.
 */
export class Ranges {
  readonly #kept = new Map<number, number[]>();
  #free: { start: number; pages: number }[];
  /** Pages that are not handed out. */
  available: number;

  /** Makes an allocator for pages 0 to `pages`. */
  constructor(pages: number) {
    this.#free = pages > 0 ? [{ start: 0, pages }] : [];
    this.available = pages;
  }

  /** The first page of a range of `pages`, or -1 if there is none. */
  take(pages: number): number {
    const start = this.#kept.get(pages)?.pop() ?? this.#carve(pages);
    if (start !== undefined) {
      this.available -= pages;
      return start;
    }
    if (this.available < pages || this.#kept.size === 0) return -1;
    this.#join();
    const joined = this.#carve(pages);
    if (joined === undefined) return -1;
    this.available -= pages;
    return joined;
  }

  /** Takes a range back. */
  give(start: number, pages: number): void {
    const kept = this.#kept.get(pages);
    if (kept) kept.push(start);
    else this.#kept.set(pages, [start]);
    this.available += pages;
  }

  #carve(pages: number): number | undefined {
    const index = this.#free.findIndex((range) => range.pages >= pages);
    const range = this.#free[index];
    if (!range) return undefined;
    const start = range.start;
    range.start += pages;
    range.pages -= pages;
    if (range.pages === 0) this.#free.splice(index, 1);
    return start;
  }

  #join(): void {
    const all = this.#free;
    for (const [pages, starts] of this.#kept) {
      for (const start of starts) all.push({ start, pages });
    }
    this.#kept.clear();
    all.sort((a, b) => a.start - b.start);
    this.#free = [];
    for (const range of all) {
      const last = this.#free.at(-1);
      if (last && last.start + last.pages === range.start) last.pages += range.pages;
      else this.#free.push(range);
    }
  }
}
