/**
 * Says how far a run is: one line that is written again and again on a terminal, a line for each part elsewhere.
 *
 * @module
 */
import type { Part } from "../../bench/results.ts";

/** Seconds as people say them. */
export function duration(seconds: number): string {
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** How far a run is. */
export class Progress {
  readonly #parts: readonly Part[];
  readonly #quick: boolean;
  readonly #print: (text: string) => void;
  readonly #width: number | undefined;
  readonly #start = performance.now();
  #current = 0;
  #begun = 0;
  /** Of the parts that have ended: what they took, and what they were said to take. */
  #took = 0;
  #estimated = 0;
  #said = "";
  #timer: ReturnType<typeof setInterval> | undefined;

  /** `width` is that of the terminal, or undefined where there is none. */
  constructor(
    parts: readonly Part[],
    quick: boolean,
    print: (text: string) => void,
    width: number | undefined,
  ) {
    this.#parts = parts;
    this.#quick = quick;
    this.#print = print;
    this.#width = width;
  }

  #seconds(part: Part): number {
    return this.#quick ? part.seconds.quick : part.seconds.full;
  }

  /** Seconds that are left: what the parts were said to take, as much longer as the ones before took. */
  left(): number {
    const slower = this.#estimated > 0 ? this.#took / this.#estimated : 1;
    const rest = this.#parts.slice(this.#current).map((part) => this.#seconds(part));
    const running = this.#begun > 0 ? (performance.now() - this.#begun) / 1000 : 0;
    const [now = 0, ...later] = rest.map((seconds) => seconds * slower);
    return Math.max(0, now - running) + later.reduce((sum, seconds) => sum + seconds, 0);
  }

  #head(part: Part): string {
    const place = `part ${this.#current + 1} of ${this.#parts.length}`;
    return `${place}: ${part.name}`;
  }

  #line(): string {
    const elapsed = (performance.now() - this.#start) / 1000;
    const times = `${duration(elapsed)} so far, about ${duration(this.left())} left`;
    return `${this.#head(this.#parts[this.#current]!)}  ${times}`;
  }

  #draw(): void {
    if (this.#width === undefined) return;
    const text = `${this.#line()}${this.#said === "" ? "" : `  ${this.#said}`}`;
    this.#print(`\r\x1b[K${text.slice(0, this.#width - 1)}`);
  }

  /** A part begins. */
  begin(part: Part): void {
    this.#current = this.#parts.indexOf(part);
    this.#begun = performance.now();
    this.#said = "";
    if (this.#width === undefined) return this.#print(`${this.#line()}\n`);
    this.#draw();
    this.#timer = setInterval(() => this.#draw(), 1000);
  }

  /** A part says what it does. */
  say(line: string): void {
    if (line.trim() === "") return;
    this.#said = line.trim();
    this.#draw();
  }

  /** A part has ended. */
  end(part: Part, results: number, error: string | undefined): void {
    const seconds = (performance.now() - this.#begun) / 1000;
    const figures = results === 1 ? "1 figure" : `${results} figures`;
    const came = error === undefined ? figures : `FAILED: ${error.split("\n")[0]}`;
    this.stop();
    this.#print(`${this.#head(part)}  ${duration(seconds)}  ${came}\n`);
    this.#took += seconds;
    this.#estimated += this.#seconds(part);
    this.#current++;
    this.#begun = 0;
  }

  /** Nothing more is said. */
  stop(): void {
    clearInterval(this.#timer);
    if (this.#width !== undefined) this.#print("\r\x1b[K");
  }
}
