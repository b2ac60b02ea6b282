/**
 * Where this process runs, as far as it decides which command mends something.
 *
 * @module
 */
import { libc, readText } from "../../ffi/libc.ts";
import { exists, readLine, status } from "./system.ts";

/** Where this process runs. */
export class Host {
  /** The kernel's release, `6.1.0-18-amd64`. */
  readonly release: string = readLine("/proc/sys/kernel/osrelease");
  readonly uid: number = libc().getuid();
  /** What says that this is a container; "" if nothing does. */
  readonly container: string = containerSign();
  /** Whether a seccomp filter is on. */
  readonly filtered: boolean = status("Seccomp") === "2";

  /** A command that only root may run. */
  asRoot(command: string): string {
    return this.uid === 0 ? command : `sudo ${command}`;
  }

  /** A command that only root may run, and that works on the host itself. */
  outside(command: string): string {
    return this.container === "" ? this.asRoot(command) : `on the host: ${command}`;
  }

  /** The kernel's version as a number to compare: 6.1 is 6001. */
  get version(): number {
    const [major = 0, minor = 0] = this.release.split(/[.-]/).map(Number);
    return major * 1000 + minor;
  }
}

// Container engines leave a file; where there is none, the control group of the first process names one.
function containerSign(): string {
  for (const file of ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"]) {
    if (exists(file)) return file;
  }
  const [engine] = /docker|kubepods|containerd|libpod|lxc/.exec(readText("/proc/1/cgroup")) ?? [];
  return engine === undefined ? "" : `${engine} in /proc/1/cgroup`;
}
