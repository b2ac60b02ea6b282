/**
 * Finding Deno and Bun.
 *
 * @module
 */
import { spawnSync } from "node:child_process";
import process from "node:process";

/** The runtimes that Moat works on. */
export type RuntimeName = "deno" | "bun";

/** A runtime that is there. */
export interface Runtime {
  name: RuntimeName;
  version: string;
  /** The words of its command. */
  command: string[];
}

interface Known {
  /** The oldest version that will do. */
  oldest: string;
  /** What npx is asked for where there is none. */
  package: string;
  /** The arguments that make it print its version and its path. */
  probe: string[];
}

const KNOWN: Record<RuntimeName, Known> = {
  deno: {
    oldest: "2.7.12",
    package: "deno@2.9.6",
    probe: ["eval", "console.log(JSON.stringify([Deno.version.deno, Deno.execPath()]))"],
  },
  bun: {
    oldest: "1.4.5",
    package: "bun@1.4.5",
    probe: ["-e", "console.log(JSON.stringify([Bun.version, process.execPath]))"],
  },
};

const NPX_LIMIT = 300_000; // milliseconds: it downloads some tens of megabytes

/** Finds a runtime: as the environment says, this process's own, on PATH, or by npx. */
export function findRuntime(name: RuntimeName): Runtime | undefined {
  const given = process.env[`MOAT_${name.toUpperCase()}`];
  if (given) return probe(name, JSON.parse(given) as string[]);
  if (process.versions[name] !== undefined) return probe(name, [process.execPath]);
  return probe(name, [name]) ?? fromNpx(name);
}

function fromNpx(name: RuntimeName): Runtime | undefined {
  const wanted = KNOWN[name].package;
  console.error(`demo: ${name} is not on PATH; asking npx for ${wanted}`);
  return probe(name, ["npx", "-y", wanted]);
}

function probe(name: RuntimeName, command: string[]): Runtime | undefined {
  const { status, stdout } = spawnSync(command[0]!, [...command.slice(1), ...KNOWN[name].probe], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
    timeout: NPX_LIMIT,
  });
  if (status !== 0) return undefined;
  const [version, path] = JSON.parse(stdout.trim().split("\n").at(-1)!) as [string, string];
  if (version.localeCompare(KNOWN[name].oldest, "en", { numeric: true }) < 0) return undefined;
  // The binary itself, so that a signal to it reaches it and not something in front of it.
  return { name, version, command: [path] };
}
