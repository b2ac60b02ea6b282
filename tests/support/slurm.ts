/**
 * A whole Slurm of one node on this host, for tests: munged, slurmctld and slurmd, with everything they write in a
 * temporary directory.
 *
 * @module
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";

const PROGRAMS = ["/usr/sbin/munged", "/usr/sbin/slurmctld", "/usr/sbin/slurmd", "/usr/bin/srun"];

/** Milliseconds until it has to be there. */
const LIMIT = 20_000;

/** A Slurm that runs. */
export class Slurm {
  /** The words in front of the options of srun and of a command. */
  readonly srun: readonly string[] = ["srun", "--overcommit"];
  /** What srun needs in its environment. */
  readonly env: Record<string, string>;

  private constructor(env: Record<string, string>) {
    this.env = env;
  }

  /**
   * Starts it; it ends with the test. Returns why not, where that is not the fault of what is tested: without its
   * programs or the right to run them, or where its daemons do not find what they need of the kernel.
   */
  static async start(t: { after(fn: () => Promise<void>): void }): Promise<Slurm | string> {
    if (process.getuid?.() !== 0) return "slurmd runs tasks as their users, so it has to be root";
    const missing = PROGRAMS.filter((path) => !existsSync(path));
    if (missing.length > 0) return `not installed: ${missing.join(", ")} (slurm-wlm, munge)`;

    const directory = mkdtempSync(join(tmpdir(), "moat-slurm-")), daemons: ChildProcess[] = [];
    t.after(async () => {
      // What looks after a step goes on without the daemons, and then looks for them for ever.
      for (const end = Date.now() + 5000; stepsOf(directory).length > 0;) {
        if (Date.now() > end) {
          for (const pid of stepsOf(directory)) process.kill(pid, "SIGKILL");
        }
        await sleep(50);
      }
      for (const daemon of daemons.reverse()) {
        if (daemon.exitCode !== null || daemon.signalCode !== null) continue;
        const gone = new Promise((resolve) => daemon.once("exit", resolve));
        daemon.kill("SIGKILL");
        await gone;
      }
      rmSync(directory, { recursive: true });
    });
    const at = (name: string): string => join(directory, name);
    for (const name of ["state", "spool"]) mkdirSync(at(name));
    writeFileSync(at("munge.key"), randomBytes(1024), { mode: 0o400 });
    writeFileSync(at("slurm.conf"), configuration(at));
    writeFileSync(at("cgroup.conf"), "CgroupPlugin=cgroup/v1\n");

    const env = { SLURM_CONF: at("slurm.conf") };
    const start = (program: string, ...args: string[]): void => {
      const child = spawn(program, args, { stdio: "ignore", env: { ...process.env, ...env } });
      daemons.push(child);
    };
    const munge = ["key-file=munge.key", "socket=munge.sock", "pid-file=munge.pid"];
    const files = [...munge, "log-file=munge.log", "seed-file=munge.seed"];
    start(
      PROGRAMS[0]!,
      "-F",
      "-f",
      ...files.map((each) => `--${each.replace("=", `=${directory}/`)}`),
    );
    const end = Date.now() + LIMIT;
    while (!existsSync(at("munge.sock")) && Date.now() < end) await sleep(20);
    start(PROGRAMS[1]!, "-D", "-c");
    start(PROGRAMS[2]!, "-D", "-c");
    while (Date.now() < end) {
      const { stdout } = spawnSync("sinfo", ["-h", "-o", "%T"], {
        encoding: "utf8",
        timeout: 5000,
        env: { ...process.env, ...env },
      });
      if (stdout.trim() === "idle") return new Slurm(env);
      await sleep(100);
    }
    const logs = ["slurmctld.log", "slurmd.log"].map((name) => lastOf(at(name)));
    return `Slurm does not run here: ${logs.join("; ")}`;
  }
}

/** The processes that look after the steps of a Slurm. */
function stepsOf(directory: string): number[] {
  return readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) => {
    try {
      if (readFileSync(`/proc/${pid}/comm`, "utf8").trim() !== "slurmstepd") return false;
      const environment = readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");
      return environment.includes(`SLURM_CONF=${join(directory, "slurm.conf")}`);
    } catch {
      return false; // it has ended meanwhile
    }
  });
}

function lastOf(path: string): string {
  if (!existsSync(path)) return "no log";
  return readFileSync(path, "utf8").trim().split("\n").slice(-2).join("; ");
}

/** The ports are those of this process alone, below those that Linux hands out. */
function configuration(at: (name: string) => string): string {
  const name = hostname().split(".")[0]!, port = 22_000 + process.pid % 5000 * 2;
  return `ClusterName=moat
SlurmctldHost=${name}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=${at("munge.sock")}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SlurmUser=root
SlurmdUser=root
SlurmctldPort=${port}
SlurmdPort=${port + 1}
StateSaveLocation=${at("state")}
SlurmdSpoolDir=${at("spool")}
SlurmctldPidFile=${at("slurmctld.pid")}
SlurmdPidFile=${at("slurmd.pid")}
SlurmctldLogFile=${at("slurmctld.log")}
SlurmdLogFile=${at("slurmd.log")}
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=${name} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
`;
}
