import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { doctor } from "../../lib/doctor/mod.ts";
import { share } from "../support/child.ts";
import { diagnose, diagnoseUnder, find } from "../support/doctored.ts";

function sh(script: string): void {
  const { status, stderr } = spawnSync("sh", ["-ec", script], { encoding: "utf8" });
  assert.equal(status, 0, stderr);
}

test("a device: its port, its GID, and a message to ourselves", async () => {
  const diagnosis = await doctor({ require: ["rdma"] });
  const said = (id: string): string => {
    const { state, detail } = find(diagnosis, id);
    return `${state}: ${detail}`;
  };
  assert.equal(said("port-rxe0-1"), "ok: ACTIVE, Ethernet, MTU 1024");
  assert.match(
    said("gid-rxe0-1"),
    /^ok: \d+: ::ffff:10\.9\.0\.1 on eth0, RoCE v2 of an IPv4 address: the first choice$/,
  );
  assert.match(said("trial-rdma"), /^ok: a message arrived as sent.*\(16 pages private\)$/);
  assert.deepEqual(diagnosis.transports.rdma, { works: true, detail: "rxe0 port 1" });
  assert.equal(diagnosis.ok, true);
});

function nodes(): void {
  const nodes = "/dev/infiniband/uverbs0 /dev/infiniband/rdma_cm";
  sh(`chown root:staff ${nodes}; chmod 660 ${nodes}`);
  try {
    const [diagnosis] = diagnoseUnder({ uid: 65534 });
    const { state, detail, mend, blocks } = find(diagnosis, "nodes");
    assert.deepEqual([state, blocks], ["missing", "rdma"]);
    assert.match(detail, /^rdma_cm: EACCES for user 65534 \(root:staff, 0660\)$/);
    assert.match(mend!, /usermod -aG staff /);
  } finally {
    sh(`chown root:root ${nodes}; chmod 666 ${nodes}`);
  }
  const [diagnosis] = diagnoseUnder({ uid: 65534 });
  assert.equal(diagnosis.transports.rdma.works, true, JSON.stringify(diagnosis.findings, null, 1));
}

function driver(): void {
  // Drivers lie in a directory beside the library.
  const script = `library=$(ldconfig -p | sed -n 's/.*libibverbs.so.1 .* => //p')
    mount -t tmpfs none "$(dirname "$library")/libibverbs"`;
  const diagnosis = diagnose({ unshare: ["--mount"], script }, ["--require", "rdma"]);
  const { state, mend, blocks } = find(diagnosis, "device-rxe0");
  assert.deepEqual([state, blocks, diagnosis.ok], ["missing", "rdma", false]);
  assert.match(mend!, /apt-get install ibverbs-providers$/);
}

// They start runtimes under other names and roots, which takes long here; doctored hosts are in tests/doctor_test.ts.
const taken: [string, () => void][] = [
  ["device nodes that a user may not open, and how he may", nodes],
  ["a device that libibverbs has no driver for", driver],
];
for (const [name, take] of share(taken)) test(name, take);
