// The cluster examples under the launchers that are there: Open MPI's mpirun, Hydra's mpiexec, Slurm's srun (a
// whole Slurm on this host), and by hand.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { expandNodeList } from "../examples/cluster/nodelist.ts";
import { findPlace } from "../examples/cluster/place.ts";
import { command, here, other, share } from "./support/child.ts";
import { type Ended, start } from "./support/program.ts";
import { Slurm } from "./support/slurm.ts";

const SHUFFLE = fileURLToPath(new URL("../examples/cluster/shuffle.ts", import.meta.url));
const MPIRUN = ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"];

/** The words that run the shuffle on a runtime. */
function shuffle(runtime: "deno" | "bun", ...options: string[]): string[] {
  return [...command(runtime), SHUFFLE, "--bytes", "2m", "--message", "64k", ...options];
}

function run(words: string[], env: Record<string, string> = {}): Ended {
  const [program, ...rest] = words as [string, ...string[]];
  const { status, stdout, stderr, error } = spawnSync(program, rest, {
    encoding: "utf8",
    timeout: 60_000,
    env: { ...process.env, ...env },
  });
  if (error) throw error;
  return { status, stdout, stderr };
}

/** Starts processes, each with an environment of its own besides, and waits for all. */
function runAll(words: string[], environments: Record<string, string>[]): Promise<Ended[]> {
  return Promise.all(environments.map((env) => start(words, env).ended));
}

/** All ranks have said what they sent, and rank 0 that everything has arrived. */
function assertShuffled(
  ended: Ended | Ended[],
  launcher: string,
  by: string,
  transport: string,
): void {
  const all = [ended].flat(), stdout = all.map((each) => each.stdout).join("");
  const stderr = all.map((each) => each.stderr).join("");
  for (const { status } of all) assert.equal(status, 0, stdout + stderr);
  const size = 3;
  assert.match(
    stdout,
    new RegExp(`^${size} processes, started by ${launcher}, met by ${by}, job `, "m"),
  );
  for (let rank = 0; rank < size; rank++) {
    const [, bytes] = new RegExp(`^rank ${rank}.*: sent (\\d+) bytes`, "m").exec(stdout) ?? [];
    // A third of the keys is its own, and 2 MiB are enough for the rest to be close to what it should be.
    assert.ok(Math.abs(Number(bytes) / ((2 << 20) * 2 / 3) - 1) < 0.05, stdout);
  }
  const records = size * (2 << 20) / 16;
  assert.match(stdout, new RegExp(`^all: ${records} records, each once .* over ${transport}`, "m"));
}

const [first, second] = [here, other()];

/** A test that hardly depends on the runtime: where the file runs under both, each takes every other one. */
function sharedTest(name: string, run: () => void | Promise<void>): void {
  if (mine.includes(sharedTests++ % 2)) test(name, run);
}
const mine = share([0, 1]);
let sharedTests = 0;

for (const transport of share(["shm", "tcp"])) {
  test(`mpirun: ranks on both runtimes shuffle over ${transport}://`, () => {
    const words = [
      ...[...MPIRUN, "-n", "2", ...shuffle(first, "--transport", transport)],
      ...[":", "-n", "1", ...shuffle(second, "--transport", transport)],
    ];
    assertShuffled(run(words), "Open MPI's mpirun", "PMIx", transport);
  });
}

test("mpirun: of a world of both runtimes one is the parameter server", () => {
  const file = fileURLToPath(new URL("../examples/parameter_server.ts", import.meta.url));
  const words = (runtime: "deno" | "bun"): string[] => [...command(runtime), file, "world"];
  const ranks = [...MPIRUN, "-n", "1", ...words(first), ":", "-n", "2", ...words(second)];
  const { status, stdout, stderr } = run(ranks);
  assert.equal(status, 0, stdout + stderr);
  assert.match(stdout, /^server: the largest error of 65536 weights is \d\.\de-[4-9]$/m);
  assert.equal(stdout.match(/^worker: \d+ gradients; /gm)?.length, 2, stdout);
});

sharedTest("mpirun: ranks that are told an address meet there, and not by PMIx", () => {
  const env = { MOAT_ROOT: `shm://mpirun-root-${process.pid}` };
  const words = [...MPIRUN, "-n", "3", ...shuffle(here)];
  assertShuffled(run(words, env), "Open MPI's mpirun", env.MOAT_ROOT, "shm");
});

/** What mpirun sets, taken from Open MPI 4.1, for rank 1 of 2 on one host. */
const OPEN_MPI = {
  ...{ OMPI_COMM_WORLD_RANK: "1", OMPI_COMM_WORLD_SIZE: "2", PMIX_NAMESPACE: "prterun-h-1@1" },
  ...{ OMPI_COMM_WORLD_LOCAL_SIZE: "2", OMPI_COMM_WORLD_LOCAL_RANK: "1" },
};

sharedTest("a library for PMIx that was named and is not there is an error", () => {
  const { status, stderr } = run(shuffle(here), { ...OPEN_MPI, MOAT_PMIX: "libnone.so" });
  assert.equal(status, 1);
  assert.match(
    stderr,
    /^shuffle: PMIx \(MOAT_PMIX names it\) could not be opened; tried libnone\.so/m,
  );
});

test("mpiexec: ranks find each other by Hydra's key-value store (PMI-1)", () => {
  const words = ["mpiexec.hydra", "-n", "3", ...shuffle(here, "--transport", "tcp")];
  assertShuffled(run(words), "Hydra's mpiexec", "PMI-1", "tcp");
});

test("srun: ranks of a step shuffle, with Slurm's key-value store and without", async (t) => {
  const slurm = await Slurm.start(t);
  if (typeof slurm === "string") {
    t.skip(slurm);
    return;
  }
  const step = (options: string[], by: string): void => {
    const words = [...slurm.srun, ...options, "-n", "3", ...shuffle(here, "--transport", "tcp")];
    assertShuffled(run(words, slurm.env), "Slurm's srun", by, "tcp");
  };
  step([], "shm://moat-\\d+\\.0");
  step(["--mpi=pmi2"], "PMI-1");
});

/** What srun sets, taken from Slurm 22.05, for task `rank` of 3 on two nodes. */
function slurmTask(rank: number): Record<string, string> {
  return {
    SLURM_JOB_ID: String(process.pid),
    SLURM_JOBID: String(process.pid),
    SLURM_STEP_ID: "0",
    SLURM_STEPID: "0",
    SLURM_JOB_NODELIST: "localhost,node[02-07]",
    SLURM_NODELIST: "localhost,node[02-07]",
    SLURM_STEP_NODELIST: "localhost,node02",
    SLURM_NNODES: "2",
    SLURM_NTASKS: "3",
    SLURM_NPROCS: "3",
    SLURM_STEP_NUM_TASKS: "3",
    SLURM_STEP_TASKS_PER_NODE: "2,1",
    SLURM_PROCID: String(rank),
    SLURM_LOCALID: String(rank % 2),
    SLURM_NODEID: String(Math.floor(rank / 2)),
  };
}

test("the environment of srun on two nodes: ranks meet at the first of them", async () => {
  const words = shuffle(here, "--transport", "tcp");
  assertShuffled(
    await runAll(words, [0, 1, 2].map(slurmTask)),
    "Slurm's srun",
    "tcp://localhost:\\d+",
    "tcp",
  );
});

sharedTest(
  "by hand: a root and numbers are enough, in whatever order the ranks start",
  async () => {
    const root = `shm://by-hand-${process.pid}`;
    const words = shuffle(here, "--transport", "shm", "--root", root);
    const ranks = [2, 1, 0].map((rank) => ({ MOAT_RANK: `${rank}`, MOAT_SIZE: "3" }));
    assertShuffled(await runAll(words, ranks), "hand", root, "shm");
  },
);

sharedTest('with the guard "none" what is sent is overwritten, and the comparison finds it', () => {
  const words = [...MPIRUN, "-n", "3", ...shuffle(here, "--guard", "none", "--bytes", "8m")];
  const { status, stderr } = run(words);
  assert.notEqual(status, 0);
  assert.match(
    stderr,
    /^shuffle: (what rank \d sent to rank \d is not what arrived|record \d+ from)/m,
  );
});

test("a rank that dies in the middle is named by all others, and they end", async () => {
  const root = `shm://dies-${process.pid}`;
  const words = shuffle(here, "--transport", "tcp", "--root", root, "--bytes", "1g");
  const ranks = [0, 1, 2].map((rank) => start(words, { MOAT_RANK: `${rank}`, MOAT_SIZE: "3" }));
  await Promise.race([ranks[0]!.said(/^3 processes/m), ranks[0]!.ended]);
  ranks[2]!.kill();
  for (const rank of ranks.slice(0, 2)) {
    const { status, stderr } = await rank.ended;
    assert.equal(status, 1, stderr);
    assert.match(stderr, /^shuffle: rank 2 of 3 is lost: /m);
  }
});

sharedTest(
  "a rank that never comes, and one that dies before all are there, are told of",
  async () => {
    const words = shuffle(here, "--transport", "tcp");
    const late = `shm://late-${process.pid}`, dead = `shm://dead-${process.pid}`;
    const env = (rank: number, root: string): Record<string, string> => ({
      ...{ MOAT_RANK: `${rank}`, MOAT_SIZE: "3", MOAT_ROOT: root },
    });
    const one = start(words, env(1, late)).ended;
    const root = start([...words, "--timeout", "4"], env(0, late)).ended;
    // Its address for the others cannot be listened at, so this rank fails after it has met rank 0.
    const dying = Promise.all([
      ...[0, 1].map((rank) => start(words, env(rank, dead)).ended),
      start(words, { ...env(2, dead), MOAT_ADDRESS: "192.0.2.77" }).ended,
    ]);
    const [first, second] = await Promise.all([root, one]);
    assert.match(first.stderr, /after 4 s these ranks of 3 are missing at shm:\/\/late-\d+: 2$/m);
    assert.match(second.stderr, /^shuffle: rank 0 has ended too early/m);
    assert.deepEqual([first.status, second.status], [1, 1]);
    const ends = await dying;
    assert.deepEqual(ends.map(({ status }) => status), [1, 1, 1]);
    assert.match(ends[0]!.stderr, /^shuffle: rank 2 has ended too early/m);
    assert.match(ends[1]!.stderr, /^shuffle: rank 0 has ended too early/m);
  },
);

test("lists of hosts are expanded as scontrol does it", () => {
  const lists: [string, string[]][] = [
    ["vm", ["vm"]],
    ["node[01-04,07]", ["node01", "node02", "node03", "node04", "node07"]],
    ["node[9-11]", ["node9", "node10", "node11"]],
    ["node[098-101]x", ["node098x", "node099x", "node100x", "node101x"]],
    ["login1,gpu-[1,3],a.b", ["login1", "gpu-1", "gpu-3", "a.b"]],
    ["r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]],
    ["n[5]", ["n5"]],
  ];
  for (const [list, hosts] of lists) assert.deepEqual(expandNodeList(list), hosts, list);
  for (const bad of ["", "n[", "n]", "n[1-x]", "n[3-1]", "n[[1]]", "n[]", "a,,b", "n[1-9999999]"]) {
    assert.throws(() => expandNodeList(bad), /is not a list of hosts such as/, bad);
  }
});

test("an environment that cannot be is refused, and the variable named", () => {
  const slurm = slurmTask(1);
  const cases: [Record<string, string | undefined>, RegExp][] = [
    [{}, /OMPI_COMM_WORLD_RANK, PMI_FD, SLURM_PROCID and MOAT_RANK/],
    [{ MOAT_RANK: "0" }, /MOAT_SIZE is not in the environment/],
    [{ MOAT_RANK: "2", MOAT_SIZE: "2", MOAT_ROOT: "h:1" }, /MOAT_RANK is "2", .* 0 to 1/],
    [{ MOAT_RANK: "0", MOAT_SIZE: "2" }, /MOAT_ROOT/],
    [{ MOAT_RANK: "0", MOAT_SIZE: "2", MOAT_ROOT: "a b" }, /MOAT_ROOT .*"a b"/],
    [{ OMPI_COMM_WORLD_RANK: "0" }, /OMPI_COMM_WORLD_SIZE is not/],
    [{ PMI_FD: "x", PMI_RANK: "0", PMI_SIZE: "1" }, /PMI_FD is "x"/],
    [{ ...slurm, SLURM_PROCID: "3" }, /SLURM_PROCID is "3"/],
    [{ ...slurm, SLURM_STEP_NODELIST: "a[" }, /SLURM_STEP_NODELIST: "a\[" is not/],
    [{ ...slurm, SLURM_NTASKS: undefined, SLURM_STEP_NUM_TASKS: undefined }, /SLURM_NTASKS is not/],
  ];
  for (const [env, message] of cases) {
    assert.throws(() => findPlace(env), { name: "UsageError", message }, JSON.stringify(env));
  }
});

test("the innermost launcher counts, and Slurm's reserved ports are used", () => {
  const slurm = slurmTask(1);
  const address = (env: Record<string, string>): unknown => findPlace(env).meet;
  assert.deepEqual(address({ ...slurm, SLURM_STEP_RESV_PORTS: "12000-12003" }), {
    how: "address",
    address: "tcp://localhost:12000",
  });
  assert.equal(findPlace({ ...slurm, ...OPEN_MPI }).launcher, "Open MPI's mpirun");
  assert.deepEqual(address(OPEN_MPI), {
    how: "pmix",
    library: undefined,
    address: "shm://moat-prterun-h-1-1",
  });
  assert.deepEqual(address({ ...OPEN_MPI, OMPI_COMM_WORLD_SIZE: "4", MOAT_ROOT: "n1:7471" }), {
    how: "address",
    address: "tcp://n1:7471",
  });
});
