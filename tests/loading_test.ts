import assert from "node:assert/strict";
import { test } from "node:test";
import { Child } from "./support/child.ts";

test("Workers that load the helper at the same moment share one copy of it", async (t) => {
  assert.deepEqual(await new Child(t, "loader").next(), { copies: 1 });
});
