/**
 * What a report is made of, on disk: a file for each part that has been run, so that a run that was interrupted goes
 * on where it was.
 *
 * @module
 */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Report, Result } from "../../bench/results.ts";

/** What a part came to. */
export interface Outcome {
  part: string;
  /** What was measured with what: a result of something else is of no use (see {@linkcode Store.read}). */
  origin: Origin;
  /** When it was begun, ISO 8601. */
  date: string;
  seconds: number;
  /** The share of the processors that was busy with something else before it. */
  busy: number;
  results: Result[];
  /** Why it failed, if it did. */
  error?: string;
}

/** Above this share, what else runs is no longer noise. */
const BUSY = 0.15;

/** What decides whether figures can stand on one page. */
export interface Origin {
  /** Of the code: commit and uncommitted changes, or the version. */
  code: string;
  machine: string;
  runtimes: string;
  quick: boolean;
}

/** The directory of a report. */
export class Store {
  readonly directory: string;
  readonly #origin: Origin;

  constructor(directory: string, origin: Origin) {
    this.directory = directory;
    this.#origin = origin;
    mkdirSync(directory, { recursive: true });
  }

  #path(part: string): string {
    return join(this.directory, `${part}.json`);
  }

  /** What the part came to with the same code, machine, runtimes and form of the benchmarks. */
  read(part: string): Outcome | undefined {
    let outcome: Outcome;
    try {
      outcome = JSON.parse(readFileSync(this.#path(part), "utf8"));
    } catch {
      return undefined; // never run; or not ours, and then it is overwritten
    }
    const same = JSON.stringify(outcome.origin) === JSON.stringify(this.#origin);
    return same && Array.isArray(outcome.results) ? outcome : undefined;
  }

  /** Keeps what a part came to, at once and whole. */
  write(part: string, outcome: Omit<Outcome, "part" | "origin">): void {
    this.writeFile(
      `${part}.json`,
      JSON.stringify({ part, origin: this.#origin, ...outcome }, null, 1),
    );
  }

  /** Writes a file that is never there in half. */
  writeFile(name: string, text: string): string {
    const path = join(this.directory, name);
    writeFileSync(`${path}.new`, text);
    renameSync(`${path}.new`, path);
    return path;
  }

  /** All that there is of these parts. */
  report(parts: readonly { name: string }[], facts: Record<string, string>): Report {
    const outcomes = parts.flatMap(({ name }) => this.read(name) ?? []);
    const busy = outcomes.filter((each) => each.busy > BUSY);
    const shares = busy.map((each) => `${each.part} ${Math.round(each.busy * 100)} %`).join(", ");
    return {
      // The page says so at its head.
      facts: { ...facts, ...(shares === "" ? {} : { "busy with other work": shares }) },
      quick: this.#origin.quick,
      date: outcomes.map(({ date }) => date).sort()[0] ?? new Date().toISOString(),
      seconds: Object.fromEntries(outcomes.map(({ part, seconds }) => [part, seconds])),
      results: outcomes.flatMap(({ results }) => results),
      failed: Object.fromEntries(
        outcomes.flatMap(({ part, error }) => error === undefined ? [] : [[part, error]]),
      ),
    };
  }
}
