/**
 * The key-value store of a launcher that speaks PMI-1, as Hydra does for MPICH, Intel MPI and others, and Slurm's
 * srun with --mpi=pmi2: lines of text over a descriptor that the process was started with.
 *
 * Source: the "simple PMI" client of MPICH, src/pmi/simple.
 *
 * @module
 */
import { errnoName } from "../../ffi/errors.ts";
import { errno, libc } from "../../ffi/libc.ts";

/**
 * The process's side of PMI. Every call blocks until the launcher has answered, which a barrier does when all
 * have called it: at the start of a program there is nothing else to do. The launcher ends all processes when
 * one ends without {@linkcode close}.
 */
export class Pmi {
  /** The name of the store, which only this job has. */
  readonly job: string;
  readonly #fd: number;
  readonly #rank: number;
  readonly #size: number;
  readonly #longest: number;
  readonly #store: string;
  #text = "";
  #exchanges = 0;

  /** @param fd the descriptor that PMI_FD names */
  constructor(fd: number, rank: number, size: number) {
    this.#fd = fd;
    this.#rank = rank;
    this.#size = size;
    this.#ask("init pmi_version=1 pmi_subversion=1", "response_to_init");
    this.#longest = Number(this.#ask("get_maxes", "maxes").get("vallen_max"));
    this.#store = this.#ask("get_my_kvsname", "my_kvsname").get("kvsname") ?? "";
    this.job = this.#store.replaceAll(/[^A-Za-z0-9._-]/g, "-").slice(-40);
  }

  /** Gives a text without spaces to all, and returns those of all by their ranks. */
  exchange(own: string): Promise<string[]> {
    const key = (rank: number): string => `moat-${this.#exchanges}-${rank}`, store = this.#store;
    if (/\s/.test(own) || own.length >= this.#longest) {
      throw new Error(`PMI: ${JSON.stringify(own)} is no value for a key-value store`);
    }
    this.#ask(`put kvsname=${store} key=${key(this.#rank)} value=${own}`, "put_result");
    this.#ask("barrier_in", "barrier_out");
    const all = Array.from(
      { length: this.#size },
      (_, rank) =>
        this.#ask(`get kvsname=${store} key=${key(rank)}`, "get_result").get("value") ?? "",
    );
    this.#exchanges++;
    return Promise.resolve(all);
  }

  /** Nothing is told by the launcher: it ends all processes when one has died. */
  get lost(): Promise<never> {
    return new Promise(() => {});
  }

  /** Tells the launcher that this process is about to end. */
  close(): Promise<void> {
    this.#ask("finalize", "finalize_ack");
    return Promise.resolve();
  }

  #ask(command: string, wanted: string): Map<string, string> {
    const line = new TextEncoder().encode(`cmd=${command}\n`);
    for (let sent = 0; sent < line.length;) {
      sent += this.#check(
        "write",
        Number(libc().write(this.#fd, line.slice(sent), line.length - sent)),
      );
    }
    const answer = new Map(
      this.#line().split(" ").map((word) => {
        const at = word.indexOf("=");
        return [word.slice(0, at), word.slice(at + 1)] as const;
      }),
    );
    if (answer.get("cmd") === wanted && (answer.get("rc") ?? "0") === "0") return answer;
    const said = [...answer].map(([name, value]) => `${name}=${value}`).join(" ");
    throw new Error(`PMI: the launcher answered ${JSON.stringify(said)} to cmd=${command}`);
  }

  #line(): string {
    const chunk = new Uint8Array(4096);
    for (;;) {
      const end = this.#text.indexOf("\n");
      if (end >= 0) {
        const line = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 1);
        return line;
      }
      const got = this.#check("read", Number(libc().read(this.#fd, chunk, chunk.length)));
      if (got === 0) throw new Error("PMI: the launcher closed the descriptor PMI_FD");
      this.#text += new TextDecoder().decode(chunk.subarray(0, got));
    }
  }

  #check(call: string, result: number): number {
    if (result >= 0) return result;
    const why = errnoName(errno());
    throw new Error(
      `PMI: ${call} of descriptor ${this.#fd} (PMI_FD): ${why}: was it started by mpiexec?`,
    );
  }
}
