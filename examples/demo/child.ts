/**
 * What the sender and the receiver have in common: how they tell the demo what came of it, and that they
 * end with it.
 *
 * @module
 */
import { writeSync } from "node:fs";
import process from "node:process";

/** What the receiver prints, one JSON object a line. */
export interface ReceiverLine {
  /** Where it listens: the sender may connect. */
  listening?: string;
  /** Bytes hashed so far. */
  received?: number;
  /** The last line. */
  report?: ReceiverReport;
}

/** What came of receiving. */
export interface ReceiverReport {
  bytes: number;
  messages: number;
  /** From the accepted connection to the finished hash. */
  milliseconds: number;
  sha256: string;
  /** Bytes that the CPU copied before they were hashed. */
  bytesCopied: number;
}

/** What the sender prints: one line. */
export interface SenderLine {
  report: SenderReport;
}

/** What came of sending. */
export interface SenderReport {
  bytes: number;
  messages: number;
  /** In `send` and the overwriting together, over all messages; faults and waits included. */
  milliseconds: number;
  /** Faults on guarded pages. */
  faults: number;
  /** Pages copied because they were written to in flight. */
  privatePages: number;
  /** Bytes that the CPU copied so that the message could be sent as it was. */
  bytesCopied: number;
}

/** Prints a line for the demo. */
export function tell(line: ReceiverLine | SenderLine): void {
  writeSync(1, `${JSON.stringify(line)}\n`);
}

/** Ends this process when standard input ends, as it does when the demo is no more. */
export function endWithParent(): void {
  process.stdin.on("end", () => process.exit(1));
  process.stdin.on("error", () => process.exit(1));
  process.stdin.resume();
}
