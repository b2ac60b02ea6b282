/**
 * `deno task vm -- COMMAND ARGS…` runs a command of the host's file system in a VM with a soft-RoCE
 * device (rxe0 on eth0, 10.9.0.1), in the current directory, and ends with its exit status.
 *
 *     --hosts 2            two VMs on one link, 10.9.0.1 and 10.9.0.2; each has a command of its own:
 *                          deno task vm --hosts 2 -- COMMAND_1 ARGS… -- COMMAND_2 ARGS…
 *     --timeout SECONDS    kill the VMs after this time (540)
 *     --memory MIB         of each VM (3072)
 *     --cpus N             of each VM (2)
 *     --accel tcg|kvm      tcg, the default, works everywhere
 *     --loss PERCENT       packets lost on the way to the other VM, in each direction (netem);
 *                          what a VM sends to itself is not lost
 *     --out DIRECTORY      the directory that the commands can write to, instead of a temporary one
 *
 * Only what is written to the directory $MOAT_VM_OUT is kept; all else vanishes with the VM. The
 * status is 124 after the time limit, and 125 when a VM could not be started or died.
 *
 * @module
 */
import { resolve } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { createLink, DIED, startVm, type Vm, type VmResult } from "./vm/vm.ts";

/** The number given for an option. */
function number(name: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (text === "" || !(value >= least && value <= most)) {
    throw new Error(`--${name} has to be a number from ${least} to ${most}, not "${text}"`);
  }
  return value;
}

/** Splits the arguments into the options and the commands, which `--` separates. */
function split(args: string[], hosts: (options: string[]) => number): [string[], string[][]] {
  const first = args.indexOf("--");
  if (first < 0) return [args, []];
  const options = args.slice(0, first);
  const rest = args.slice(first + 1);
  if (hosts(options) === 1) return [options, [rest]];
  const second = rest.indexOf("--");
  if (second < 0) return [options, [rest]];
  return [options, [rest.slice(0, second), rest.slice(second + 1)]];
}

function parse(args: string[]): ReturnType<typeof parseOptions>["values"] {
  return parseOptions(args).values;
}

// The type of what parseArgs returns follows from its argument.
// deno-lint-ignore explicit-function-return-type
function parseOptions(args: string[]) {
  return parseArgs({
    args,
    options: {
      hosts: { type: "string", default: "1" },
      timeout: { type: "string", default: "540" },
      memory: { type: "string", default: "3072" },
      cpus: { type: "string", default: "2" },
      accel: { type: "string", default: "tcg" },
      loss: { type: "string", default: "0" },
      out: { type: "string" },
    },
  });
}

/** Writes whole lines with a prefix. */
function prefixer(prefix: string, write: (text: string) => void): (text: string) => void {
  let unfinished = "";
  return (text) => {
    const lines = (unfinished + text).split("\n");
    unfinished = lines.pop()!;
    for (const line of lines) write(`${prefix}${line}\n`);
  };
}

async function main(): Promise<number> {
  // `deno task` passes the first `--` on, so that options may come after it.
  const args = process.argv.slice(2);
  const [given, commands] = split(args, (options) => Number(parse(options).hosts));
  const options = parse(given);
  const hosts = number("hosts", options.hosts, 1, 2);
  if (commands.length !== hosts || commands.some((command) => command.length === 0)) {
    throw new Error(
      `give ${hosts === 1 ? "a command" : "two commands, separated by --,"} after "--", as in\n` +
        "  deno task vm -- ibv_devinfo\n" +
        "  deno task vm --hosts 2 -- rping -s -C 3 -- rping -c -a 10.9.0.1 -C 3",
    );
  }
  const { accel } = options;
  if (accel !== "tcg" && accel !== "kvm") throw new Error("--accel is either tcg or kvm");

  const link = hosts === 2 ? createLink() : undefined;
  const vms: Vm[] = [];
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.on(signal, () => process.exit(signal === "SIGINT" ? 130 : 143));
  }
  let out = options.out === undefined ? undefined : resolve(options.out);
  for (const [i, command] of commands.entries()) {
    const write = {
      stdout: (text: string) => void process.stdout.write(text),
      stderr: (text: string) => void process.stderr.write(text),
    };
    const prefix = `host${i + 1}| `;
    const prefixed = {
      stdout: prefixer(prefix, write.stdout),
      stderr: prefixer(prefix, write.stderr),
    };
    const vm = await startVm({
      command,
      host: i === 0 ? 1 : 2,
      memory: number("memory", options.memory, 256, 1 << 20),
      cpus: number("cpus", options.cpus, 1, 64),
      timeout: number("timeout", options.timeout, 1, 1e6),
      loss: number("loss", options.loss, 0, 100),
      accel,
      ...(link === undefined ? {} : { link }),
      ...(out === undefined ? {} : { out }),
      onOutput: (channel, text) => (link === undefined ? write : prefixed)[channel](text),
    });
    out = vm.out;
    vms.push(vm);
  }

  const results: VmResult[] = await Promise.all(vms.map((vm) => vm.wait()));
  for (const { fault } of results) {
    if (fault !== null) console.error(`moat vm: ${fault}`);
  }
  return results.find(({ status }) => status !== 0)?.status ?? 0;
}

try {
  process.exit(await main());
} catch (error) {
  console.error(`moat vm: ${error instanceof Error ? error.message : String(error)}`);
  process.exit(DIED);
}
