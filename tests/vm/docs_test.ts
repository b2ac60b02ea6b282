import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { documents, testPrograms } from "../support/docs.ts";
import { linesOf } from "../support/commands.ts";

// The programs that need a device, at the VM's address.
testPrograms(true, (source) => source.replaceAll("10.0.0.1", "10.9.0.1"));

for (const { blocks } of documents) {
  for (const block of blocks.filter(({ words }) => words.join(" ") === "sh rdma")) {
    for (const line of linesOf(block)) {
      test(`${block.file}, line ${block.line}: ${line}`, () => {
        const { status, stdout, stderr } = spawnSync("sh", ["-c", line], { encoding: "utf8" });
        assert.equal(status, 0, `${stdout}${stderr}`);
        assert.notEqual(stdout.trim(), "", "it says something");
      });
    }
  }
}
