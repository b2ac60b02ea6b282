/**
 * The command line of the doctor.
 *
 * @module
 */
import process from "node:process";
import { parseArgs } from "node:util";
import { doctor, type DoctorOptions } from "./diagnosis.ts";
import { reason, type TransportName, TRANSPORTS } from "./finding.ts";
import { format } from "./report.ts";

const HELP = `Says what of Moat works on this machine, and which command mends the rest.

    deno run -A jsr:@moat/rdma/doctor [OPTIONS]
    deno task doctor [OPTIONS]              (in a checkout)
    bun lib/doctor/mod.ts [OPTIONS]         (in a checkout)

    --require NAMES   the transports that have to work: shm, tcp, rdma (shm,tcp)
    --json            print one JSON document
    --help            this text

The exit status is 0 if nothing blocks, 1 if Moat or a transport that is required does not work,
and 2 if an option is wrong.
`;

/** Runs the command. Returns its exit status. */
export async function main(args: string[]): Promise<number> {
  let options;
  try {
    options = parse(args);
  } catch (error) {
    process.stderr.write(`doctor: ${reason(error)}\n\n${HELP}`);
    return 2;
  }
  if (options === undefined) {
    process.stdout.write(HELP);
    return 0;
  }
  const diagnosis = await doctor(options.doctor);
  const text = options.json
    ? `${JSON.stringify(diagnosis, null, 2)}\n`
    : format(diagnosis, mayColour());
  process.stdout.write(text);
  return diagnosis.ok ? 0 : 1;
}

interface Options {
  json: boolean;
  doctor: DoctorOptions;
}

function parse(args: string[]): Options | undefined {
  const { values } = parseArgs({
    args,
    options: {
      require: { type: "string" },
      json: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return undefined;
  if (values.require === undefined) return { json: values.json, doctor: {} };
  const names = values.require.split(",").map((name) => name.trim().replace(/:\/\/$/, ""));
  for (const name of names) {
    if ((TRANSPORTS as readonly string[]).includes(name)) continue;
    throw new Error(`--require takes ${TRANSPORTS.join(", ")}, not ${JSON.stringify(name)}`);
  }
  return { json: values.json, doctor: { require: names as TransportName[] } };
}

// Deno tells of NO_COLOR without the permission to read the environment.
function mayColour(): boolean {
  const { Deno } = globalThis as unknown as { Deno?: { noColor: boolean } };
  return process.stdout.isTTY === true && !(Deno ? Deno.noColor : process.env["NO_COLOR"]);
}
