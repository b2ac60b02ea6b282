/**
 * The SIGBUS action: what an access to a mapped file gets that somebody has cut off. Installed when the first file is
 * mapped, in front of the runtime's, which gets everything else.
 *
 * @module
 */
import { C, checked, libc } from "./libc.ts";
import { SIGACTION } from "./layout.ts";
import type { Helper } from "./helper.ts";

/** Installs the action, or puts it back where somebody else's has replaced it. */
export function ensureBusHandler(helper: Helper): void {
  if (helper.moat_bus_ours() === 1 || helper.moat_bus_before() === 1) return;
  const action = new DataView(new ArrayBuffer(SIGACTION.size));
  action.setBigUint64(SIGACTION.handler, BigInt(helper.moat_bus_address()), true);
  action.setInt32(SIGACTION.flags, C.SA_SIGINFO | C.SA_ONSTACK, true);
  checked("sigaction", libc().sigaction(C.SIGBUS, new Uint8Array(action.buffer), 0));
  helper.moat_bus_after();
}
