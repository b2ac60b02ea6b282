/**
 * The SIGSEGV action: installing ours in front of the runtime's, and noticing when somebody else's
 * has taken its place.
 *
 * @module
 */
import { C, checked, libc } from "./libc.ts";
import { SIGACTION } from "./layout.ts";
import type { Helper } from "./helper.ts";

let replaced = 0;

/** How often somebody replaced the SIGSEGV action and it was put back. */
export function timesReplaced(): number {
  return replaced;
}

/** Installs the fault handler; what was there before gets every fault that is not ours. */
export function installHandler(helper: Helper): void {
  install(helper);
  watch(helper);
}

function install(helper: Helper): void {
  if (helper.moat_handler_before() === 1) return;
  const action = new DataView(new ArrayBuffer(SIGACTION.size));
  action.setBigUint64(SIGACTION.handler, BigInt(helper.moat_handler_address()), true);
  action.setInt32(SIGACTION.flags, C.SA_SIGINFO | C.SA_ONSTACK, true);
  checked("sigaction", libc().sigaction(C.SIGSEGV, new Uint8Array(action.buffer), 0));
  helper.moat_handler_after();
}

/** Puts the handler back if it was replaced, and says so once. True if it had been replaced. */
export function ensureHandler(helper: Helper): boolean {
  if (helper.moat_handler_ours() === 1) return false;
  install(helper);
  if (replaced++ === 0) {
    emitWarning(
      'Something replaced the SIGSEGV action (process.on("SIGSEGV") does on Bun). Moat has put its ' +
        "handler back in front of it: faults on guarded buffers are handled, all others go there.",
    );
  }
  return true;
}

interface Process {
  emitWarning?(message: string, type: string): void;
  on?(event: "newListener", listener: (event: unknown) => void): void;
}

function emitWarning(message: string): void {
  const { process } = globalThis as { process?: Process };
  process?.emitWarning?.(message, "MoatWarning");
}

// Bun installs its own action when a listener for SIGSEGV is added, after this event; Deno refuses to.
function watch(helper: Helper): void {
  const { process, Bun } = globalThis as { process?: Process; Bun?: unknown };
  if (!Bun) return;
  process?.on?.("newListener", (event) => {
    if (event === "SIGSEGV") queueMicrotask(() => ensureHandler(helper));
  });
}
