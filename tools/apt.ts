/**
 * Debian packages that the tools need: found with `dpkg -s`, installed with apt-get where that is
 * allowed.
 *
 * @module
 */
import { spawnSync } from "node:child_process";
import process from "node:process";

/** Runs a command to its end; `status` is null when it could not start or died by a signal. */
export function run(
  command: string,
  args: string[],
  options: { cwd?: string; env?: Record<string, string> } = {},
): { status: number | null; output: string; stdout: string } {
  const result = spawnSync(command, args, {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    env: { ...process.env, ...options.env },
    encoding: "utf8",
    maxBuffer: 64 << 20,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const stdout = result.stdout ?? "";
  return { status: result.status, stdout, output: stdout + (result.stderr ?? "") };
}

/**
 * Makes sure that the Debian packages are installed, asking apt-get only for missing ones.
 * Throws an Error with the exact command to run when they are missing and cannot be installed.
 */
export function ensurePackages(packages: string[]): void {
  const missing = packages.filter((name) => !isInstalled(name));
  if (missing.length === 0) return;

  const install = ["install", "-y", "--no-install-recommends", ...missing];
  const advice = `missing packages; install them with:\n` +
    `  sudo apt-get update && sudo apt-get ${install.join(" ")}`;

  const prefix = privilege();
  if (prefix === null || run("apt-get", ["--version"]).status !== 0) throw new Error(advice);

  console.log(`installing ${missing.join(" ")}`);
  // A failed update may still leave usable package lists: only the install decides.
  const update = aptGet(prefix, ["update"]);
  const { status, output } = aptGet(prefix, install);
  if (status !== 0) throw new Error(`${update.output}${output}\n${advice}`);
}

/** Asks apt-get for the current package lists; what went wrong, or null. */
export function updatePackageLists(): string | null {
  const prefix = privilege();
  if (prefix === null) return "update the package lists with:\n  sudo apt-get update";
  const { status, output } = aptGet(prefix, ["update"]);
  return status === 0 ? null : output;
}

function aptGet(prefix: string[], args: string[]): { status: number | null; output: string } {
  const command = [...prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", ...args];
  return run(command[0]!, command.slice(1));
}

function isInstalled(name: string): boolean {
  const { status, stdout } = run("dpkg", ["-s", name], { env: { LC_ALL: "C" } });
  return status === 0 && /^Status: install ok installed$/m.test(stdout);
}

/** What to put before a command so that it runs as root; null when that is not possible. */
function privilege(): string[] | null {
  if (process.getuid?.() === 0) return [];
  return run("sudo", ["-n", "true"]).status === 0 ? ["sudo", "-n"] : null;
}
