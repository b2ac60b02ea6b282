/**
 * The demo's options.
 *
 * @module
 */
import { accessSync, constants, statSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "node:util";
import type { Guard } from "../../mod.ts";
import type { RuntimeName } from "./runtimes.ts";

const GUARDS: readonly Guard[] = ["auto", "cow", "wait", "move", "copy", "none"];
const RUNTIMES: readonly RuntimeName[] = ["deno", "bun"];
const TRANSPORTS = ["shm", "tcp", "rdma"] as const;
const LARGEST = 64 << 20;

/** What `--help` prints. */
export const HELP =
  `Sends a file from one process to another, over shared memory, TCP or RDMA. The sender
overwrites each buffer as soon as send() has returned, while the receiver has yet to read it.
Done with a guard, the file arrives intact; done without, it does not.

    deno task demo [OPTIONS]

    --file PATH           the file to send (the runtime's own executable)
    --size BYTES          of a message, at most 64m; k and m stand for KiB and MiB (1m)
    --transport NAME      shm, tcp, or rdma, which needs a device: deno task vm -- deno task
                          demo --transport rdma runs it where there is one (shm)
    --guard GUARD         ${GUARDS.join(", ")} (cow)
    --runtimes SEND,RECV  deno or bun for the sender and the receiver (deno,bun)
    --help                this text

The runtimes are the one that runs the demo, those on PATH, or those that npx gets. MOAT_DENO and
MOAT_BUN name others, as JSON arrays of a command's words. The exit status is 1 if the demo failed,
and 2 if an option is wrong.
`;

/** How the file travels. */
export type Transport = typeof TRANSPORTS[number];

/** The options, checked. */
export interface Options {
  file: string;
  /** Of the file, in bytes. */
  fileSize: number;
  /** Of a message, in bytes. */
  size: number;
  guard: Guard;
  transport: Transport;
  /** Of the sender and of the receiver; undefined if it was not said. */
  runtimes: [RuntimeName, RuntimeName] | undefined;
}

/** An option that cannot be. */
export class UsageError extends Error {
  /** The name of the class. */
  override readonly name = "UsageError";
}

/**
 * Reads the command line; undefined if it asks for help.
 *
 * @throws {UsageError} if an option is unknown or its value cannot be
 */
export function parseOptions(args: string[]): Options | undefined {
  const values = parse(args);
  if (values.help) return undefined;
  const file = values.file ?? process.execPath;
  return {
    file,
    fileSize: checkFile(file),
    size: parseSize(values.size),
    guard: oneOf(GUARDS, values.guard, "--guard"),
    transport: oneOf(TRANSPORTS, values.transport, "--transport"),
    runtimes: parseRuntimes(values.runtimes),
  };
}

interface Values {
  file?: string | undefined;
  size: string;
  guard: string;
  transport: string;
  runtimes?: string | undefined;
  help: boolean;
}

function parse(args: string[]): Values {
  try {
    return parseArgs({
      args,
      options: {
        file: { type: "string" },
        size: { type: "string", default: "1m" },
        guard: { type: "string", default: "cow" },
        transport: { type: "string", default: "shm" },
        runtimes: { type: "string" },
        help: { type: "boolean", default: false },
      },
    }).values;
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function oneOf<T extends string>(known: readonly T[], value: string, option: string): T {
  const found = known.find((each) => each === value);
  if (found !== undefined) return found;
  throw new UsageError(`${option} ${JSON.stringify(value)}: use one of ${known.join(", ")}`);
}

function parseRuntimes(text: string | undefined): [RuntimeName, RuntimeName] | undefined {
  if (text === undefined) return undefined;
  const names = text.split(",");
  if (names.length !== 2) {
    throw new UsageError(
      `--runtimes ${JSON.stringify(text)}: name two, for the sender and the receiver: deno,bun`,
    );
  }
  const [sender, receiver] = names.map((name) => oneOf(RUNTIMES, name, "--runtimes"));
  return [sender!, receiver!];
}

function parseSize(text: string): number {
  const [, digits, suffix = ""] = /^(\d+)([km]?)$/i.exec(text) ?? [];
  const size = Number(digits) * { "": 1, k: 1 << 10, m: 1 << 20 }[suffix.toLowerCase()]!;
  if (size >= 1 && size <= LARGEST) return size;
  throw new UsageError(
    `--size ${JSON.stringify(text)}: use a number of bytes from 1 to 64m, such as 65536, 64k or 1m`,
  );
}

function checkFile(path: string): number {
  const fail = (why: string): never => {
    throw new UsageError(`--file ${JSON.stringify(path)}: ${why}`);
  };
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return fail("there is no such file");
  if (!stat.isFile()) fail("it is not an ordinary file");
  if (stat.size === 0) fail("it is empty, so there is nothing to send");
  try {
    accessSync(path, constants.R_OK);
  } catch {
    fail("it may not be read");
  }
  return stat.size;
}
