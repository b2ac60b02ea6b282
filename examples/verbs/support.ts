/**
 * What the examples of the verbs layer share.
 *
 * @module
 */
import process from "node:process";
import type { CmId, CompletionQueue, WorkCompletion } from "../../lib/verbs/mod.ts";

/** A number given for an option, in decimal or as 0x…. */
export function number(option: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (text.trim() !== "" && Number.isInteger(value) && value >= least && value <= most) {
    return value;
  }
  throw new Error(`${option} takes a whole number from ${least} to ${most}, not "${text}"`);
}

/** Runs a program to its end: exit status 0, or 1 with the error's message, which says how to mend it. */
export async function run(name: string, program: () => Promise<void>): Promise<never> {
  try {
    await program();
    process.exit(0);
  } catch (error) {
    console.error(`${name}: ${error instanceof Error ? error.message : String(error)}`);
    process.exit(1);
  }
}

/** The next completion, asleep until it comes. One that failed is thrown as its error. */
export async function completed(cq: CompletionQueue): Promise<WorkCompletion> {
  const wc = await cq.next();
  if (!wc) throw new Error("the completion queue was closed");
  if (wc.error) throw wc.error;
  return wc;
}

/**
 * Flushes what is posted when the other side has gone: only the connection manager notices, and a receive
 * would be waited for for ever.
 */
export function endWithPeer(id: CmId): void {
  void id.disconnected.then(() => {
    if (!id.closed) id.disconnect();
  });
}
