import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import process from "node:process";
import { test } from "node:test";
import * as arm from "../ffi/helper/aarch64.ts";
import * as x86 from "../ffi/helper/x86_64.ts";
import { MoatError } from "../ffi/errors.ts";
import { architecture } from "../ffi/runtime.ts";
import { listen, Pool } from "../mod.ts";
import { lookAtPorts } from "../lib/doctor/devices.ts";
import { Section } from "../lib/doctor/finding.ts";
import { Host } from "../lib/doctor/host.ts";
import { type Diagnosis, doctor, type Finding } from "../lib/doctor/mod.ts";
import type { DeviceAttributes, PortAttributes } from "../lib/verbs/attributes.ts";
import type { GidEntry } from "../lib/verbs/gid.ts";
import { here } from "./support/child.ts";
import {
  diagnose,
  diagnoseUnder,
  DOCTOR,
  find,
  run,
  type Surroundings,
} from "./support/doctored.ts";
import { leftovers } from "./support/leftovers.ts";

const isRoot = process.getuid?.() === 0;

/** A test that mounts files over others, or becomes another user. */
function testAsRoot(name: string, body: () => void): void {
  if (!isRoot) console.log(`# SKIP ${name}: only root can change what a process finds`);
  test(name, { skip: !isRoot }, body);
}

/** Where a mount is seen by nobody else. */
function mounted(script: string, ...more: string[]): Surroundings {
  return { unshare: ["--mount", ...more], script };
}

/** Puts a text in the place of a file. */
function instead(file: string, text: string): Surroundings {
  return mounted(`echo '${text}' >"$dir/text"; mount --bind "$dir/text" ${file}`);
}

/** Nothing that is needed is missing; what it is, if so. */
function assertWorks({ ok, findings }: Diagnosis): void {
  assert.ok(ok, JSON.stringify(findings.filter(({ blocks }) => blocks !== undefined), null, 1));
}

const NO_DEVICE = "test ! -e /sys/class/infiniband || mount -t tmpfs none /sys/class/infiniband";
/** A kernel with a device, as far as can be seen from its classes. */
const A_DEVICE = `mount -t tmpfs none /sys/class
  mkdir -p /sys/class/infiniband/fake0 /sys/class/infiniband_verbs /sys/class/misc/rdma_cm
  test ! -e /dev/infiniband || mount -t tmpfs none /dev/infiniband`;

test("doctor() finds, and does not throw, that no pool can be made", async () => {
  const pools: Pool[] = [];
  try {
    for (;;) pools.push(Pool.create({ bytes: 4096, reserve: 0 }));
  } catch (error) {
    assert.ok(error instanceof MoatError && pools.length === 256, String(error));
  }
  const { ok, findings } = await doctor();
  await Promise.all(pools.map((pool) => pool.close()));
  assert.equal(ok, false);
  assert.match(findings.find(({ blocks }) => blocks === "everything")!.detail, /256 pools/);
});

test("doctors of one process number do not meet each other", async () => {
  const pool = Pool.create({ bytes: 4096 }),
    names = [0, 1, 2, 3].map((i) => `doctor-${process.pid}-${i}`);
  const listeners = await Promise.all(names.map((name) => listen(`shm://${name}`, { pool })));
  assert.equal((await doctor()).transports.shm.works, true);
  await Promise.all(listeners.map((listener) => listener.close()));
  await pool.close();
});

test("doctor() says of everything whether it works, and of what does not how to mend it", async () => {
  const diagnosis = await doctor();
  const { ok, transports, findings } = diagnosis;
  assert.equal(ok, true, JSON.stringify(findings, null, 1));
  assert.equal(transports.shm.works && transports.tcp.works, true);
  assert.equal(new Set(findings.map(({ id }) => id)).size, findings.length);
  for (const { detail, state, mend, blocks } of findings) {
    assert.match(detail, /^\S.*$/);
    if (state === "ok") assert.deepEqual({ mend, blocks }, { mend: undefined, blocks: undefined });
  }
  for (const id of ["helper", "sigsegv", "trial-shm", "trial-tcp", "libc", "kernel"]) {
    assert.equal(find(diagnosis, id).state, "ok", id);
  }
  const { sha256, byteLength } = architecture() === "x86_64" ? x86 : arm;
  assert.equal(find(diagnosis, "helper-sha256").detail, sha256);
  assert.match(find(diagnosis, "helper").detail, new RegExp(byteLength.toLocaleString("en")));
  assert.match(find(diagnosis, "trial-shm").detail, /arrived as sent.*\(16 pages private\)/);
});

test("doctor() leaves nothing behind, and may be called again", async () => {
  const held = (): number[] => Object.values(leftovers() as Record<string, number>);
  const moment = (): Promise<unknown> => new Promise((resolve) => setTimeout(resolve, 50));
  const { findings } = await doctor();
  await moment();
  const before = held();
  for (let i = 0; i < 3; i++) {
    assert.deepEqual((await doctor()).findings.map(({ id }) => id), findings.map(({ id }) => id));
  }
  // Pools are given back a moment after the diagnosis.
  const more = (): boolean => held().some((count, i) => count > before[i]!);
  for (let i = 0; i < 200 && more(); i++) await moment();
  assert.equal(more(), false, `${before} before, ${held()} now: descriptors, operations, mappings`);
});

test("what is required decides whether it is ok, and has to be a transport", async () => {
  const { ok, transports } = await doctor({ require: ["rdma"] });
  assert.equal(ok, transports.rdma.works);
  for (const wrong of [["http"], "shm", [1], null]) {
    await assert.rejects(
      doctor({ require: wrong as never }),
      (e) =>
        e instanceof MoatError && e.code === "INVALID_ARGUMENT" && /shm, tcp, rdma/.test(e.message),
    );
  }
});

test("the program prints a line for each finding, and what works at the end", () => {
  const { status, stdout, stderr } = run([]);
  assert.deepEqual({ status, stderr }, { status: 0, stderr: "" });
  const lines = stdout.trimEnd().split("\n");
  assert.match(lines.at(-1)!, /^shm:\/\/ yes, tcp:\/\/ yes \(\w+\), rdma:\/\/ (yes|no: )/);
  const { findings } = diagnose();
  const marked = lines.filter((line) => /^ {2}(ok|limited|missing) /.test(line));
  assert.equal(marked.length, findings.length);
  const width = Math.max(...findings.map(({ subject }) => subject.length));
  for (const [i, { subject, state }] of findings.entries()) {
    const start = `  ${state.padEnd(7)}  ${subject.padEnd(width)}  `;
    assert.equal(marked[i]!.slice(0, start.length), start);
    assert.match(marked[i]!.slice(start.length), /^\S/);
  }
  for (const line of marked) assert.ok(line.length <= 100, line);
  assert.doesNotMatch(stdout, /\p{Cc}\[/u, "no colours into a pipe");
  const mends = findings.filter(({ mend }) => mend !== undefined);
  assert.equal(lines.filter((line) => /^ +-> /.test(line)).length, mends.length);
});

test("--help lists the options, and what is not one is refused with them", () => {
  const help = run(["--help"]);
  assert.equal(help.status, 0);
  assert.match(help.stdout, /--json.*\n.*--help/);
  for (const wrong of [["--jsn"], ["more"], ["--require", "http"], ["--require="], ["--require"]]) {
    const { status, stdout, stderr } = run(wrong);
    assert.deepEqual({ status, stdout }, { status: 2, stdout: "" }, wrong.join(" "));
    assert.ok(stderr.endsWith(help.stdout), stderr);
  }
});

if (here === "deno") {
  const withPermissions = (...flags: string[]): Diagnosis & { status: number | null } => {
    const { status, stdout, stderr } = spawnSync(
      // By the shell: a Deno that Deno itself starts gets all permissions.
      "sh",
      ["-c", 'exec "$deno" run --no-prompt "$@" "$doctor" --json', "sh", ...flags],
      { encoding: "utf8", env: { ...process.env, deno: process.execPath, doctor: DOCTOR } },
    );
    assert.equal(stderr, "");
    return { status, ...JSON.parse(stdout) as Diagnosis };
  };

  test("without --allow-ffi that is what it finds, and nothing else is looked at", () => {
    for (const flags of [[], ["--allow-read", "--allow-env"], ["--allow-ffi=/nowhere"]]) {
      const diagnosis = withPermissions(...flags);
      assert.deepEqual([diagnosis.status, diagnosis.ok], [1, false]);
      assert.deepEqual(diagnosis.findings.map(({ id }) => id), ["runtime", "ffi"]);
      const { state, blocks, mend } = find(diagnosis, "ffi");
      assert.deepEqual([state, blocks], ["missing", "everything"]);
      assert.match(mend!, /--allow-ffi/);
    }
  });

  test("with --allow-ffi alone it finds what it finds with all permissions", () => {
    const { status, ok, ...diagnosis } = withPermissions("--allow-ffi");
    assert.deepEqual([status, ok], [0, true]);
    const stable = ({ findings }: { findings: Diagnosis["findings"] }): unknown =>
      findings.filter(({ id }) => id !== "max-map-count");
    assert.deepEqual(stable(diagnosis), stable(diagnose()));
  });
}

test("a library that is not there is named with the package that has it", () => {
  const diagnosis = diagnose({ env: { MOAT_LIBIBVERBS: "/nowhere/libibverbs.so.1" } });
  const { state, detail, mend, blocks } = find(diagnosis, "libibverbs");
  assert.deepEqual([state, blocks, mend], ["missing", "rdma", "unset MOAT_LIBIBVERBS"]);
  assert.match(detail, /\/nowhere\/libibverbs\.so\.1/);
  assert.deepEqual(diagnosis.transports.rdma, { works: false, detail: "no libraries" });
  assertWorks(diagnosis);
});

testAsRoot("libraries that cannot be loaded: rdma:// is what they block", () => {
  const script = `${NO_DEVICE}
    for name in libibverbs librdmacm; do
      for file in $(ldconfig -p | sed -n "s/.*$name.so.1 .* => //p"); do
        mount --bind /dev/null "$(realpath "$file")"
      done
    done`;
  const diagnosis = diagnose(mounted(script), ["--require", "rdma"]);
  for (const id of ["libibverbs", "librdmacm"]) {
    const { state, detail, mend, blocks } = find(diagnosis, id);
    assert.deepEqual([state, blocks], ["missing", "rdma"]);
    assert.match(detail, new RegExp(`tried ${id}\\.so\\.1 \\(`));
    assert.match(mend!, /apt-get install ibverbs-providers librdmacm1/);
  }
  assert.equal(diagnosis.ok, false);
  assert.equal(diagnosis.transports.shm.works, true);
});

testAsRoot("no device: only who requires rdma:// is told that it blocks", () => {
  const diagnosis = diagnose(mounted(NO_DEVICE));
  const { state, blocks } = find(diagnosis, "device");
  assert.deepEqual([state, blocks, diagnosis.ok], ["missing", "rdma", true]);
  assert.deepEqual(diagnosis.transports.rdma, { works: false, detail: "no device" });
  assert.equal(diagnose(mounted(NO_DEVICE), ["--require", "shm,rdma"]).ok, false);
});

testAsRoot("no device: the commands that make one of the interface of the default route", () => {
  const kernel = `ip link add eth6 type veth peer name eth7; ip link set eth6 up
    ip addr add 10.9.9.1/24 dev eth7; ip link set eth7 up; ip route add default via 10.9.9.2
    mount -t sysfs none /sys; ${NO_DEVICE}`;
  const look = (more: string): Finding =>
    find(diagnose(mounted(`${kernel}\n${more}`, "--net")), "device");
  const loaded = `mkdir -p $dir/module/rdma_rxe; mount --bind $dir/module /sys/module`;
  const command = "rdma link add rxe0 type rxe netdev eth7";
  const withIt = look(loaded);
  assert.match(withIt.detail, /^none; rdma_rxe is loaded$/);
  assert.ok(withIt.mend!.endsWith(command), withIt.mend);
  assert.doesNotMatch(withIt.mend!, /modprobe/);

  const there = `mkdir $dir/upper $dir/work
    mount -t overlay -o lowerdir=/usr/lib,upperdir=$dir/upper,workdir=$dir/work none /usr/lib
    modules=/usr/lib/modules/$(cat /proc/sys/kernel/osrelease); mkdir -p $modules
    echo kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko: >$modules/modules.dep
    mkdir $dir/empty; mount --bind $dir/empty /sys/module`;
  const { detail, mend } = look(there);
  assert.equal(detail, "none; the module rdma_rxe is there");
  assert.ok(mend!.endsWith(`modprobe rdma_rxe && ${command}`), mend);
});

testAsRoot("a device whose nodes are not there, as in a container", () => {
  const diagnosis = diagnose(mounted(`${A_DEVICE}
    mount -t tmpfs none /run; touch /run/.containerenv`));
  const { state, detail, mend, blocks } = find(diagnosis, "nodes");
  assert.deepEqual([state, blocks], ["missing", "rdma"]);
  assert.match(mend!, /--device=\/dev\/infiniband --ulimit memlock=-1 --cap-add=IPC_LOCK/);
  assert.match(detail, /uverbs0 and rdma_cm not in \/dev\/infiniband/);
  assert.deepEqual(diagnosis.transports.rdma, { works: false, detail: "its device nodes" });
});

testAsRoot("a device without its kernel modules: which to load", () => {
  const script = `${A_DEVICE}; rmdir /sys/class/misc/rdma_cm`;
  const { state, detail, mend } = find(diagnose(mounted(script)), "modules");
  assert.equal(state, "missing");
  assert.match(detail, /^rdma_ucm not loaded/);
  assert.match(mend!, /modprobe -a rdma_ucm$/);
});

testAsRoot("a kernel that is too old blocks everything", () => {
  const diagnosis = diagnose(instead("/proc/sys/kernel/osrelease", "5.10.0-28-amd64"));
  const { state, detail, blocks } = find(diagnosis, "kernel");
  assert.deepEqual([state, blocks, diagnosis.ok], ["missing", "everything", false]);
  assert.match(detail, /5\.10\.0-28-amd64.*older than 5\.14/);
  assert.equal(diagnosis.transports.shm.works, false);
  const { stdout } = run([], instead("/proc/sys/kernel/osrelease", "5.10.0-28-amd64"));
  assert.match(stdout, /^Moat cannot work here: kernel$/m);
});

test("a helper that cannot be loaded blocks everything, and is said why", () => {
  const [diagnosis] = diagnoseUnder({ memfd: 1 });
  const { state, detail, blocks } = find(diagnosis, "helper");
  assert.deepEqual([state, blocks, diagnosis.ok], ["missing", "everything", false]);
  assert.equal(detail, "memfd_create failed: EPERM");
  assert.equal(diagnosis.transports.shm.works, false);
});

testAsRoot("few mappings limit the guards, and nothing more", () => {
  const diagnosis = diagnose(instead("/proc/sys/vm/max_map_count", "9000"));
  const { state, detail, mend } = find(diagnosis, "max-map-count");
  assert.deepEqual([state, diagnosis.ok], ["limited", true]);
  assert.match(detail, /^9,000, of which guards may use another \d/);
  assert.match(mend!, /sysctl -w vm\.max_map_count=/);
});

testAsRoot("without a network tcp:// blocks, unless shm:// is all that is required", () => {
  const alone = { unshare: ["--net"] };
  const diagnosis = diagnose(alone);
  assert.deepEqual([diagnosis.ok, diagnosis.transports.tcp.works], [false, false]);
  assert.equal(find(diagnosis, "trial-tcp").blocks, "tcp");
  assert.equal(diagnosis.transports.shm.works, true);
  assertWorks(diagnose(alone, ["--require", "shm"]));
});

test("few descriptors are a limit", () => {
  const diagnosis = diagnose({ script: "ulimit -n 256" });
  const { state, detail, mend } = find(diagnosis, "nofile");
  assert.equal(state, "limited");
  assert.match(detail, /^256/);
  assert.match(mend!, /ulimit/);
});

test("io_uring that is forbidden is a limit, and says by what", () => {
  const [diagnosis] = diagnoseUnder({ uring: 1 });
  const { state, detail } = find(diagnosis, "io-uring");
  assert.equal(state, "limited");
  assert.match(detail, /^forbidden: EPERM, by the seccomp filter; sockets/);
  assert.match(find(diagnosis, "container").detail, /a seccomp filter is on/);
  assert.deepEqual(diagnosis.transports.tcp, { works: true, detail: "sockets" });
  assertWorks(diagnosis);
});

testAsRoot("io_uring that a sysctl forbids is mended by that", () => {
  // The real setting is the whole machine's: what it does is done by a filter.
  const setting = instead("/proc/sys/kernel/io_uring_disabled", "2");
  const { state, detail, mend } = find(diagnoseUnder({ uring: 1 }, setting)[0], "io-uring");
  assert.equal(state, "limited");
  assert.match(detail, /^forbidden by kernel\.io_uring_disabled=2;/);
  assert.match(mend!, /sysctl -w kernel\.io_uring_disabled=0$/);
});

testAsRoot("little locked memory: what a user who is not root can register", () => {
  const [diagnosis] = diagnoseUnder({ memlock: 65536, uid: 65534 });
  const { state, detail, mend } = find(diagnosis, "memlock");
  assert.equal(state, "limited");
  assert.equal(detail, "64 KiB; a pool of the default size pins 96 MiB");
  assert.match(mend!, /memlock/);
  const ring = find(diagnosis, "io-uring");
  assert.deepEqual([ring.state, ring.mend], ["limited", "ulimit -l unlimited"]);
  assertWorks(diagnosis);
});

testAsRoot("a user who is not root finds the same, and how to get the rest", () => {
  const [diagnosis] = diagnoseUnder({ uid: 65534 });
  assertWorks(diagnosis);
  for (const id of ["helper-sha256", "sigsegv", "io-uring", "trial-shm", "trial-tcp"]) {
    assert.equal(find(diagnosis, id).state, "ok", id);
  }
  for (const { mend } of diagnosis.findings) {
    assert.doesNotMatch(mend ?? "", /^(sysctl|modprobe|chmod|rdma|apt-get) /);
  }
});

test("somebody else's SIGSEGV action is seen, and ours is back after a pool was used", () => {
  const [first, second] = diagnoseUnder({ sigsegv: true });
  assert.equal(find(first, "sigsegv").state, "ok");
  assert.equal(find(second!, "sigsegv").state, "limited");
  assert.equal(find(second!, "trial-shm").state, "ok");
});

test("what is said of a port's state and of its GID", () => {
  const look = (linkLayer: string, state: string, gid?: Partial<GidEntry>): unknown => {
    const section = new Section("RDMA");
    const [place] = lookAtPorts(section, new Host(), {
      deviceName: "nothing0",
      queryDevice: () => ({ physPortCnt: 1 }) as DeviceAttributes,
      queryPort: () => ({ linkLayer, state, activeMtu: 4096 }) as PortAttributes,
      preferredGid: () => gid && { index: 3, netdev: "eth3", gid: "GID", ...gid } as GidEntry,
    });
    const { state: found, mend = "" } = section.findings.at(-1)!;
    return [found, mend.replace(/^(sudo|on the host:) /, ""), place?.host];
  };
  const v4 = Uint8Array.from([...Array(10).fill(0), 255, 255, 10, 9, 0, 1]);
  const v6 = Uint8Array.from([0xfd, ...Array(14).fill(0), 1]);
  const local = Uint8Array.from([0xfe, 0x80, ...Array(13).fill(0), 1]);
  const type = "RoCE v2", add = "ip addr add ADDRESS/24 dev";
  assert.deepEqual(look("ETHERNET", "DOWN"), [
    "missing",
    "ip link set INTERFACE up",
    undefined,
  ]);
  assert.match(String(look("INFINIBAND", "INIT")), /opensm/);
  assert.deepEqual(look("ETHERNET", "ACTIVE", { bytes: v4, type }), ["ok", "", "10.9.0.1"]);
  assert.deepEqual(look("ETHERNET", "ACTIVE", { bytes: v6, type }), ["ok", "", "[GID]"]);
  assert.deepEqual(look("ETHERNET", "ACTIVE", { bytes: local, type }), [
    "limited",
    `${add} eth3`,
    undefined,
  ]);
  assert.deepEqual(look("ETHERNET", "ACTIVE"), ["missing", `${add} INTERFACE`, undefined]);
  assert.deepEqual(look("INFINIBAND", "ACTIVE", { bytes: local, type: "IB" }), [
    "ok",
    "",
    undefined,
  ]);
});
