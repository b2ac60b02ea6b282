/**
 * What guards are made of: the native helper, its fault handler, and mappings.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { errnoName } from "../../ffi/errors.ts";
import { type Helper, helper, QUERY } from "../../ffi/helper.ts";
import * as arm from "../../ffi/helper/aarch64.ts";
import * as x86 from "../../ffi/helper/x86_64.ts";
import { C, cString, libc } from "../../ffi/libc.ts";
import { architecture } from "../../ffi/runtime.ts";
import { timesReplaced } from "../../ffi/sigsegv.ts";
import { coreOf, Pool } from "../memory/pool.ts";
import { type Finding, reason, Section } from "./finding.ts";
import type { Host } from "./host.ts";
import { count, list, readLine } from "./system.ts";

// What the kernel gives every process unless it was told otherwise.
const USUAL_MAPS = 65530;
const HUGE = 2 << 20;

/** Loads the helper; a finding that blocks everything is the last. */
export function lookAtGuards(host: Host): Finding[] {
  const section = new Section("Guards");
  let native: Helper;
  try {
    native = helper();
  } catch (error) {
    section.missing("helper", "helper", reason(error), { blocks: "everything" });
    return section.findings;
  }
  lookAtHelper(section);
  lookAtHandler(section, native);
  lookAtMappings(section, native, host);
  lookAtHugePages(section, host);
  return section.findings;
}

// What is mapped is hashed, not what was to be: the memfd stays open, and whoever may write to it could have.
function lookAtHelper(section: Section): void {
  const image = architecture() === "x86_64" ? x86 : arm;
  const bytes = loadedImage(`/memfd:moat-${image.sha256.slice(0, 16)}`);
  if (!bytes) {
    section.missing("helper", "helper", "loaded, but its memory cannot be found", {
      blocks: "everything",
    });
    return;
  }
  section.ok("helper", "helper", `loaded, ${count(bytes.length)} bytes`);
  const hash = createHash("sha256").update(bytes).digest("hex");
  if (hash === image.sha256) return section.ok("helper-sha256", "its SHA-256", hash);
  section.missing("helper-sha256", "its SHA-256", `${hash}: not what was built`, {
    mend: "end this process: something wrote to its memory",
    blocks: "everything",
  });
}

function loadedImage(name: string): Uint8Array | undefined {
  const link = new Uint8Array(256), decoder = new TextDecoder();
  for (const fd of list("/proc/self/fd")) {
    const path = `/proc/self/fd/${fd}`, n = libc().readlink(cString(path), link, link.length);
    if (n > 0 && decoder.decode(link.subarray(0, n)).startsWith(name)) return readBytes(path);
  }
  return undefined;
}

function readBytes(path: string): Uint8Array | undefined {
  const fd = libc().open(cString(path), C.O_CLOEXEC, 0);
  if (fd < 0) return undefined;
  const bytes = new Uint8Array(libc().lseek(fd, 0, C.SEEK_END));
  libc().lseek(fd, 0, 0);
  let at = 0;
  for (let n; (n = libc().read(fd, bytes.subarray(at), bytes.length - at)) > 0;) at += n;
  libc().close(fd);
  return at === bytes.length ? bytes : undefined;
}

function lookAtHandler(section: Section, native: Helper): void {
  const times = timesReplaced();
  if (native.moat_handler_ours() !== 1) {
    section.limited("sigsegv", "SIGSEGV action", "replaced; the next pool or send puts it back", {
      mend: "install other handlers before the first pool is made",
    });
  } else {
    const since = times === 0 ? "" : ` (replaced and put back ${times} times)`;
    section.ok("sigsegv", "SIGSEGV action", `Moat's handler is in place${since}`);
  }
}

function lookAtMappings(section: Section, native: Helper, host: Host): void {
  const most = Number(readLine("/proc/sys/vm/max_map_count"));
  const left = native.moat_query(QUERY.mapsBudget, 0) - native.moat_query(QUERY.mapsUsed, 0);
  const detail = `${count(most)}, of which guards may use another ${count(left)}`;
  if (most >= USUAL_MAPS) section.ok("max-map-count", "vm.max_map_count", detail);
  else {
    section.limited("max-map-count", "vm.max_map_count", `${detail}; beyond, guards copy or wait`, {
      mend: host.outside("sysctl -w vm.max_map_count=262144"),
    });
  }
}

function lookAtHugePages(section: Section, host: Host): void {
  const chosen = (name: string): string =>
    /\[(\w+)\]/.exec(readLine(`/sys/kernel/mm/transparent_hugepage/${name}`))?.[1] ?? "not there";
  const settings = `transparent ${chosen("enabled")}, shmem ${chosen("shmem_enabled")}, ` +
    `hugetlb ${readLine("/proc/sys/vm/nr_hugepages") || 0}`;
  const refused = collapse();
  if (refused === undefined) {
    section.ok("huge-pages", "huge pages", `made by MADV_COLLAPSE (${settings})`);
  } else {
    const old = host.version < 6001;
    const why = old ? "MADV_COLLAPSE needs Linux 6.1" : `MADV_COLLAPSE: ${refused}`;
    const compact = refused === "ENOMEM"
      ? host.outside("sysctl -w vm.compact_memory=1")
      : undefined;
    section.limited("huge-pages", "huge pages", `${why}; large guards cost more (${settings})`, {
      mend: old ? "a kernel of 6.1 or newer" : compact,
    });
  }
}

// Puts a pool of that size on a huge page. What the kernel said if it did not.
function collapse(): string | undefined {
  let pool;
  try {
    pool = Pool.create({ bytes: HUGE, reserve: 0 });
  } catch (error) {
    return reason(error);
  }
  const { helper, index } = coreOf(pool);
  const r = helper.moat_collapse(index, 0);
  pool.close().catch(() => {});
  return r < 0 ? errnoName(-r) : undefined;
}
