/**
 * The scripts that run in the guest: the first process, and what sets up the network and runs the
 * command.
 *
 * @module
 */

/** The network that the VMs share; the host's number is the last part of its address. */
const NETWORK = "10.9.0";

/** The address of host 1 or 2. */
export function addressOf(host: number): string {
  return `${NETWORK}.${host}`;
}

/** The virtio ports on which the guest answers, in the order of their numbers, from 1. */
export const PORTS = ["stdout", "stderr", "status"] as const;

/**
 * The first process. The kernel's command line names the directory of the VM on the host
 * (moat.dir) and the one that is shared for writing (moat.out), both encoded like a URL.
 */
export const INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

for module in $(cat /modules/order); do
  insmod /modules/$module || echo "moat: cannot load $module"
done

argument() {
  encoded=$(sed -n "s/.*moat\\.$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline)
  httpd -d "$encoded"
}
dir=$(argument dir)
out=$(argument out)

die() {
  echo "moat: $1"
  reboot -f
}
nine=trans=virtio,version=9p2000.L,msize=1048576
mount -t 9p -o ro,cache=loose,$nine root /lower || die "cannot mount the host's root"
mount -t tmpfs -o size=60%,mode=755 tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /root ||
  die "cannot mount the overlay"

cd /root
mkdir -p proc sys dev run tmp
mount --move /proc proc
mount --move /sys sys
mount --move /dev dev
mkdir -p dev/pts dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o mode=755 run run
ln -sf /proc/self/fd dev/fd
ln -sf /proc/self/fd/0 dev/stdin
ln -sf /proc/self/fd/1 dev/stdout
ln -sf /proc/self/fd/2 dev/stderr
mkdir -p ".$out"
# Not cached, so that the host and other VMs see what is written at once.
mount -t 9p -o rw,cache=none,$nine out ".$out" || die "cannot mount the shared directory"

chroot /root /bin/sh "$dir/run.sh"
sync
reboot -f
`;

/** What {@linkcode runScript} puts into the script. */
export interface Run {
  host: number;
  command: string[];
  cwd: string;
  env: Record<string, string>;
  /** Packets lost, in percent. */
  loss: number;
  /** Wait until the other host answers. */
  awaitPeer: boolean;
}

/** The script that runs in the host's file system, as root. */
export function runScript({ host, command, cwd, env, loss, awaitPeer }: Run): string {
  const environment = Object.entries(env).map(([name, value]) => quote(`${name}=${value}`));
  return `#!/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
busybox hostname ${quote(`moat${host}`)}
set -- /dev/vport*p1
port=\${1%1}
fail() {
  echo "moat vm: $1" >"\${port}2"
  echo 125 >"\${port}3"
  exit
}

ip link set lo up
ip link set eth0 up || fail "there is no eth0"
ip addr add ${addressOf(host)}/24 dev eth0
rdma link add rxe0 type rxe netdev eth0 || fail "cannot add the rxe link"
${
    loss > 0
      ? `tc qdisc add dev eth0 root netem loss ${loss}% limit 10000 || fail "cannot set up the loss"`
      : ""
  }
tries=0
until [ "$(cat /sys/class/infiniband/rxe0/ports/1/state)" = "4: ACTIVE" ]; do
  tries=$((tries + 1))
  [ $tries -lt 100 ] || fail "the rxe link does not get active"
  sleep 0.1
done
${
    awaitPeer
      ? `tries=0
until busybox ping -c 1 -W 1 ${addressOf(3 - host)} >/dev/null 2>&1 || [ $tries -ge 20 ]; do
  tries=$((tries + 1))
  sleep 0.5
done`
      : ""
  }

# The host's Deno may be writing these databases, and what is copied of them meanwhile need not fit together. They
# are caches, and big: each is copied whole for its first change. Gone here, they stay on the host: what is
# below the directory that is shared for writing is not touched.
caches=${quote(denoDirectory(env))}
if [ "$(stat -f -c %T "$caches" 2>/dev/null)" = overlayfs ]; then
  rm -f "$caches"/*_cache_v*
fi

# By pipes, because a port can be opened only once.
mkfifo /run/moat.stdout /run/moat.stderr
cat /run/moat.stdout >"\${port}1" &
first=$!
cat /run/moat.stderr >"\${port}2" &
second=$!
(
  exec </dev/null >/run/moat.stdout 2>/run/moat.stderr
  ulimit -l unlimited
  ulimit -n 65536
  cd ${quote(cwd)} || exit 125
  PATH=${quote(env["PATH"] ?? "/usr/sbin:/usr/bin:/sbin:/bin")}
  set -- ${command.map(quote).join(" ")}
  if ! command -v "$1" >/dev/null; then
    echo "moat vm: $1: command not found" >&2
    exit 127
  fi
  exec env -i ${environment.join(" ")} "$@"
)
status=$?
# What the command left running may hold the pipes open.
(
  sleep 3
  kill $first $second
) &
wait $first
wait $second
echo $status >"\${port}3"
`;
}

/** Where Deno keeps its caches. */
function denoDirectory(env: Record<string, string>): string {
  return env["DENO_DIR"] || `${env["XDG_CACHE_HOME"] || `${env["HOME"] ?? "/root"}/.cache`}/deno`;
}

/** A word for the shell. */
export function quote(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
