/**
 * What a bad peer, or a failure, must not leave behind.
 *
 * @module
 */
import { readdirSync, readlinkSync } from "node:fs";
import { helper, QUERY } from "../../ffi/helper.ts";

/** What this process holds: to be compared with what it held before. */
export function leftovers(): unknown {
  const descriptors = readdirSync("/proc/self/fd").map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return ""; // of the listing itself
    }
  });
  return {
    descriptors: descriptors.filter((path) => /memfd:|socket:|io_uring/.test(path)).length,
    operations: helper().moat_query(QUERY.opsLive, 0),
    mappings: helper().moat_query(QUERY.mapsUsed, 0),
  };
}
