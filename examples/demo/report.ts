/**
 * What the demo prints: a progress bar, and a table.
 *
 * @module
 */
import process from "node:process";
import type { Outcome } from "./run.ts";

/** A bar on standard error; nothing where that is not a terminal. */
export class ProgressBar {
  readonly #title: string;
  readonly #total: number;

  /** Draws an empty bar for `total` bytes. */
  constructor(title: string, total: number) {
    this.#title = title;
    this.#total = total;
    this.draw(0);
  }

  /** Shows that `bytes` are done. */
  draw(bytes: number): void {
    if (!process.stderr.isTTY) return;
    const width = 30, done = Math.round(width * Math.min(1, bytes / this.#total));
    const bar = "█".repeat(done) + "░".repeat(width - done);
    const percent = Math.floor(100 * bytes / this.#total);
    process.stderr.write(`\r\x1b[K${this.#title}  ${bar} ${percent} %`);
  }

  /** Removes the bar. */
  clear(): void {
    if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  }
}

/** A line of the table. */
export interface Row {
  guard: string;
  overwritten: boolean;
  outcome: Outcome;
  /** Whether what arrived is what the file holds. */
  intact: boolean;
}

const HEADERS = [
  ["", "buffers in", "through-", "send and", "", "private", "copied by", ""],
  ["guard", "flight", "put", "overwrite", "faults", "pages", "the CPU", "SHA-256"],
];

/** The explanation of the table. */
export const CAPTION = `
throughput    of the transfer, from the connection to the finished SHA-256: hashing is included
send and      the sender's time for each message in send() and in overwriting its buffer, with the
 overwrite    faults and waits that brings
copied by     bytes that a CPU copied on either side, of those sent: eager copies, private pages (in
 the CPU      whole), copies at the receiver; not the kernel's, of the file or to and from a socket
`;

/** The table of the runs, aligned. */
export function table(rows: Row[]): string {
  const lines = [...HEADERS, ...rows.map(cells)];
  const widths = HEADERS[0]!.map((_, i) => Math.max(...lines.map((line) => line[i]!.length)));
  const text = (line: string[]): string =>
    line.map((cell, i) => {
      const left = i < 2 || i === line.length - 1;
      return left ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!);
    }).join("  ").trimEnd();
  return lines.map(text).join("\n");
}

function cells({ guard, overwritten, outcome: { sent, received }, intact }: Row): string[] {
  const gigabytes = received.bytes / received.milliseconds / 1e6;
  const microseconds = sent.milliseconds * 1000 / sent.messages;
  const copied = 100 * (sent.bytesCopied + received.bytesCopied) / sent.bytes;
  return [
    guard,
    guard === "move" ? "given away" : overwritten ? "overwritten" : "left alone",
    `${gigabytes.toFixed(2)} GB/s`,
    `${microseconds.toFixed(1)} us`,
    sent.faults.toLocaleString("en"),
    sent.privatePages.toLocaleString("en"),
    `${copied.toFixed(1)} %`,
    intact ? "equal" : guard === "none" ? "differs, as expected" : "DIFFERS",
  ];
}
