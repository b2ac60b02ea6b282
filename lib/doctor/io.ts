/**
 * What the kernel offers for I/O: io_uring, sends without copies, userfaultfd.
 *
 * @module
 */
import { errnoName } from "../../ffi/errors.ts";
import { helper } from "../../ffi/helper.ts";
import { libc } from "../../ffi/libc.ts";
import { architecture } from "../../ffi/runtime.ts";
import { coreOf, Pool } from "../memory/pool.ts";
import { ringOf } from "../ring.ts";
import { type Finding, reason, Section } from "./finding.ts";
import type { Host } from "./host.ts";
import { readLine, systemCall } from "./system.ts";

const EPERM = 1, ENOMEM = 12, ENOSYS = 38;

const IO_URING_REGISTER = 427, REGISTER_PROBE = 8;
const OPERATIONS = 64, SEND_ZC = 47;
// struct io_uring_probe: last_op first, and operations of eight bytes from 16 on, their flags two bytes in.
const PROBE = { lastOp: 0, ops: 16, each: 8, flags: 2, supported: 1 } as const;

const USERFAULTFD = { x86_64: 323, aarch64: 282 } as const, UFFD_USER_MODE_ONLY = 1;
const O_CLOEXEC = 0o2000000;

/** What was found of I/O. */
export interface IoFindings {
  readonly findings: Finding[];
  /** How large messages get into sockets: `"io_uring"` or `"sockets"`. */
  readonly engine: "io_uring" | "sockets";
}

/** Makes a ring, and asks it what it can do. */
export function lookAtIo(host: Host): IoFindings {
  const section = new Section("I/O");
  const engine = lookAtUring(section, host) ? "io_uring" : "sockets";
  lookAtUserfaultfd(section, host);
  return { findings: section.findings, engine };
}

function lookAtUring(section: Section, host: Host): boolean {
  const r = helper().moat_uring_probe();
  if (r < 0) {
    const [why, mend] = refusal(-r, host);
    section.limited("io-uring", "io_uring", `${why}; sockets and threads do its work`, { mend });
    return false;
  }
  const pool = Pool.create({ bytes: 1 << 20, reserve: 0, hugePages: false });
  try {
    const { fd, fixed, refused } = ringOf(coreOf(pool));
    if (refused) {
      section.limited("io-uring", "io_uring", `${reason(refused)}; sockets do its work`, {
        mend: refused.errno === ENOMEM ? "ulimit -l unlimited" : undefined,
      });
      return false;
    }
    if (fixed) {
      section.ok("io-uring", "io_uring", "a ring was made, with a pool as its fixed buffer");
    } else {
      const detail = "a ring was made, but a pool of 1 MiB could not be registered with it";
      section.limited("io-uring", "io_uring", detail, { mend: "ulimit -l unlimited" });
    }
    lookAtSendZc(section, fd);
    return true;
  } catch (error) {
    section.limited("io-uring", "io_uring", `${reason(error)}; sockets do its work`);
    return false;
  } finally {
    pool.close().catch(() => {});
  }
}

function refusal(errno: number, host: Host): [why: string, mend: string | undefined] {
  const setting = readLine("/proc/sys/kernel/io_uring_disabled");
  if (errno === EPERM && (setting === "1" || setting === "2")) {
    const who = setting === "1" ? " (to all but a group and CAP_SYS_ADMIN)" : "";
    return [
      `forbidden by kernel.io_uring_disabled=${setting}${who}`,
      host.outside("sysctl -w kernel.io_uring_disabled=0"),
    ];
  }
  if (errno === EPERM || (errno === ENOSYS && host.filtered)) {
    const why = `forbidden: ${errnoName(errno)}, by ${
      host.filtered ? "the seccomp filter" : "a security module"
    }`;
    return [
      why,
      host.container === "" ? undefined : "docker run --security-opt seccomp=unconfined …",
    ];
  }
  if (errno === ENOSYS) return ["ENOSYS: the kernel was built without it", "a kernel with it"];
  // Locked memory is counted by user, so other programs of the same user may have taken all of it.
  if (errno === ENOMEM) return ["io_uring_setup: ENOMEM", "ulimit -l unlimited"];
  return [`io_uring_setup: ${errnoName(errno)}`, undefined];
}

function lookAtSendZc(section: Section, fd: number): void {
  const probe = new Uint8Array(PROBE.ops + OPERATIONS * PROBE.each);
  const r = systemCall(IO_URING_REGISTER, fd, REGISTER_PROBE, probe, OPERATIONS);
  const has = (op: number): boolean =>
    r === 0 && probe[PROBE.lastOp]! >= op &&
    (probe[PROBE.ops + op * PROBE.each + PROBE.flags]! & PROBE.supported) !== 0;
  if (has(SEND_ZC)) {
    section.ok("send-zc", "SEND_ZC", "there: large messages leave over tcp:// without a copy");
  } else {
    section.limited("send-zc", "SEND_ZC", "not there: what leaves over tcp:// is copied once", {
      mend: "a kernel of 6.0 or newer",
    });
  }
}

// Told for those who would guard system calls with it as well. Moat's guards are page protection.
function lookAtUserfaultfd(section: Section, host: Host): void {
  const open = (flags: number): number => {
    const fd = systemCall(USERFAULTFD[architecture()], flags, 0);
    if (fd >= 0) libc().close(fd);
    return fd;
  };
  const id = "userfaultfd", unneeded = "not needed: guards are page protection";
  if (open(O_CLOEXEC) >= 0) return section.ok(id, id, `allowed (${unneeded})`);
  const r = open(O_CLOEXEC | UFFD_USER_MODE_ONLY);
  const mend = host.outside("sysctl -w vm.unprivileged_userfaultfd=1");
  if (r >= 0) section.limited(id, id, `for faults in user mode only (${unneeded})`, { mend });
  else section.missing(id, id, `${errnoName(-r)} (${unneeded})`);
}
