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

  /** The first page, a multiple of `align`, of a range of `pages`; or -1 if there is none. */
  take(pages: number, align = 1): number {
    const start = this.#keptAligned(pages, align) ?? this.#carve(pages, align);
    if (start !== undefined) {
      this.available -= pages;
      return start;
    }
    if (this.available < pages || this.#kept.size === 0) return -1;
    this.#join();
    const joined = this.#carve(pages, align);
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

  #keptAligned(pages: number, align: number): number | undefined {
    const kept = this.#kept.get(pages);
    const index = kept?.findLastIndex((start) => start % align === 0) ?? -1;
    return index < 0 ? undefined : kept!.splice(index, 1)[0];
  }

  #carve(pages: number, align: number): number | undefined {
    const first = (start: number): number => Math.ceil(start / align) * align;
    const index = this.#free.findIndex((range) =>
      first(range.start) + pages <= range.start + range.pages
    );
    const range = this.#free[index];
    if (!range) return undefined;
    const start = first(range.start), end = range.start + range.pages;
    const rest = [
      { start: range.start, pages: start - range.start },
      { start: start + pages, pages: end - start - pages },
    ];
    this.#free.splice(index, 1, ...rest.filter((part) => part.pages > 0));
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
