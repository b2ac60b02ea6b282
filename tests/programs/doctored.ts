/**
 * The doctor in a process that something was taken from:
 *
 *     doctored.ts '{"uring": 1, "memlock": 65536, "uid": 65534, "sigsegv": true}'
 *
 * `uring`: io_uring_setup(2) fails with this errno; `memfd`: memfd_create(2) does. `memlock`: RLIMIT_MEMLOCK, soft and hard. `uid`: the user it
 * becomes. `sigsegv`: a first diagnosis, then somebody takes the SIGSEGV action, and a second.
 *
 * @module
 */
import process from "node:process";
import { C, libc, LIBC_PATHS, openFirst } from "../../ffi/libc.ts";
import { SIGACTION } from "../../ffi/layout.ts";
import { architecture } from "../../ffi/runtime.ts";
import { doctor } from "../../lib/doctor/mod.ts";
import { say } from "../support/child.ts";
import { forbid, forbidIoUring } from "../support/no_io_uring.ts";

/** What was done to the process. */
export interface Conditions {
  uring?: number;
  memfd?: number;
  memlock?: number;
  uid?: number;
  sigsegv?: boolean;
}

const RLIMIT_MEMLOCK = 8, PR_SET_DUMPABLE = 4;
const MEMFD_CREATE = { x86_64: 319, aarch64: 279 };
const { uring, memfd, memlock, uid, sigsegv }: Conditions = JSON.parse(process.argv[2]!);

const native = openFirst("The C library", LIBC_PATHS, {
  // int setrlimit(int resource, const struct rlimit *rlim);
  setrlimit: { parameters: ["i32", "buffer"], result: "i32" },
  // int setgroups(size_t size, const gid_t *list);
  setgroups: { parameters: ["size", "buffer"], result: "i32" },
  // int setgid(gid_t gid), setuid(uid_t uid);
  setgid: { parameters: ["u32"], result: "i32" },
  setuid: { parameters: ["u32"], result: "i32" },
  // int prctl(int option, unsigned long arg2, ...);
  prctl: { parameters: ["i32", "size"], result: "i32" },
}, "");

function must(what: string, result: number): void {
  if (result !== 0) throw new Error(`${what} returned ${result}`);
}

if (memlock !== undefined) {
  const both = new BigUint64Array([BigInt(memlock), BigInt(memlock)]);
  must("setrlimit", native.setrlimit(RLIMIT_MEMLOCK, new Uint8Array(both.buffer)));
}
if (uid !== undefined) {
  must("setgroups", native.setgroups(0, new Uint8Array(8)));
  must("setgid", native.setgid(uid));
  must("setuid", native.setuid(uid));
  // Otherwise its own files in /proc would be root's, which they are not where a user starts it.
  must("prctl", native.prctl(PR_SET_DUMPABLE, 1));
}
if (uring !== undefined) forbidIoUring(uring);
if (memfd !== undefined) forbid(MEMFD_CREATE[architecture()], memfd);
if (sigsegv) {
  say(await doctor());
  const action = new Uint8Array(SIGACTION.size); // SIG_DFL
  must("sigaction", libc().sigaction(C.SIGSEGV, action, 0));
}
say(await doctor());
