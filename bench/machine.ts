/**
 * What machine this is, for the head of a report: figures without it mean nothing.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import { arch, availableParallelism, release, type } from "node:os";

/** The facts that benchmarks depend on, by name. */
export function machineFacts(): Record<string, string> {
  const cpu = /^model name\s*:\s*(.*)$/m.exec(read("/proc/cpuinfo"))?.[1];
  const cache = read("/sys/devices/system/cpu/cpu0/cache/index3/size").trim();
  const memory = /^MemTotal:\s*(\d+) kB$/m.exec(read("/proc/meminfo"))?.[1];
  const virtual = /^flags\s*:.*\bhypervisor\b/m.test(read("/proc/cpuinfo"));
  return {
    cpu: `${cpu ?? arch()}${virtual ? ", in a virtual machine" : ""}`,
    cores: String(availableParallelism()),
    ...(cache ? { "last-level cache": cache } : {}),
    ...(memory ? { memory: `${(Number(memory) / (1 << 20)).toFixed(1)} GiB` } : {}),
    kernel: `${type()} ${release()}`,
    load: read("/proc/loadavg").split(" ")[0] ?? "",
  };
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
