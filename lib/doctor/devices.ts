/**
 * The devices and their ports, and the address a connection would use.
 *
 * @module
 */
import { reason, type Section } from "./finding.ts";
import type { Host } from "./host.ts";
import { list, readLine } from "./system.ts";
import type { PortAttributes } from "../verbs/attributes.ts";
import type { Context } from "../verbs/context.ts";
import { devices, openDevice } from "../verbs/device.ts";
import { type GidEntry, isIPv4 } from "../verbs/gid.ts";

/** An active port. */
export interface Place {
  /** `rxe0 port 1`. */
  readonly name: string;
  /** The IP address of the GID, as in an address; `undefined` where the GID is none. */
  readonly host: string | undefined;
  /** `ETHERNET`, `INFINIBAND`, … */
  readonly linkLayer: string;
}

/**
 * Looks at every port. Returns the best one: active, with an IP address if any has one.
 *
 * @param inKernel the names of those the kernel knows
 */
export function lookAtDevices(
  section: Section,
  host: Host,
  inKernel: readonly string[],
): Place | undefined {
  const places: Place[] = [];
  let listed: string[];
  try {
    listed = devices().map(({ name }) => name);
  } catch (error) {
    section.missing("device", "device", reason(error), { blocks: "rdma" });
    return undefined;
  }
  for (const name of inKernel.filter((each) => !listed.includes(each))) {
    section.missing(`device-${name}`, name, "the kernel has it, libibverbs has no driver for it", {
      mend: host.asRoot("apt-get install ibverbs-providers"),
      blocks: listed.length === 0 ? "rdma" : undefined,
    });
  }
  for (const name of listed) {
    try {
      using context = openDevice(name);
      places.push(...lookAtPorts(section, host, context));
    } catch (error) {
      section.missing(`device-${name}`, name, reason(error), {
        blocks: listed.length === 1 ? "rdma" : undefined,
      });
    }
  }
  return places.find((place) => place.host !== undefined) ?? places[0];
}

/** What a port needs of an open device. */
export type Ports = Pick<Context, "deviceName" | "queryDevice" | "queryPort" | "preferredGid">;

/** Looks at the ports of one device. Returns those that are active. */
export function lookAtPorts(section: Section, host: Host, context: Ports): Place[] {
  const { deviceName: device } = context, places: Place[] = [];
  const { physPortCnt } = context.queryDevice();
  for (let port = 1; port <= physPortCnt; port++) {
    const id = `port-${device}-${port}`, name = `${device} port ${port}`;
    const attributes = context.queryPort(port), { state, activeMtu, linkLayer } = attributes;
    const layer = LAYERS[linkLayer] ?? linkLayer.toLowerCase();
    if (state !== "ACTIVE") {
      section.missing(id, name, `${state} (${layer})`, {
        mend: activate(host, device, port, attributes),
        blocks: physPortCnt === 1 && list("/sys/class/infiniband").length === 1
          ? "rdma"
          : undefined,
      });
      continue;
    }
    section.ok(id, name, `ACTIVE, ${layer}, MTU ${activeMtu}`);
    places.push({ name, linkLayer, host: lookAtGid(section, host, context, port, linkLayer) });
  }
  return places;
}

const LAYERS: Record<string, string> = { ETHERNET: "Ethernet", INFINIBAND: "InfiniBand" };

function activate(
  host: Host,
  device: string,
  port: number,
  { linkLayer, state }: PortAttributes,
): string {
  if (linkLayer !== "INFINIBAND") {
    return host.outside(`ip link set ${interfaceOf(device, port)} up`);
  }
  return state === "INIT"
    ? "a subnet manager on the fabric: apt-get install opensm, on one host"
    : "plug the cable in: ibstat says more";
}

/** The network interface of a RoCE port, as a command wants it. */
function interfaceOf(device: string, port: number): string {
  const of = `/sys/class/infiniband/${device}`;
  return readLine(`${of}/ports/${port}/gid_attrs/ndevs/0`) || readLine(`${of}/parent`) ||
    list(`${of}/device/net`)[0] || "INTERFACE";
}

function lookAtGid(
  section: Section,
  host: Host,
  context: Ports,
  port: number,
  linkLayer: string,
): string | undefined {
  const id = `gid-${context.deviceName}-${port}`;
  const entry = context.preferredGid(port);
  if (!entry) {
    section.missing(id, "GID", "the table is empty", {
      mend: host.outside(`ip addr add ADDRESS/24 dev ${interfaceOf(context.deviceName, port)}`),
    });
    return undefined;
  }
  const { index, gid, netdev } = entry;
  const said = `${index}: ${gid}${netdev === "" ? "" : ` on ${netdev}`}`;
  if (linkLayer === "INFINIBAND") {
    section.ok(id, "GID", `${said}, the first of an InfiniBand port`);
    return undefined;
  }
  const v4 = isIPv4(entry.bytes), local = isLinkLocal(entry);
  const what = `${entry.type} of ${v4 ? "an IPv4" : local ? "a link-local" : "an IPv6"} address`;
  if (local) {
    section.limited(id, "GID", `${said}, ${what}: the port has no other`, {
      mend: host.outside(`ip addr add ADDRESS/24 dev ${netdev || "INTERFACE"}`),
    });
    return undefined;
  }
  const first = v4 && entry.type === "RoCE v2" ? "the first choice" : "the port has no better";
  section.ok(id, "GID", `${said}, ${what}: ${first}`);
  return v4 ? entry.bytes.subarray(12).join(".") : `[${gid}]`;
}

function isLinkLocal({ bytes }: GidEntry): boolean {
  return bytes[0] === 0xfe && bytes[1]! >> 6 === 2;
}
