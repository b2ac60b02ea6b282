/**
 * The command line of QEMU.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { PORTS } from "./guest.ts";

/** Which parts the machine has. */
export interface Machine {
  host: number;
  /** The VM's directory on the host: its answers, its log and its socket. */
  directory: string;
  /** The directory that the guest can write to. */
  out: string;
  image: string;
  initramfs: string;
  /** MiB. */
  memory: number;
  cpus: number;
  accel: "tcg" | "kvm";
  /** The directory with the sockets that join two VMs. */
  link?: string;
}

/** The file that holds what the kernel printed. */
export const CONSOLE = "console";

/**
 * The emulated processor, without what is slower emulated than not there: with erms and fsrm the C library
 * and the kernel copy and clear by "rep movsb" and "rep stosb", which are emulated byte by byte.
 */
const EMULATED = "max,-erms,-fsrm";

/** The command that runs a machine. QEMU dies with the process that starts it. */
export function qemuCommand(machine: Machine): string[] {
  const { directory, host } = machine;
  const ports = PORTS.flatMap((name, i) => [
    "-chardev",
    `file,id=${name},path=${escape(join(directory, name))}`,
    "-device",
    `virtserialport,chardev=${name},name=moat.${name},nr=${i + 1}`,
  ]);
  const share = (id: string, path: string, more: string): string[] => [
    "-fsdev",
    `local,id=${id},path=${escape(path)},security_model=none,multidevs=remap${more}`,
    "-device",
    `virtio-9p-pci,fsdev=${id},mount_tag=${id}`,
  ];
  const append = [
    "console=ttyS0",
    "panic=-1",
    "quiet",
    // What is safe to do without, and takes time to emulate.
    "mitigations=off",
    "audit=0",
    "tsc=reliable",
    ...(machine.accel === "tcg" ? clockRate() : []),
    `moat.dir=${encodeURIComponent(directory)}`,
    `moat.out=${encodeURIComponent(machine.out)}`,
  ];
  return [
    // Not left to the parent's good will: it may be killed.
    ...["setpriv", "--pdeathsig", "KILL", "--"],
    "qemu-system-x86_64",
    ...["-nodefaults", "-display", "none", "-vga", "none", "-no-reboot"],
    ...["-M", "q35", "-accel", machine.accel, "-cpu", machine.accel === "kvm" ? "host" : EMULATED],
    ...["-smp", String(machine.cpus), "-m", String(machine.memory)],
    ...["-kernel", machine.image, "-initrd", machine.initramfs, "-append", append.join(" ")],
    ...["-chardev", `file,id=console,path=${escape(join(directory, CONSOLE))}`],
    ...["-serial", "chardev:console"],
    ...["-device", "virtio-serial-pci", ...ports],
    ...share("root", "/", ",readonly=on"),
    ...share("out", machine.out, ""),
    ...["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"],
    ...["-netdev", network(machine)],
    ...["-device", `virtio-net-pci,netdev=n0,mac=52:54:00:09:00:0${host}`],
  ];
}

/**
 * The rate of the time stamp counter, which is the host's when the processor is emulated. Otherwise the guest's kernel
 * measures it while it boots, and on a host that is busy with something else it has been off by a factor of
 * eight (1860 s passed there in 220): then all of the guest's clocks and time limits are.
 */
function clockRate(): string[] {
  const host = readFileSync("/proc/cpuinfo", "latin1");
  if (!/^flags\s*:.* constant_tsc /m.test(host)) return [];
  // Linux says twice the counter's rate there, in MHz.
  const mhz = Number(/^bogomips\s*:\s*([\d.]+)$/m.exec(host)?.[1]) / 2;
  return mhz > 0 ? [`tsc_early_khz=${Math.round(mhz * 1000)}`] : [];
}

/** Either a network with nobody else, or datagrams to the other VM. */
function network({ link, host }: Machine): string {
  if (link === undefined) return "user,id=n0,restrict=on";
  // Unix datagrams need no free port, do not care which side is there first, and hold the sender
  // back where other sockets lose what does not fit.
  const end = (number: number): string => escape(join(link, `host${number}`));
  return `dgram,id=n0,local.type=unix,local.path=${end(host)},` +
    `remote.type=unix,remote.path=${end(3 - host)}`;
}

/** Commas separate QEMU's options. */
function escape(path: string): string {
  return path.replaceAll(",", ",,");
}
