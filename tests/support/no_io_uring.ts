/**
 * Forbids a system call to this thread and all it makes, as a container's seccomp profile does.
 *
 * @module
 */
import { systemError } from "../../ffi/errors.ts";
import { errno, LIBC_PATHS, openFirst } from "../../ffi/libc.ts";
import { runtime, type Symbols } from "../../ffi/runtime.ts";

const symbols = {
  // int prctl(int op, unsigned long arg2, unsigned long arg3, unsigned long arg4, unsigned long arg5);
  prctl: { parameters: ["i32", "size", "address", "size", "size"], result: "i32" },
} as const satisfies Symbols;

const PR_SET_SECCOMP = 22, PR_SET_NO_NEW_PRIVS = 38, SECCOMP_MODE_FILTER = 2;
const LOAD = 0x20, JUMP_IF_EQUAL = 0x15, RETURN = 0x06; // BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
const ALLOW = 0x7fff0000, ERRNO = 0x00050000;
const IO_URING_SETUP = 425;

/** From here on io_uring_setup(2) fails with an errno, EPERM by default. */
export function forbidIoUring(error = 1): void {
  forbid(IO_URING_SETUP, error);
}

/** From here on the system call of this number fails with an errno. */
export function forbid(call: number, error: number): void {
  const program = new DataView(new ArrayBuffer(4 * 8));
  const instruction = (at: number, code: number, yes: number, no: number, k: number): void => {
    program.setUint16(at * 8, code, true);
    program.setUint8(at * 8 + 2, yes);
    program.setUint8(at * 8 + 3, no);
    program.setUint32(at * 8 + 4, k, true);
  };
  instruction(0, LOAD, 0, 0, 0); // the number of the system call
  instruction(1, JUMP_IF_EQUAL, 0, 1, call);
  instruction(2, RETURN, 0, 0, ERRNO | error);
  instruction(3, RETURN, 0, 0, ALLOW);
  const filter = new DataView(new ArrayBuffer(16));
  filter.setUint16(0, 4, true);
  const address = runtime().addressOf(new Uint8Array(program.buffer));
  filter.setBigUint64(8, BigInt(address), true);
  const { prctl } = openFirst("The C library", LIBC_PATHS, symbols, "install glibc or musl");
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) throw systemError("prctl", errno());
  const where = runtime().addressOf(new Uint8Array(filter.buffer));
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, where, 0, 0) < 0) {
    throw systemError("a seccomp filter", errno());
  }
}
