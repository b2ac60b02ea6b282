/**
 * The diagnosis: everything looked at, in order, and what follows from it.
 *
 * @module
 */
import { describe, MoatError } from "../../ffi/errors.ts";
import { type Finding, Section, type TransportName, TRANSPORTS } from "./finding.ts";
import { lookAtGuards } from "./guards.ts";
import { Host } from "./host.ts";
import { lookAtIo } from "./io.ts";
import { lookAtLimits } from "./limits.ts";
import { lookAtRdma, type RdmaFindings } from "./rdma.ts";
import { lookAtRuntime, lookAtSystem } from "./runtime.ts";
import { tryOut } from "./trial.ts";

/** Settings of {@linkcode doctor}. */
export interface DoctorOptions {
  /** The transports that have to work for {@linkcode Diagnosis.ok}. `["shm", "tcp"]` by default. */
  require?: readonly TransportName[];
}

/** Whether a transport works on this machine. */
export interface Verdict {
  /** True if a message went through, or, over InfiniBand without an IP address, if nothing is in the way. */
  readonly works: boolean;
  /** By what it works (`"io_uring"`), or why not (`"no device"`); may be "". */
  readonly detail: string;
}

/** What {@linkcode doctor} found. */
export interface Diagnosis {
  /** True if nothing blocks: Moat itself and every transport required work. */
  readonly ok: boolean;
  /** Each transport. */
  readonly transports: Readonly<Record<TransportName, Verdict>>;
  /** Everything that was looked at, in the order in which one thing builds on another. */
  readonly findings: readonly Finding[];
}

/**
 * Finds out what of Moat works on this machine, what does not, and which command mends it. Everything is tried
 * rather than read about where it can be: the helper is loaded and hashed, a ring is made, device nodes are
 * opened, and over every transport a message is sent to ourselves and overwritten in flight.
 *
 * It takes some tens of milliseconds, changes nothing, and does not throw for what it finds. On Deno it needs
 * `--allow-ffi`, as all of Moat does; without it that is what it finds, and nobody is asked.
 *
 * @example Refusing to start where RDMA does not work
 * ```ts ignore
 * import { doctor } from "@moat/rdma/doctor";
 *
 * const { ok, findings } = await doctor({ require: ["rdma"] });
 * for (const { subject, detail, mend } of findings.filter(({ blocks }) => blocks)) {
 *   console.error(`${subject}: ${detail}`, mend ?? "");
 * }
 * if (!ok) throw new Error("rdma:// does not work here");
 * ```
 *
 * @throws {MoatError} `INVALID_ARGUMENT` for a transport that there is not
 */
export async function doctor(options: DoctorOptions = {}): Promise<Diagnosis> {
  const { require = ["shm", "tcp"] } = options, required = checkRequired(require);
  const findings = lookAtRuntime();
  if (blocksAll(findings)) return conclude(findings, required);
  const host = new Host();
  findings.push(...lookAtSystem(host), ...lookAtGuards(host));
  if (blocksAll(findings)) return conclude(findings, required);
  findings.push(...lookAtLimits(host));
  if (blocksAll(findings)) return conclude(findings, required);
  const io = lookAtIo(host), rdma = lookAtRdma(host);
  findings.push(...io.findings, ...rdma.findings);
  if (blocksAll(findings)) return conclude(findings, required);

  const trials = new Section("Trials");
  // By a name that nobody has: another Worker's doctor has this process's number, too, and so can another container.
  const transports = {
    shm: await tryTransport(trials, "shm", `shm://doctor-${crypto.randomUUID()}`, ""),
    tcp: await tryTransport(trials, "tcp", "tcp://127.0.0.1:0", io.engine),
    rdma: await tryRdma(trials, rdma),
  };
  findings.push(...trials.findings);
  return conclude(findings, required, transports);
}

function checkRequired(required: unknown): readonly TransportName[] {
  const names = Array.isArray(required) ? required as unknown[] : [required];
  for (const name of names) {
    if ((TRANSPORTS as readonly unknown[]).includes(name) && Array.isArray(required)) continue;
    throw new MoatError("INVALID_ARGUMENT", `doctor cannot require ${describe(name)}`, {
      hint: `pass an array of ${TRANSPORTS.join(", ")}`,
    });
  }
  return names as TransportName[];
}

function blocksAll(findings: readonly Finding[]): boolean {
  return findings.some(({ blocks }) => blocks === "everything");
}

const NOTHING: Diagnosis["transports"] = {
  shm: { works: false, detail: "Moat does not work here" },
  tcp: { works: false, detail: "Moat does not work here" },
  rdma: { works: false, detail: "Moat does not work here" },
};

function conclude(
  findings: readonly Finding[],
  required: readonly TransportName[],
  tried: Diagnosis["transports"] = NOTHING,
): Diagnosis {
  const blocked = blocksAll(findings), transports = blocked ? NOTHING : tried;
  const ok = !blocked && required.every((name) => transports[name].works);
  return { ok, transports, findings };
}

async function tryTransport(
  section: Section,
  name: TransportName,
  address: string,
  by: string,
): Promise<Verdict> {
  const { works, detail, torn } = await tryOut(address);
  const id = `trial-${name}`, subject = `${name}://`;
  if (works) section.ok(id, subject, detail);
  else section.missing(id, subject, detail, { blocks: torn ? "everything" : name });
  return { works, detail: works ? by : "the trial failed" };
}

async function tryRdma(section: Section, { place, missing }: RdmaFindings): Promise<Verdict> {
  if (place === undefined) return { works: false, detail: missing ?? "no device" };
  if (place.host !== undefined) {
    return await tryTransport(section, "rdma", `rdma://${place.host}:0`, place.name);
  }
  const detail = `not tried: ${place.name} has no GID of an IP address`;
  if (place.linkLayer === "ETHERNET") {
    section.missing("trial-rdma", "rdma://", detail, { blocks: "rdma" });
    return { works: false, detail: "no IP address" };
  }
  section.limited("trial-rdma", "rdma://", detail);
  return { works: true, detail: `${place.name}, not tried` };
}
