/**
 * Packs what is published into a tarball that `bun add` takes: `deno task pack [--out DIR]`.
 *
 * It has the files that `deno publish` would publish and a `package.json` made from `deno.json`. Bun runs the
 * TypeScript as it is. Prints the tarball's path, how many files are in it, and how large it is packed and unpacked.
 *
 * @module
 */
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { run } from "./apt.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** What `deno publish` says it would publish, relative to the root. */
export function publishedFiles(deno: string): string[] {
  const args = ["publish", "--dry-run", "--allow-dirty", "--no-check"];
  const { status, output } = run(deno, args, { cwd: ROOT, env: { NO_COLOR: "1" } });
  if (status !== 0) throw new Error(`deno publish --dry-run failed:\n${output}`);
  const root = new URL("..", import.meta.url).href;
  return [...output.matchAll(/^ +(file:\S+) \(/gm)]
    .map(([, url]) => decodeURIComponent(url!.slice(root.length)));
}

/** A tarball. */
export interface Packed {
  path: string;
  files: number;
  /** Bytes of the files, and of the tarball. */
  unpacked: number;
  packed: number;
}

/** Packs into a directory. */
export function pack(deno: string, out: string): Packed {
  const { name, version, license, exports } = JSON.parse(
    readFileSync(join(ROOT, "deno.json"), "utf8"),
  ) as Record<string, unknown>;
  const files = publishedFiles(deno), staging = mkdtempSync(join(tmpdir(), "moat-pack-"));
  try {
    const inside = join(staging, "package");
    for (const file of files) {
      mkdirSync(dirname(join(inside, file)), { recursive: true });
      cpSync(join(ROOT, file), join(inside, file));
    }
    const manifest = {
      name,
      version,
      license,
      type: "module",
      exports,
      os: ["linux"],
      cpu: ["x64", "arm64"],
    };
    writeFileSync(join(inside, "package.json"), JSON.stringify(manifest, null, 2) + "\n");
    const path = join(
      resolve(out),
      `${String(name).replace("@", "").replace("/", "-")}-${version}.tgz`,
    );
    mkdirSync(dirname(path), { recursive: true });
    const fixed = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"];
    const { status, output } = run("tar", [...fixed, "-czf", path, "-C", staging, "package"]);
    if (status !== 0) throw new Error(`tar failed: ${output}`);
    const unpacked = [...files, "package.json"]
      .reduce((sum, file) => sum + statSync(join(inside, file)).size, 0);
    return { path, files: files.length + 1, unpacked, packed: statSync(path).size };
  } finally {
    rmSync(staging, { recursive: true, force: true });
  }
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { out: { type: "string", default: "." } } });
  const { path, files, unpacked, packed } = pack(process.execPath, values.out);
  console.log(`${path}: ${files} files, ${kib(unpacked)}, packed ${kib(packed)}`);
}

function kib(bytes: number): string {
  return `${(bytes / 1024).toFixed(0)} KiB`;
}
