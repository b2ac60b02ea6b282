/**
 * What of Moat works on this machine, and which command mends the rest.
 *
 * As a program it prints that, and its exit status says whether anything blocks:
 *
 * ```sh
 * deno run -A jsr:@moat/rdma/doctor
 * deno run -A jsr:@moat/rdma/doctor --json --require rdma
 * ```
 *
 * @example As a function
 * ```ts ignore
 * import { doctor } from "@moat/rdma/doctor";
 *
 * const { transports } = await doctor();
 * console.log(transports.rdma.works ? "rdma" : "tcp");
 * ```
 *
 * @module
 */
import process from "node:process";
import { main } from "./cli.ts";

export { type Diagnosis, doctor, type DoctorOptions, type Verdict } from "./diagnosis.ts";
export type { Finding, State, TransportName } from "./finding.ts";

// By its end, not by process.exit(): what goes into a pipe is written later.
if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
