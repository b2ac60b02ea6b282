/**
 * RDMA: the libraries, the kernel's side, the permission to use it, and the devices.
 *
 * @module
 */
import { ibverbs } from "../../ffi/ibverbs.ts";
import { errnoName, MoatError } from "../../ffi/errors.ts";
import { environment, readText } from "../../ffi/libc.ts";
import { rdmacm } from "../../ffi/rdmacm.ts";
import { lookAtDevices, type Place } from "./devices.ts";
import { type Finding, reason, Section } from "./finding.ts";
import type { Host } from "./host.ts";
import { makeDevice, softRoceDetail } from "./soft_roce.ts";
import { exists, list, nameIn, ownerOf, tryOpen } from "./system.ts";

const NODES = "/dev/infiniband";
const EPERM = 1, EACCES = 13;
const PACKAGES = "apt-get install ibverbs-providers librdmacm1";

/** What was found of RDMA. */
export interface RdmaFindings {
  readonly findings: Finding[];
  /** Where a message to ourselves can be tried. */
  readonly place: Place | undefined;
  /** Why it cannot work, in two or three words. */
  readonly missing: string | undefined;
}

/** Looks at RDMA, from the libraries to the ports. */
export function lookAtRdma(host: Host): RdmaFindings {
  const section = new Section("RDMA");
  const lacks: string[] = [];
  if (!lookAtLibraries(section, host)) lacks.push("no libraries");
  else lookAtProviders(section, host);
  const inKernel = list("/sys/class/infiniband");
  if (inKernel.length === 0) {
    section.missing("device", "device", `none; ${softRoceDetail(host)}`, {
      mend: makeDevice(host),
      blocks: "rdma",
    });
    return { findings: section.findings, place: undefined, missing: lacks[0] ?? "no device" };
  }
  if (!lookAtKernel(section, host)) lacks.push("no kernel modules");
  else if (!lookAtNodes(section, host)) lacks.push("its device nodes");
  let place: Place | undefined;
  if (lacks.length === 0) {
    place = lookAtDevices(section, host, inKernel);
    if (!place) lacks.push("no active port");
  }
  return { findings: section.findings, place, missing: lacks[0] };
}

function lookAtLibraries(section: Section, host: Host): boolean {
  let all = true;
  const libraries = [
    ["libibverbs", "libibverbs.so.1", "MOAT_LIBIBVERBS", ibverbs],
    ["librdmacm", "librdmacm.so.1", "MOAT_LIBRDMACM", rdmacm],
  ] as const;
  for (const [id, name, variable, open] of libraries) {
    try {
      open();
    } catch (error) {
      all = false;
      section.missing(id, id, withoutHint(error), {
        mend: environment(variable) === "" ? host.asRoot(PACKAGES) : `unset ${variable}`,
        blocks: "rdma",
      });
      continue;
    }
    section.ok(id, id, pathOf(environment(variable) || name));
  }
  return all;
}

function withoutHint(error: unknown): string {
  const { hint } = error as MoatError, said = reason(error);
  return error instanceof MoatError && hint && said.endsWith(`: ${hint}`)
    ? said.slice(0, -hint.length - 2)
    : said;
}

/** Where a library that is open lies, or the name it was opened by. */
function pathOf(name: string): string {
  const file = name.slice(name.lastIndexOf("/") + 1);
  const paths = readText("/proc/self/maps").split("\n").map((line) => line.slice(73));
  return paths.find((path) => path.startsWith("/") && path.includes(`/${file}`)) ?? name;
}

// The drivers in user space. libibverbs looks beside itself; elsewhere (a Nix store) we cannot tell.
function lookAtProviders(section: Section, host: Host): void {
  const library = pathOf(environment("MOAT_LIBIBVERBS") || "libibverbs.so.1");
  const directory = `${library.slice(0, library.lastIndexOf("/"))}/libibverbs`;
  const names = list(directory).flatMap((file) => /^lib(\w+)-rdmav\d+\.so$/.exec(file)?.[1] ?? []);
  if (names.length > 0) {
    const few = ["rxe", "siw", "mlx5", "irdma", "bnxt_re", "efa"].filter((n) => names.includes(n));
    const some = few.length === 0 ? "" : `, ${few.join(", ")} among them`;
    section.ok("providers", "providers", `${names.length} drivers${some}`);
    return;
  }
  section.limited("providers", "providers", `none in ${directory}`, {
    mend: host.asRoot("apt-get install ibverbs-providers"),
  });
}

// By their classes, which are there also where the code is part of the kernel.
function lookAtKernel(section: Section, host: Host): boolean {
  const absent = [
    ...(exists("/sys/class/infiniband_verbs") ? [] : ["ib_uverbs"]),
    ...(exists("/sys/class/misc/rdma_cm") ? [] : ["rdma_ucm"]),
  ];
  if (absent.length === 0) {
    section.ok("modules", "kernel modules", "ib_uverbs and rdma_ucm are there");
    return true;
  }
  section.missing("modules", "kernel modules", `${absent.join(" and ")} not loaded`, {
    mend: host.outside(`modprobe -a ${absent.join(" ")}`),
    blocks: "rdma",
  });
  return false;
}

function lookAtNodes(section: Section, host: Host): boolean {
  const nodes = list(NODES).filter((name) => /^(uverbs\d+|rdma_cm)$/.test(name));
  const absent = ["uverbs", "rdma_cm"].filter((kind) => !nodes.some((n) => n.startsWith(kind)));
  if (absent.length > 0) {
    const names = absent.map((kind) => kind === "uverbs" ? "uverbs0" : kind);
    section.missing("nodes", "device nodes", `${names.join(" and ")} not in ${NODES}`, {
      mend: host.container === ""
        ? host.asRoot("udevadm trigger --subsystem-match=infiniband_verbs --subsystem-match=misc")
        : "docker run --device=/dev/infiniband --ulimit memlock=-1 --cap-add=IPC_LOCK …",
      blocks: "rdma",
    });
    return false;
  }
  const refused = nodes.flatMap((name) => {
    const errno = tryOpen(`${NODES}/${name}`);
    return errno === 0 ? [] : [{ name, errno }];
  });
  const [first] = refused;
  if (first === undefined) {
    section.ok("nodes", "device nodes", `${nodes.join(", ")} can be opened`);
    return true;
  }
  const owner = ownerOf(`${NODES}/${first.name}`);
  const whose = owner &&
    ` (${nameIn("/etc/passwd", owner.uid)}:${nameIn("/etc/group", owner.gid)}, ${
      owner.mode.toString(8).padStart(4, "0")
    })`;
  const detail = `${first.name}: ${errnoName(first.errno)} for user ${host.uid}${whose ?? ""}`;
  section.missing("nodes", "device nodes", detail, {
    mend: mayOpen(host, first.errno, owner),
    blocks: "rdma",
  });
  return false;
}

function mayOpen(
  host: Host,
  errno: number,
  owner: ReturnType<typeof ownerOf>,
): string | undefined {
  if (errno === EPERM && host.container !== "") return "docker run --device=/dev/infiniband …";
  if (errno !== EPERM && errno !== EACCES) return undefined;
  // A group other than root's that may read and write is there to be joined.
  if (owner && owner.gid !== 0 && (owner.mode & 0o060) === 0o060) {
    return `sudo usermod -aG ${nameIn("/etc/group", owner.gid)} $USER; log in again`;
  }
  return host.outside(`chmod 666 ${NODES}/uverbs* ${NODES}/rdma_cm`);
}
