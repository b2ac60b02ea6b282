/**
 * Where the benchmarks of one process listen.
 *
 * @module
 */
import process from "node:process";
import { leaveOut } from "./bench.ts";

/** The transports that there are here, with an address for each. */
export function addresses(name: string): { transport: string; address: string }[] {
  const found = [
    { transport: "shm", address: `shm://${name}-bench-${process.pid}` },
    { transport: "tcp", address: "tcp://127.0.0.1:0" },
  ];
  const host = process.env["MOAT_RDMA_ADDRESS"];
  if (host !== undefined) found.push({ transport: "rdma", address: `rdma://${host}:0` });
  else leaveOut("rdma://", "MOAT_RDMA_ADDRESS is not set to the address of an RDMA device");
  return found;
}
