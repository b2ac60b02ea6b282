/**
 * Imports the library and does nothing with it.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import "../../mod.ts";
import { say } from "../support/child.ts";

say({ helper: readFileSync("/proc/self/maps", "utf8").includes("memfd:moat") });
