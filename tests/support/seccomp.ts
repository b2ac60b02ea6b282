/**
 * Forbids io_uring to this thread, and to the threads it makes, as containers do.
 *
 * @module
 */
import { architecture, runtime } from "../../ffi/runtime.ts";

const PR_SET_NO_NEW_PRIVS = 38, PR_SET_SECCOMP = 22, SECCOMP_MODE_FILTER = 2;
const IO_URING_SETUP = 425;
const AUDIT_ARCH = { x86_64: 0xc000003e, aarch64: 0xc00000b7 };

/** io_uring_setup(2) fails with an errno from here on. */
export function forbidUring(errno: number): void {
  const { prctl } = runtime().open("libc.so.6", {
    // int prctl(int option, unsigned long arg2, ...);
    prctl: { parameters: ["i32", "size", "address", "size", "size"], result: "i32" },
  });
  // struct sock_filter: code, jump if true, jump if false, k.
  const filter: [number, number, number, number][] = [
    [0x20, 0, 0, 4], // the architecture
    [0x15, 0, 2, AUDIT_ARCH[architecture()]],
    [0x20, 0, 0, 0], // the number of the call
    [0x15, 1, 0, IO_URING_SETUP],
    [0x06, 0, 0, 0x7fff0000], // allow
    [0x06, 0, 0, 0x00050000 | errno],
  ];
  const code = new Uint8Array(filter.length * 8), view = new DataView(code.buffer);
  filter.forEach(([op, yes, no, k], i) => {
    view.setUint16(i * 8, op, true);
    view.setUint8(i * 8 + 2, yes);
    view.setUint8(i * 8 + 3, no);
    view.setUint32(i * 8 + 4, k >>> 0, true);
  });
  const program = new Uint8Array(16), fields = new DataView(program.buffer);
  fields.setUint16(0, filter.length, true);
  fields.setBigUint64(8, BigInt(runtime().addressOf(code)), true);
  if (
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) !== 0 ||
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, runtime().addressOf(program), 0, 0) !== 0
  ) throw new Error("no seccomp filter can be set here");
}
