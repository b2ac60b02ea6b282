/**
 * The runtime, the kernel and the C library.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { cText, libc, LIBC_PATHS, pageSize } from "../../ffi/libc.ts";
import { architecture, OLDEST, type Runtime, runtime } from "../../ffi/runtime.ts";
import { type Finding, reason, Section } from "./finding.ts";
import type { Host } from "./host.ts";

const OLDEST_KERNEL = "5.14", OLDEST_VERSION = 5014;

interface Permissions {
  Deno?: {
    permissions: { querySync(of: { name: "ffi" }): { state: string; partial?: boolean } };
  };
}

/**
 * The runtime, and whether it lets us call C at all. A finding that blocks everything is the last: nothing else
 * can be looked at then, and on Deno nobody is to be asked for a permission.
 */
export function lookAtRuntime(): Finding[] {
  const section = new Section("Runtime");
  let here: Runtime;
  try {
    here = runtime();
  } catch (error) {
    const { hint } = error as MoatError;
    const detail = error instanceof MoatError && hint !== undefined
      ? error.message.slice(0, -hint.length - 2)
      : reason(error);
    section.missing("runtime", "runtime", detail, {
      mend: hint?.replace(/^run: /, ""),
      blocks: "everything",
    });
    return section.findings;
  }
  const name = here.name === "deno" ? "Deno" : "Bun";
  section.ok("runtime", "runtime", `${name} ${here.version} (${OLDEST[here.name]} or newer)`);
  if (!lookAtPermission(section)) return section.findings;
  try {
    libc();
  } catch (error) {
    section.missing("libc", "C library", reason(error), { blocks: "everything" });
  }
  return section.findings;
}

function lookAtPermission(section: Section): boolean {
  const { Deno } = globalThis as unknown as Permissions;
  if (!Deno) {
    section.ok("ffi", "--allow-ffi", "not needed: Bun has no permissions");
    return true;
  }
  const { state, partial } = Deno.permissions.querySync({ name: "ffi" });
  if (state === "granted" && !partial) {
    section.ok("ffi", "--allow-ffi", "granted");
    return true;
  }
  const detail = partial
    ? "granted for some paths only; nothing else could be looked at"
    : "not granted; nothing else could be looked at";
  section.missing("ffi", "--allow-ffi", detail, {
    mend: "deno run --allow-ffi … (or -A)",
    blocks: "everything",
  });
  return false;
}

/** The kernel, the processor, the C library, and what this process is confined by. */
export function lookAtSystem(host: Host): Finding[] {
  const section = new Section("Runtime");
  const kernel = `Linux ${host.release} on ${architecture()}`;
  if (host.version >= OLDEST_VERSION) {
    section.ok("kernel", "kernel", `${kernel}, pages of ${pageSize() / 1024} KiB`);
  } else {
    section.missing("kernel", "kernel", `${kernel}: older than ${OLDEST_KERNEL}`, {
      mend: `a kernel of ${OLDEST_KERNEL} or newer`,
      blocks: "everything",
    });
  }
  section.ok("libc", "C library", libcVersion());
  const filter = host.filtered ? "a seccomp filter is on" : "no seccomp filter";
  const where = host.container === "" ? "none that shows" : `yes (${host.container})`;
  section.ok("container", "container", `${where}; ${filter}`);
  return section.findings;
}

function libcVersion(): string {
  try {
    const { gnu_get_libc_version } = runtime().open(LIBC_PATHS[0]!, {
      // const char *gnu_get_libc_version(void);
      gnu_get_libc_version: { parameters: [], result: "address" },
    });
    return `glibc ${cText(gnu_get_libc_version())}`;
  } catch {
    return "musl";
  }
}
