/**
 * A diagnosis as people read it.
 *
 * @module
 */
import type { Diagnosis } from "./diagnosis.ts";
import { type State, TRANSPORTS } from "./finding.ts";

const COLOUR: Record<State, number> = { ok: 32, limited: 33, missing: 31 };
const FAINT = 2, BOLD = 1;

/**
 * The diagnosis as text: one line for each finding, in groups, below it the command that mends it, and at the
 * end what works.
 *
 * @param colour whether states may be coloured
 */
export function format({ findings, transports, ok }: Diagnosis, colour: boolean): string {
  const paint = (code: number, text: string): string =>
    colour ? `\x1b[${code}m${text}\x1b[0m` : text;
  const width = Math.max(...findings.map(({ subject }) => subject.length));
  const lines: string[] = [];
  let last = "";
  for (const { group, subject, state, detail, mend } of findings) {
    if (group !== last) lines.push(...(last === "" ? [] : [""]), paint(BOLD, group));
    last = group;
    const mark = paint(COLOUR[state], state.padEnd(7));
    lines.push(`  ${mark}  ${subject.padEnd(width)}  ${detail}`);
    if (mend !== undefined) lines.push(`  ${" ".repeat(9 + width)}  ${paint(FAINT, "->")} ${mend}`);
  }
  const verdicts = TRANSPORTS.map((name) => {
    const { works, detail } = transports[name];
    return works
      ? `${name}:// yes${detail === "" ? "" : ` (${detail})`}`
      : `${name}:// no: ${detail}`;
  });
  const blocked = findings.filter(({ blocks }) => blocks === "everything");
  const end = blocked.length > 0
    ? `Moat cannot work here: ${blocked.map(({ subject }) => subject).join(", ")}`
    : verdicts.join(", ");
  lines.push("", paint(COLOUR[ok ? "ok" : "missing"], end));
  return `${lines.join("\n")}\n`;
}
