/**
 * Which of the processes of a job this one is: what the launcher says in the environment.
 *
 * @module
 */
import { crc32 } from "node:zlib";
import { UsageError } from "../support/program.ts";
import { expandNodeList } from "./nodelist.ts";

/** What started the processes. */
export type Launcher = "Open MPI's mpirun" | "Hydra's mpiexec" | "Slurm's srun" | "hand";

/** A process among those of its job. */
export interface Place {
  readonly launcher: Launcher;
  /** Its number, from 0, and how many there are. */
  readonly rank: number;
  readonly size: number;
  /** Its number among those of its host; undefined if nobody says. */
  readonly localRank: number | undefined;
  /** Whether all of them are on one host. */
  readonly oneHost: boolean;
  /** The name by which the others know this host, if the launcher says. */
  readonly host: string | undefined;
  /** A name that no other job has on these hosts at the same time. */
  readonly job: string;
  /** How the processes find each other. */
  readonly meet: Meeting;
}

/**
 * By an address at which rank 0 listens, or by the launcher's own key-value store: PMI-1, or PMIx where there is its
 * library, and else an address if one is known.
 */
export type Meeting =
  | { readonly how: "address"; readonly address: string }
  | { readonly how: "pmi"; readonly fd: number }
  | { readonly how: "pmix"; readonly library?: string | undefined; readonly address?: string };

/** Options of the command line that say it by hand, for `parseArgs`. */
export const PLACE_OPTIONS = {
  rank: { type: "string" },
  size: { type: "string" },
  root: { type: "string" },
  port: { type: "string" },
} as const;

/** What they mean, for `--help`. */
export const PLACE_HELP = `
Which process this is, is read from the environment of mpirun (Open MPI), of mpiexec (MPICH and others
that use Hydra) or of srun (Slurm). By hand, or where they do not say enough:

    --rank N           its number, from 0 (MOAT_RANK)
    --size N           how many there are (MOAT_SIZE)
    --root HOST:PORT   where rank 0 is, and is to listen while all find each other (MOAT_ROOT)
    --port PORT        only the port, on the host that the launcher names (MOAT_PORT)
`;

type Environment = Record<string, string | undefined>;
/** Values of {@linkcode PLACE_OPTIONS}. */
export type PlaceValues = { [name in keyof typeof PLACE_OPTIONS]?: string | undefined };

/**
 * Finds out which process this is.
 *
 * @throws {UsageError} if nothing says it, or what says it cannot be, with the names of the variables
 */
export function findPlace(environment: Environment, options: PlaceValues = {}): Place {
  const env: Environment = { ...environment };
  for (const [name, value] of Object.entries(options)) {
    if (value !== undefined) env[`MOAT_${name.toUpperCase()}`] = value;
  }
  if (env["MOAT_RANK"] !== undefined || env["MOAT_SIZE"] !== undefined) return byHand(env);
  // The innermost launcher counts: mpirun and mpiexec may have been started in a job of Slurm.
  if (env["OMPI_COMM_WORLD_RANK"] !== undefined) return openMpi(env);
  if (env["PMI_FD"] !== undefined && env["SLURM_PROCID"] === undefined) return hydra(env);
  if (env["HYDI_CONTROL_FD"] !== undefined && env["PMI_FD"] !== undefined) return hydra(env);
  if (env["SLURM_PROCID"] !== undefined) return slurm(env);
  throw new UsageError(
    "nobody says which process this is: start it by mpirun, mpiexec or srun, or give --rank, --size and " +
      "--root (of OMPI_COMM_WORLD_RANK, PMI_FD, SLURM_PROCID and MOAT_RANK none is in the environment)",
  );
}

function byHand(env: Environment): Place {
  const [rank, size] = rankAndSize(env, "MOAT_RANK", "MOAT_SIZE");
  const root = env["MOAT_ROOT"];
  if (root === undefined && size > 1) {
    throw new UsageError(
      "nobody says where rank 0 is: give --root HOST:PORT (MOAT_ROOT), the same to all",
    );
  }
  const address = root === undefined ? "shm://alone" : rootAddress(root, env, "by-hand");
  return {
    launcher: "hand",
    ...{ rank, size, localRank: undefined, host: undefined },
    oneHost: size === 1 || address.startsWith("shm:") ||
      /^tcp:\/\/(127\.|localhost:|\[::1\])/.test(address),
    job: env["MOAT_JOB"] ?? `${crc32(address).toString(16)}`,
    meet: { how: "address", address },
  };
}

function openMpi(env: Environment): Place {
  const [rank, size] = rankAndSize(env, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");
  const localSize = whole(env, "OMPI_COMM_WORLD_LOCAL_SIZE", 1, size);
  const job = name(env["PMIX_NAMESPACE"] ?? required(env, "OMPI_MCA_ess_base_jobid"));
  const oneHost = localSize === size, root = env["MOAT_ROOT"];
  const localRank = whole(env, "OMPI_COMM_WORLD_LOCAL_RANK", 0, localSize - 1);
  return {
    launcher: "Open MPI's mpirun",
    ...{ rank, size, localRank, oneHost, job },
    host: env["PMIX_HOSTNAME"],
    meet: root !== undefined ? { how: "address", address: rootAddress(root, env, job) } : {
      how: "pmix",
      library: env["MOAT_PMIX"],
      ...(oneHost ? { address: `shm://moat-${job}` } : {}),
    },
  };
}

function hydra(env: Environment): Place {
  const [rank, size] = rankAndSize(env, "PMI_RANK", "PMI_SIZE");
  const fd = whole(env, "PMI_FD", 0, 1 << 20);
  const localSize = whole(env, "MPI_LOCALNRANKS", 1, size);
  return {
    launcher: "Hydra's mpiexec",
    ...{ rank, size, localRank: whole(env, "MPI_LOCALRANKID", 0, localSize - 1) },
    oneHost: localSize === size,
    host: env["MPIR_CVAR_CH3_INTERFACE_HOSTNAME"],
    job: "", // the name of the key-value store, which it is going to say
    meet: { how: "pmi", fd },
  };
}

function slurm(env: Environment): Place {
  const [rank, size] = rankAndSize(env, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS");
  const variable = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"]
    .find((each) => env[each] !== undefined) ?? "SLURM_JOB_NODELIST";
  let hosts: string[];
  try {
    hosts = expandNodeList(required(env, variable));
  } catch (error) {
    throw new UsageError(`${variable}: ${(error as Error).message}`);
  }
  const step = env["SLURM_STEP_ID"] ?? env["SLURM_STEPID"] ?? "0";
  const job = name(`${env["SLURM_JOB_ID"] ?? required(env, "SLURM_JOBID")}.${step}`);
  // Slurm can reserve ports for a step: srun --resv-ports.
  const reserved = /^\d+/.exec(env["SLURM_STEP_RESV_PORTS"] ?? "")?.[0];
  const root = env["MOAT_ROOT"] ?? `${hosts[0]}:${env["MOAT_PORT"] ?? reserved ?? portOf(job)}`;
  const oneHost = hosts.length === 1;
  const alone = oneHost && env["MOAT_ROOT"] === undefined;
  // With srun --mpi=pmi2 there is a key-value store as well, which understands PMI-1.
  const pmi = env["PMI_FD"] !== undefined && env["MOAT_ROOT"] === undefined;
  return {
    launcher: "Slurm's srun",
    ...{ rank, size, oneHost, job, localRank: whole(env, "SLURM_LOCALID", 0, size - 1) },
    host: env["SLURMD_NODENAME"],
    meet: pmi ? { how: "pmi", fd: whole(env, "PMI_FD", 0, 1 << 20) } : {
      how: "address",
      address: alone ? `shm://moat-${job}` : rootAddress(root, env, job),
    },
  };
}

// ---- values

function required(env: Environment, variable: string): string {
  const value = env[variable];
  if (value !== undefined && value !== "") return value;
  throw new UsageError(
    variable.startsWith("MOAT_")
      ? `${variable} is not in the environment: --rank (MOAT_RANK) and --size (MOAT_SIZE) go together`
      : `${variable} is not in the environment, where the launcher should have put it`,
  );
}

function whole(env: Environment, variable: string, least: number, most: number): number {
  const text = required(env, variable), value = Number(text);
  if (/^\d+$/.test(text) && value >= least && value <= most) return value;
  throw new UsageError(
    `${variable} is ${JSON.stringify(text)}, and not a number from ${least} to ${most}`,
  );
}

/** The second variable may have other names. */
function rankAndSize(env: Environment, rank: string, ...sizes: string[]): [number, number] {
  const variable = sizes.find((each) => env[each] !== undefined) ?? sizes[0]!;
  const size = whole(env, variable, 1, 10_000);
  return [whole(env, rank, 0, size - 1), size];
}

/** What may be in the name of a socket. */
function name(job: string): string {
  return job.replaceAll(/[^A-Za-z0-9._-]/g, "-").slice(-40);
}

/** HOST:PORT or HOST as an address; or an address as it is. */
function rootAddress(root: string, env: Environment, job: string): string {
  if (/^[a-z]+:\/\//.test(root)) return root;
  const [, host, port] = /^(\[[^\]]+\]|[^:\s]+)(?::(\d+))?$/.exec(root) ?? [];
  if (host === undefined || Number(port ?? 0) > 65535) {
    throw new UsageError(`MOAT_ROOT or --root is ${JSON.stringify(root)}, and not HOST:PORT`);
  }
  return `tcp://${host}:${port ?? env["MOAT_PORT"] ?? portOf(job)}`;
}

/** A port for a job: below those that Linux gives to whoever connects (32768 and above). */
function portOf(job: string): number {
  return 20_000 + crc32(job) % 12_000;
}
