/**
 * What becomes of a guarded buffer that is handed to a function of the runtime. tests/system_calls_test.ts finds it
 * out on each runtime and compares; docs/system-calls.md has it as a table.
 *
 * @module
 */

/**
 * `works`: the runtime touches the memory itself, so the guard does its work. Otherwise the kernel was to touch it:
 * the code of the error that comes of that, or `silent` if none does.
 */
export type Outcome = "works" | "EFAULT" | "EPIPE" | "-1, EFAULT" | "silent";

/** One function, or some that behave alike. */
export interface SystemCall {
  /** True if it writes to the buffer, false if it reads from it. */
  fills: boolean;
  /** By runtime, where it exists. */
  deno?: Outcome;
  bun?: Outcome;
  /** What else is to be said. */
  note?: string;
}

/** A function that writes to the buffer; then one that reads from it. */
const into = (deno?: Outcome, bun?: Outcome, note?: string): SystemCall =>
  entry(true, deno, bun, note);
const from = (deno?: Outcome, bun?: Outcome, note?: string): SystemCall =>
  entry(false, deno, bun, note);

function entry(fills: boolean, deno?: Outcome, bun?: Outcome, note?: string): SystemCall {
  return { fills, ...(deno && { deno }), ...(bun && { bun }), ...(note && { note }) };
}

/** All that are tried, by name. */
export const SYSTEM_CALLS = {
  "Deno.FsFile.readSync": into("EFAULT"),
  "Deno.FsFile.read": into("EFAULT"),
  "Deno.FsFile.writeSync": from("EFAULT"),
  "Deno.FsFile.write": from("EFAULT"),
  "Deno.Conn.read": into("EFAULT"),
  "Deno.Conn.write": from("EFAULT"),
  "Bun.write": from(undefined, "EFAULT"),
  "Bun.file().writer()": from(
    undefined,
    "EFAULT",
    "only the promise of `write()` rejects: `flush()` and `end()` resolve, and the file is empty",
  ),
  "Bun.connect Socket.write": from(
    undefined,
    "silent",
    "returns 0, as it does when the socket is full, and nothing is sent",
  ),
  "node:fs readSync": into("EFAULT", "EFAULT"),
  "node:fs readvSync": into("EFAULT", "EFAULT"),
  "node:fs read": into("EFAULT", "EFAULT"),
  "node:fs/promises FileHandle.read": into("EFAULT", "EFAULT"),
  "node:fs writeSync": from("EFAULT", "EFAULT"),
  "node:fs writevSync": from("works", "EFAULT"),
  "node:fs write": from("EFAULT", "EFAULT"),
  "node:fs writeFileSync": from("EFAULT", "EFAULT"),
  "node:fs/promises writeFile": from("EFAULT", "EFAULT"),
  "node:fs createWriteStream": from("EFAULT", "EFAULT"),
  "node:net Socket.write": from("EPIPE", "works", "Deno's error looks like the peer's fault"),
  "node:net Socket onread buffer": into("EFAULT", "works"),
  "node:dgram Socket.send": from("works", "EFAULT"),
  "process.stderr.write": from("EFAULT", "EFAULT"),
  "a system call by FFI that writes (getrandom)": into("-1, EFAULT", "-1, EFAULT"),
  "a system call by FFI that reads (write)": from("-1, EFAULT", "-1, EFAULT"),
  "Deno.writeFileSync": from("works"),
  "Deno.writeFile": from("works"),
  "a C function that writes (memcpy)": into("works", "works"),
  "a C function that reads (memcpy)": from("works", "works"),
  "fetch body": from("works", "works"),
  "new Response, new Blob": from("works", "works"),
  "WebSocket.send": from("works", "works"),
  "postMessage, structuredClone": from("works", "works"),
  "Worker.postMessage": from("works", "works"),
  "TextDecoder.decode": from("works", "works"),
  "TextEncoder.encodeInto": into("works", "works"),
  "crypto.subtle.digest": from("works", "works"),
  "crypto.getRandomValues": into("works", "works"),
  "node:crypto createHash": from("works", "works"),
  "node:crypto randomFillSync": into("works", "works"),
  "node:crypto randomFill": into("works", "works"),
  "node:zlib gzipSync": from("works", "works"),
  "node:zlib gzip": from("works", "works"),
  "CompressionStream": from("works", "works"),
  "WebAssembly.compile": from("works", "works"),
} as const satisfies Record<string, SystemCall>;

/** The name of one of them. */
export type CallName = keyof typeof SYSTEM_CALLS;

/** The table of docs/system-calls.md: those with which the kernel is in the way, then the names of the others. */
export function systemCallTable(): string {
  const all = Object.entries(SYSTEM_CALLS) as [CallName, SystemCall][];
  const fine = ([, { deno = "works", bun = "works" }]: [CallName, SystemCall]): boolean =>
    deno === "works" && bun === "works";
  const cell = (outcome: Outcome | undefined): string =>
    outcome === undefined
      ? ""
      : outcome === "works" || outcome === "silent"
      ? outcome
      : outcome === "-1, EFAULT"
      ? "returns -1, errno `EFAULT`"
      : `error \`${outcome}\``;
  const rows = all.filter((each) => !fine(each)).map(([name, { fills, deno, bun, note }]) => [
    name.replace(/^(a system call by FFI) that \w+ \((\w+)\)$/, "$1: `$2`")
      .replace(/^([^ `]+\.\w+.*|node:\w.*|process\..*)$/, "`$1`"),
    fills ? "fills the buffer" : "reads the buffer",
    cell(deno),
    cell(bun),
    note ?? "",
  ]);
  const head = ["function", "what it does", "Deno", "Bun", ""];
  return [
    head,
    head.map(() => "---"),
    ...rows,
  ].map((cells) => `| ${cells.join(" | ")} |`).join("\n") +
    "\n\nThese touch the memory in user mode, so that the guard works, on both runtimes where they exist: " +
    `${
      all.filter(fine).map(([name]) => name.startsWith("a C") ? name : `\`${name}\``).join("; ")
    }.\n`;
}
