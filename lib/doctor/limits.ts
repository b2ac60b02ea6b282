/**
 * Limits of this process: memory that devices may lock, and descriptors.
 *
 * @module
 */
import { pageSize } from "../../ffi/libc.ts";
import { Pool } from "../memory/pool.ts";
import { type Finding, reason, Section } from "./finding.ts";
import type { Host } from "./host.ts";
import { count, limit, maySkipMemlock, size } from "./system.ts";

// What a server with some hundred connections gets by with.
const ENOUGH_FILES = 1024;

/** Compares the limits with what a pool, and the connections on it, need. */
export function lookAtLimits(host: Host): Finding[] {
  const section = new Section("Limits");
  lookAtMemlock(section, host);
  lookAtFiles(section, host);
  return section.findings;
}

// A device pins the whole pool, reserve and all.
function usualPool(): number {
  const pool = Pool.create();
  const { byteLength } = pool, { reserveFrames } = pool.stats();
  pool.close().catch(() => {});
  return byteLength + reserveFrames * pageSize();
}

function lookAtMemlock(section: Section, host: Host): void {
  const { soft, hard } = limit("Max locked memory");
  const limits = soft === hard ? size(soft) : `${size(soft)} (at most ${size(hard)})`;
  let needed;
  try {
    needed = usualPool();
  } catch (error) {
    section.missing(
      "memlock",
      "RLIMIT_MEMLOCK",
      `${limits}; no pool can be made: ${reason(error)}`,
      {
        blocks: "everything",
      },
    );
    return;
  }
  if (soft >= needed) return section.ok("memlock", "RLIMIT_MEMLOCK", limits);
  if (maySkipMemlock()) {
    return section.ok("memlock", "RLIMIT_MEMLOCK", `${limits}, which CAP_IPC_LOCK lifts`);
  }
  const detail = `${limits}; a pool of the default size pins ${size(needed)}`;
  section.limited("memlock", "RLIMIT_MEMLOCK", detail, { mend: raiseMemlock(host, hard, needed) });
}

function raiseMemlock(host: Host, hard: number, needed: number): string {
  if (hard === Infinity) return "ulimit -l unlimited";
  if (hard >= needed) return `ulimit -l ${hard / 1024}`;
  if (host.container !== "") return "docker run --ulimit memlock=-1 … (a service: LimitMEMLOCK=)";
  if (host.uid === 0) return "ulimit -l unlimited";
  return "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/memlock.conf; log in again";
}

function lookAtFiles(section: Section, host: Host): void {
  const { soft, hard } = limit("Max open files");
  const limits = soft === hard ? count(soft) : `${count(soft)} (at most ${count(hard)})`;
  if (soft >= ENOUGH_FILES) return section.ok("nofile", "RLIMIT_NOFILE", limits);
  section.limited("nofile", "RLIMIT_NOFILE", `${limits}; a connection takes one or more`, {
    mend: hard > soft || host.uid === 0
      ? `ulimit -n ${Math.max(ENOUGH_FILES, Math.min(hard, 65536))}`
      : "ulimit -Hn 65536 as root, before it starts",
  });
}
