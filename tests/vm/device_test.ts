import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { statSync } from "node:fs";
import { test } from "node:test";

test("the VM has an active soft-RoCE device", () => {
  const { status, stdout, stderr } = spawnSync("ibv_devinfo", { encoding: "utf8" });
  assert.equal(status, 0, stderr);
  assert.match(stdout, /hca_id:\s+rxe0$/m);
  assert.match(stdout, /state:\s+PORT_ACTIVE/);
  assert.match(stdout, /link_layer:\s+Ethernet/);
});

test("the device nodes are there", () => {
  for (const name of ["uverbs0", "rdma_cm"]) {
    assert.ok(statSync(`/dev/infiniband/${name}`).isCharacterDevice(), name);
  }
});
