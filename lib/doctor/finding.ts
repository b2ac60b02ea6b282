/**
 * What the doctor finds, and how it is collected.
 *
 * @module
 */

/** What carries messages: the first part of an address. */
export type TransportName = "shm" | "tcp" | "rdma";

/** All of them, in the order in which they are told. */
export const TRANSPORTS: readonly TransportName[] = ["shm", "tcp", "rdma"];

/** How a thing was found. `"limited"`: it works, but not in every way or not without being asked. */
export type State = "ok" | "limited" | "missing";

/** One thing that was looked at. */
export interface Finding {
  /** A name that stays the same from version to version: `"memlock"`, `"port-rxe0-1"`. */
  readonly id: string;
  /** The part of the machine it belongs to: `"Runtime"`, `"RDMA"`, … */
  readonly group: string;
  /** What was looked at, for people. */
  readonly subject: string;
  /** How it was found. */
  readonly state: State;
  /** What was found, in one line. */
  readonly detail: string;
  /** The command that mends it, or what to do where no command can. */
  readonly mend?: string;
  /** What cannot work because of it: all of Moat, or one transport. */
  readonly blocks?: "everything" | TransportName;
}

/** What a finding may have besides what every one has. */
export interface Remedy {
  /** See {@linkcode Finding.mend}. */
  mend?: string | undefined;
  /** See {@linkcode Finding.blocks}. */
  blocks?: Finding["blocks"] | undefined;
}

/** The findings of one group, as they are made. */
export class Section {
  readonly findings: Finding[] = [];
  readonly #group: string;

  constructor(group: string) {
    this.#group = group;
  }

  ok(id: string, subject: string, detail: string): void {
    this.add(id, subject, "ok", detail);
  }

  limited(id: string, subject: string, detail: string, remedy: Remedy = {}): void {
    this.add(id, subject, "limited", detail, remedy);
  }

  missing(id: string, subject: string, detail: string, remedy: Remedy = {}): void {
    this.add(id, subject, "missing", detail, remedy);
  }

  add(id: string, subject: string, state: State, detail: string, remedy: Remedy = {}): void {
    const { mend, blocks } = remedy;
    this.findings.push({
      id,
      group: this.#group,
      subject,
      state,
      detail: oneLine(detail),
      ...(mend === undefined ? {} : { mend }),
      ...(blocks === undefined ? {} : { blocks }),
    });
  }
}

/** A text without line breaks. */
export function oneLine(text: string): string {
  return text.replaceAll(/\s+/g, " ").trim();
}

/** What an error says, in one line. */
export function reason(error: unknown): string {
  return oneLine(error instanceof Error ? error.message : String(error));
}
