/**
 * How this machine gets a device without a card: soft-RoCE on one of its Ethernet interfaces.
 *
 * @module
 */
import { readText } from "../../ffi/libc.ts";
import type { Host } from "./host.ts";
import { exists, list, readLine } from "./system.ts";

const ARPHRD_ETHER = "1";

/** The interface a device would be made of: that of the default route, else the first that is up. */
export function ethernetInterface(): string | undefined {
  const ethernet = list("/sys/class/net").filter((name) =>
    readLine(`/sys/class/net/${name}/type`) === ARPHRD_ETHER
  );
  const [, ...routes] = readText("/proc/net/route").split("\n").map((line) => line.split("\t"));
  const route = routes.find(([name = "", to]) => to === "00000000" && ethernet.includes(name));
  return route?.[0] ??
    ethernet.find((name) => readLine(`/sys/class/net/${name}/operstate`) === "up") ?? ethernet[0];
}

/** The commands that make a device, or what to do where they cannot work. */
export function makeDevice(host: Host): string {
  const rxe = softRoce(host), netdev = ethernetInterface();
  if (rxe === "no") return "in a checkout of Moat: deno task vm -- COMMAND (a VM with a device)";
  const link = `rdma link add rxe0 type rxe netdev ${netdev ?? "eth0"}`;
  if (rxe === "loaded") return host.outside(link);
  return `${host.outside("modprobe rdma_rxe")} && ${host.container ? link : host.asRoot(link)}`;
}

/** Whether the kernel could make one, for people. */
export function softRoceDetail(host: Host): string {
  switch (softRoce(host)) {
    case "loaded":
      return "rdma_rxe is loaded";
    case "there":
      return "the module rdma_rxe is there";
    case "hidden":
      return "the kernel's modules cannot be seen from here";
    case "no":
      return "this kernel has no soft-RoCE";
  }
}

function softRoce({ release, container }: Host): "loaded" | "there" | "hidden" | "no" {
  if (exists("/sys/module/rdma_rxe")) return "loaded";
  const modules = `/lib/modules/${release}`;
  for (const name of ["modules.dep", "modules.builtin"]) {
    if (readText(`${modules}/${name}`).includes("/rdma_rxe.ko")) return "there";
  }
  // A kernel that cannot load modules has no list of them either.
  if (!exists("/proc/modules")) return "no";
  return container !== "" && !exists(modules) ? "hidden" : "no";
}
