/**
 * The list of RDMA devices.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { ibverbs } from "../../ffi/ibverbs.ts";
import { cText, errno, readText } from "../../ffi/libc.ts";
import { nameOf, NODE_TYPE, TRANSPORT_TYPE } from "../../ffi/verbs_enums.ts";
import { IBV_DEVICE } from "../../ffi/verbs_layout.ts";
import { type Context, contextAt } from "./context.ts";
import { HOW_TO_MAKE_A_DEVICE, verbError } from "./errors.ts";
import { read64, structAt } from "./native.ts";

/** A device of this host, as ibv_get_device_list(3) lists it. */
export interface DeviceInfo {
  /** Its name, `rxe0` or `mlx5_0`. */
  readonly name: string;
  /** The name of its node in `/dev/infiniband`, `uverbs0`. */
  readonly deviceNode: string;
  /** `CA`, `SWITCH`, `ROUTER`, `RNIC`, … */
  readonly nodeType: string;
  /** `IB`, which RoCE is as well, `IWARP`, … */
  readonly transport: string;
  /** The GUID as `5054:00ff:fe12:3456`, or "" if it cannot be read. */
  readonly guid: string;
}

const ENOSYS = 38;

// Calls `use` with the addresses of the devices, which live as long as the call.
function withList<T>(use: (devices: number[]) => T): T {
  const count = new Int32Array(1);
  const list = ibverbs().ibv_get_device_list(new Uint8Array(count.buffer));
  if (list === 0) {
    const number = errno();
    if (number === ENOSYS) return use([]); // the kernel has no ib_uverbs
    throw verbError("ibv_get_device_list", number);
  }
  try {
    if (count[0] === 0) return use([]);
    const view = structAt(list, count[0]! * 8);
    return use(Array.from({ length: count[0]! }, (_, i) => read64(view, i * 8)));
  } finally {
    ibverbs().ibv_free_device_list(list);
  }
}

function describe(address: number): DeviceInfo {
  const view = structAt(address, IBV_DEVICE.size);
  const name = cText(address + IBV_DEVICE.name);
  return {
    name,
    deviceNode: cText(address + IBV_DEVICE.devName),
    nodeType: nameOf(NODE_TYPE, view.getInt32(IBV_DEVICE.nodeType, true)),
    transport: nameOf(TRANSPORT_TYPE, view.getInt32(IBV_DEVICE.transportType, true)),
    guid: readText(`/sys/class/infiniband/${name}/node_guid`).trim(),
  };
}

/**
 * The RDMA devices of this host: ibv_get_device_list(3). None where the kernel has no RDMA.
 *
 * @throws {MoatError} `LIBRARY_NOT_FOUND`, `VERB_FAILED`
 */
export function devices(): DeviceInfo[] {
  return withList((list) => list.map(describe));
}

/**
 * Opens a device: ibv_open_device(3).
 *
 * @param name the first of the list by default
 * @throws {MoatError} `LIBRARY_NOT_FOUND`, `NO_DEVICE`, `VERB_FAILED` (permission, above all)
 */
export function openDevice(name?: string): Context {
  return withList((list) => {
    const names = list.map((address) => describe(address).name);
    const index = name === undefined ? 0 : names.indexOf(name);
    const device = list[index];
    if (device === undefined) {
      const message = name === undefined
        ? "this host has no RDMA device"
        : `there is no RDMA device ${name}`;
      throw new MoatError("NO_DEVICE", message, {
        hint: names.length === 0 ? HOW_TO_MAKE_A_DEVICE : `there are ${names.join(", ")}`,
      });
    }
    const address = ibverbs().ibv_open_device(device);
    if (address === 0) {
      throw verbError("ibv_open_device", errno(), { device: names[index]! });
    }
    return contextAt(address, true);
  });
}
