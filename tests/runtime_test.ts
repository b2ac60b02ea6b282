import assert from "node:assert/strict";
import { test } from "node:test";
import { MoatError } from "../mod.ts";
import { choose, OLDEST, runtime } from "../ffi/runtime.ts";
import { openFirst } from "../ffi/libc.ts";

function refusal(run: () => unknown): MoatError {
  try {
    run();
  } catch (error) {
    assert.ok(error instanceof MoatError, String(error));
    return error;
  }
  throw new Error("it was not refused");
}

const linux = { os: "linux", arch: "x86_64" };

test("another operating system or processor is refused by name", () => {
  const mac = refusal(() =>
    choose({ Deno: { version: { deno: "2.9.6" }, build: { os: "darwin", arch: "aarch64" } } })
  );
  assert.equal(mac.code, "UNSUPPORTED_PLATFORM");
  assert.match(mac.message, /darwin on aarch64/);
  const risc = refusal(() =>
    choose({ Bun: { version: "9.0.0" }, process: { platform: "linux", arch: "riscv64" } })
  );
  assert.match(risc.message, /linux on riscv64/);
});

test("a runtime that is too old, or another, is refused with its version and the remedy", () => {
  const deno = refusal(() => choose({ Deno: { version: { deno: "1.46.3" }, build: linux } }));
  assert.equal(deno.code, "UNSUPPORTED_PLATFORM");
  assert.match(deno.message, /deno 1\.46\.3.*deno upgrade/);
  const bun = refusal(() =>
    choose({ Bun: { version: "1.4.4" }, process: { platform: "linux", arch: "x64" } })
  );
  assert.match(bun.message, /bun 1\.4\.4.*bun upgrade/);
  const node = refusal(() => choose({ process: { platform: "linux", arch: "x64" } }));
  assert.match(node.message, /another JavaScript runtime/);
});

test("this runtime, and the oldest that are promised, are not refused", () => {
  assert.ok(["deno", "bun"].includes(runtime().name));
  if (runtime().name === "deno") {
    assert.equal(choose({ Deno: { version: { deno: OLDEST.deno }, build: linux } }).name, "deno");
  } else {
    const process = { platform: "linux", arch: "x64" };
    assert.equal(choose({ Bun: { version: OLDEST.bun }, process }).name, "bun");
  }
});

test("a library that is missing: every path that was tried, and what to install", () => {
  const error = refusal(() =>
    openFirst(
      "libnothing",
      ["libnothing.so.1", "/nowhere/libnothing.so"],
      {},
      "apt-get install nothing",
    )
  );
  assert.equal(error.code, "LIBRARY_NOT_FOUND");
  assert.match(
    error.message,
    /libnothing\.so\.1 .*\/nowhere\/libnothing\.so .*apt-get install nothing/s,
  );
});

test("importing the library opens nothing and prints nothing", async (t) => {
  const { Child } = await import("./support/child.ts");
  const { code, stdout, stderr } = await new Child(t, "import_only").exit;
  assert.deepEqual({ code, stdout: stdout.trim(), stderr: stderr.trim() }, {
    code: 0,
    stdout: '{"helper":false}',
    stderr: "",
  });
});
