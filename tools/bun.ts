/**
 * Where Bun is.
 *
 * @module
 */
import { run } from "./apt.ts";

const OLDEST = "1.4.5";

/** The path and version of a new enough Bun: the one on PATH, else the one that npm gets. */
export function findBun(): { path: string; version: string } {
  for (const command of [["bun"], ["npx", "-y", `bun@${OLDEST}`]]) {
    // Asking for the binary itself saves its children the time that npx takes.
    const script = "console.log(JSON.stringify([Bun.version, process.execPath]))";
    const { status, stdout } = run(command[0]!, [...command.slice(1), "-e", script]);
    if (status !== 0) continue;
    const [version, path] = JSON.parse(stdout.trim().split("\n").at(-1)!) as [string, string];
    if (!isOlder(version, OLDEST)) return { path, version };
  }
  throw new Error(
    `Bun ${OLDEST} or newer is missing; install it with:\n  npm install -g bun@${OLDEST}`,
  );
}

function isOlder(version: string, than: string): boolean {
  return version.localeCompare(than, "en", { numeric: true }) < 0;
}
