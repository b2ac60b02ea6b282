/**
 * The guest's first file system: busybox, the modules, and a script that makes the host's file
 * system the guest's root.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import process from "node:process";
import { INIT } from "./guest.ts";
import { cacheDirectory, type Kernel } from "./kernel.ts";

const DIRECTORY = 0o040755;
const PROGRAM = 0o100755;

interface Entry {
  name: string;
  mode: number;
  data: Uint8Array;
}

/** Makes the archive for a kernel, unless the cache has it, and gives its path. */
export function findInitramfs(kernel: Kernel): string {
  const busybox = ["/usr/bin/busybox", "/bin/busybox"].find((path) => existsSync(path));
  if (busybox === undefined) throw new Error("there is no busybox (package busybox-static)");
  const { size, mtimeMs } = statSync(busybox);
  const key = createHash("sha256").update(`${kernel.name} ${kernel.modules} ${size} ${mtimeMs}`)
    .update(INIT).digest("hex").slice(0, 16);
  const path = join(cacheDirectory(), `initramfs-${key}.cpio`);
  if (existsSync(path)) return path;

  const names = kernel.modules.map((module) => basename(module));
  const program = (name: string, data: Uint8Array): Entry => ({ name, mode: PROGRAM, data });
  const archive = archiveOf([
    ...["bin", "modules", "proc", "sys", "dev", "lower", "rw", "root"].map((name) => ({
      name,
      mode: DIRECTORY,
      data: new Uint8Array(),
    })),
    program("bin/busybox", readFileSync(busybox)),
    program("init", Buffer.from(INIT)),
    program("modules/order", Buffer.from(names.map((name) => `${name}\n`).join(""))),
    ...kernel.modules.map((module, i) => program(`modules/${names[i]!}`, readFileSync(module))),
  ]);
  const unfinished = `${path}.${process.pid}`;
  writeFileSync(unfinished, archive);
  renameSync(unfinished, path);
  return path;
}

/** A cpio archive of the format "newc", the one that Linux reads. */
function archiveOf(entries: Entry[]): Uint8Array {
  const parts: Uint8Array[] = [];
  let length = 0;
  const add = (part: Uint8Array): void => {
    const padding = -part.length & 3;
    parts.push(part, new Uint8Array(padding));
    length += part.length + padding;
  };
  const all = [...entries, { name: "TRAILER!!!", mode: 0, data: new Uint8Array() }];
  for (const [i, { name, mode, data }] of all.entries()) {
    const fields = [
      i + 1, // inode
      mode,
      0, // owner
      0, // group
      1, // links
      0, // time
      data.length,
      0, // the device's major and minor numbers, and those of a device node
      0,
      0,
      0,
      name.length + 1,
      0, // checksum
    ];
    const header = fields.map((field) => field.toString(16).padStart(8, "0")).join("");
    add(Buffer.from(`070701${header}${name}\0`));
    add(data);
  }
  return Buffer.concat(parts, length);
}
