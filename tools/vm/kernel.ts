/**
 * The guest's kernel: Debian's image and those of its modules that are needed, kept in a cache.
 * Nothing of it is installed on the host.
 *
 * @module
 */
import { createHash } from "node:crypto";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import { basename, join } from "node:path";
import process from "node:process";
import { run, updatePackageLists } from "../apt.ts";

/** What the guest cannot do without, in the order of loading. */
const REQUIRED = [
  "virtio_pci",
  "virtio_console",
  "9p",
  "9pnet_virtio",
  "overlay",
  "virtio_net",
  // Without a "crc32" in the crypto API, adding the rxe link fails.
  "crc32_generic",
  "ib_uverbs",
  "rdma_rxe",
  "rdma_cm",
  "rdma_ucm",
];

/** What is loaded if the kernel has it. */
const OPTIONAL = ["crc32_pclmul", "virtio_rng", "ib_umad", "dummy", "veth", "sch_netem"];

/** The package that depends on the newest image; the cloud flavour has no rxe. */
const META_PACKAGE = "linux-image-amd64";

/** A kernel that can be booted. */
export interface Kernel {
  /** Name of the Debian package that it is from. */
  name: string;
  /** Path of the image. */
  image: string;
  /** Paths of the modules, uncompressed, in the order of loading. */
  modules: string[];
}

/** The directory for what takes long to get. */
export function cacheDirectory(): string {
  const base = process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache");
  const directory = join(base, "moat", "vm");
  mkdirSync(directory, { recursive: true });
  return directory;
}

/** Finds the kernel in the cache, or else gets the one that Debian currently has. */
export function findKernel(): Kernel {
  const cache = cacheDirectory();
  // Another list of modules needs another copy.
  const list = createHash("sha256").update([...REQUIRED, "|", ...OPTIONAL].join(" "));
  const suffix = `.${list.digest("hex").slice(0, 8)}`;
  const byVersion = (a: string, b: string): number => a.localeCompare(b, "en", { numeric: true });
  const cached = (): string | undefined =>
    readdirSync(cache).filter((name) => name.endsWith(suffix)).sort(byVersion).at(-1);
  const directory = cached() ?? download(cache, suffix);
  return readKernel(join(cache, directory));
}

function readKernel(directory: string): Kernel {
  const order = readFileSync(join(directory, "order"), "utf8").split("\n").filter(Boolean);
  return {
    name: basename(directory).replace(/\.\w+$/, ""),
    image: join(directory, "vmlinuz"),
    modules: order.map((name) => join(directory, name)),
  };
}

/** Downloads and unpacks the image's package; the name of the new directory in the cache. */
function download(cache: string, suffix: string): string {
  const scratch = mkdtempSync(join(cache, ".new-"));
  try {
    let name = resolveImage();
    let result = name === null ? null : run("apt-get", ["download", name], { cwd: scratch });
    if (result?.status !== 0) {
      // No package lists, or old ones that name a version which is gone.
      const problem = updatePackageLists();
      name = resolveImage();
      if (name === null) {
        throw new Error(
          `apt knows no ${META_PACKAGE}, whose kernel the VM boots (Debian's archive has it)` +
            (problem === null ? "" : `:\n${problem}`),
        );
      }
      result = run("apt-get", ["download", name], { cwd: scratch });
      if (result.status !== 0) {
        throw new Error(`apt-get download ${name} failed:\n${result.output}${problem ?? ""}`);
      }
    }

    const archive = readdirSync(scratch).find((file) => file.endsWith(".deb"))!;
    const tree = join(scratch, "tree");
    must("dpkg", ["-x", join(scratch, archive), tree]);
    const kept = join(scratch, "kept");
    mkdirSync(kept);
    keep(tree, kept);
    const directory = `${name!}${suffix}`;
    try {
      renameSync(kept, join(cache, directory));
    } catch (error) {
      // Someone else was faster.
      if (!existsSync(join(cache, directory))) throw error;
    }
    return directory;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** The name of the package that the meta package stands for. */
function resolveImage(): string | null {
  const { stdout } = run("apt-cache", ["depends", META_PACKAGE], { env: { LC_ALL: "C" } });
  return /^\s*Depends: (linux-image-\S+)$/m.exec(stdout)?.[1] ?? null;
}

/** Copies the image and the modules out of an unpacked package. */
function keep(tree: string, into: string): void {
  const boot = join(tree, "boot");
  const image = readdirSync(boot).find((name) => name.startsWith("vmlinuz-"))!;
  const release = image.slice("vmlinuz-".length);
  // Since merged /usr the modules may be there.
  const base = existsSync(join(tree, "usr/lib/modules")) ? join(tree, "usr") : tree;
  const modules = join(base, "lib/modules", release);
  must(existsSync("/usr/sbin/depmod") ? "/usr/sbin/depmod" : "depmod", ["-b", base, release]);

  copyFileSync(join(boot, image), join(into, "vmlinuz"));
  const order: string[] = [];
  for (const path of loadingOrder(modules)) {
    const name = basename(path).replace(/\.[xg]z$|\.zst$/, "");
    const tool = path.endsWith(".xz") ? "xz" : path.endsWith(".gz") ? "gzip" : "zstd";
    copyFileSync(join(modules, path), join(into, basename(path)));
    if (name !== basename(path)) must(tool, ["-qdf", join(into, basename(path))]);
    order.push(name);
  }
  writeFileSync(join(into, "order"), `${order.join("\n")}\n`);
}

/** The paths of the wanted modules and of what they depend on. */
function loadingOrder(modules: string): string[] {
  const nameOf = (path: string): string =>
    basename(path).replace(/\.ko(\.\w+)?$/, "").replaceAll("-", "_");
  const known = new Map<string, string[]>();
  for (const line of readFileSync(join(modules, "modules.dep"), "utf8").split("\n")) {
    const [path, dependencies] = line.split(":");
    if (dependencies === undefined) continue;
    // Dependencies come in the order of unloading.
    const needed = dependencies.split(" ").filter(Boolean).reverse();
    known.set(nameOf(path!), [...needed, path!]);
  }
  const builtIn = new Set(
    readFileSync(join(modules, "modules.builtin"), "utf8").split("\n").filter(Boolean).map(nameOf),
  );

  const order = new Set<string>();
  for (const name of [...REQUIRED, ...OPTIONAL]) {
    const paths = known.get(name);
    for (const path of paths ?? []) order.add(path);
    if (paths === undefined && !builtIn.has(name) && REQUIRED.includes(name)) {
      throw new Error(`the kernel has no module ${name}`);
    }
  }
  return [...order];
}

function must(command: string, args: string[]): void {
  const { status, output } = run(command, args);
  if (status !== 0) throw new Error(`${command} ${args.join(" ")} failed:\n${output}`);
}
