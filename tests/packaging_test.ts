// The library as its users get it: over https on Deno, as an npm tarball and as a compiled executable on Bun.
import assert from "node:assert/strict";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { pack, publishedFiles } from "../tools/pack.ts";
import { here } from "./support/child.ts";
import { command, ROOT } from "./support/docs.ts";

const directory = mkdtempSync(join(tmpdir(), "moat-packaging-test-"));
after(() => rmSync(directory, { recursive: true }));

/** A program that sends with a guard; `module` is what it imports. */
function program(module: string): string {
  return `import { connect, listen, Pool } from ${JSON.stringify(module)};
await using pool = Pool.create({ bytes: 16 << 20 });
const name = "shm://packaging-" + process.pid + "-" + Date.now();
await using listener = await listen(name, { pool });
await using channel = await connect(name, { pool });
await using peer = await listener.accept();
using buf = pool.alloc(1 << 20);
buf.bytes.fill(7);
channel.send(buf, { guard: "cow" });
buf.bytes.fill(8);
using message = await peer.recv();
console.log(message.bytes[0], message.bytes.at(-1), buf.bytes[0], pool.stats().privatePages > 0);
`;
}
const PRINTED = "7 7 8 true\n";

interface Ran {
  status: number | null;
  stdout: string;
  stderr: string;
}

async function run(words: string[], cwd: string, env: Record<string, string> = {}): Promise<Ran> {
  // By a shell: a program that Deno starts as itself gets permissions that it was not given here.
  const line = words.map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(" ");
  const child: ChildProcess = spawn("sh", ["-c", `exec ${line}`], {
    cwd,
    env: { ...process.env, NO_COLOR: "1", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "", stderr = "";
  child.stdout!.on("data", (chunk) => stdout += chunk);
  child.stderr!.on("data", (chunk) => stderr += chunk);
  const [status] = await once(child, "close") as [number | null];
  return { status, stdout, stderr };
}

function assertRan({ status, stdout, stderr }: Ran, expected = PRINTED): void {
  assert.equal(status, 0, stderr);
  assert.equal(stdout, expected);
}

if (here === "deno") {
  test("without the permission for FFI, or with it for one path, the error says what to grant", async () => {
    const source = program(join(ROOT, "mod.ts"));
    writeFileSync(join(directory, "denied.ts"), `import process from "node:process";\n${source}`);
    for (const flags of [[], ["--allow-ffi=/nowhere"]]) {
      const words = [...command("deno"), "run", "--no-prompt", "--no-check", ...flags, "denied.ts"];
      const { status, stderr } = await run(words, directory);
      assert.equal(status, 1);
      assert.match(
        stderr,
        /permission for FFI has not been granted: run it with --allow-ffi, for all paths/,
      );
    }
  });

  test("with the permission for FFI alone localhost is found, and other names say what they need", async () => {
    const source = `import { connect, listen, Pool } from ${JSON.stringify(join(ROOT, "mod.ts"))};
const pool = Pool.create({ bytes: 1 << 20 });
const listener = await listen("tcp://localhost:0", { pool });
const channel = await connect(listener.address.replace("127.0.0.1", "localhost"), { pool });
await connect("tcp://example.com:1", { pool }).catch((error) => console.log(error.message));
console.log(channel.closed);
Deno.exit(0);
`;
    writeFileSync(join(directory, "names.ts"), source);
    const flags = ["--no-prompt", "--no-check", "--allow-ffi"];
    const ran = await run([...command("deno"), "run", ...flags, "names.ts"], directory);
    const hint = "run it with --allow-net, or pass a numeric address";
    assertRan(ran, `the host "example.com" may not be looked up: ${hint}\nfalse\n`);
  });

  test("an https import works, with the permission for FFI alone, and from the cache with the server down", async (t) => {
    const files = publishedFiles(command("deno")[0]!);
    const [key, certificate] = ["key.pem", "certificate.pem"].map((name) => join(directory, name));
    const made = spawnSync("openssl", [
      ...["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"],
      ...["-keyout", key!, "-out", certificate!, "-days", "2", "-subj", "/CN=localhost"],
      ...[
        "-addext",
        "subjectAltName=DNS:localhost",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
      ],
    ], { encoding: "utf8" });
    assert.equal(made.status, 0, made.stderr);

    // Exactly what is published can be had.
    const served = new Map(files.map((file) => [`/moat/${file}`, readFileSync(join(ROOT, file))]));
    const missing: string[] = [];
    const server = createServer(
      { key: readFileSync(key!), cert: readFileSync(certificate!) },
      (request, response) => {
        const body = served.get(request.url!);
        if (!body) missing.push(request.url!);
        const type = request.url!.endsWith(".ts") ? "application/typescript" : "text/plain";
        response.writeHead(body ? 200 : 404, { "content-type": type }).end(body);
      },
    );
    server.listen(0, "localhost");
    await once(server, "listening");
    t.after(() => server.close());
    const host = `localhost:${(server.address() as AddressInfo).port}`;

    const cwd = join(directory, "https");
    mkdirSync(cwd);
    writeFileSync(
      join(cwd, "main.ts"),
      `import process from "node:process";\n${program(`https://${host}/moat/mod.ts`)}`,
    );
    writeFileSync(
      join(cwd, "verbs.ts"),
      `import { openDevice } from "https://${host}/moat/lib/verbs/mod.ts";\nconsole.log(typeof openDevice);\n`,
    );
    const env = { DENO_DIR: join(directory, "deno"), DENO_CERT: certificate! };
    const words = [...command("deno"), "run", "--no-prompt", "--no-check", "--allow-ffi"];
    const allowed = [...words, `--allow-import=${host}`];
    assertRan(await run([...allowed, "main.ts"], cwd, env));
    assertRan(await run([...allowed, "verbs.ts"], cwd, env), "function\n");
    assert.deepEqual(missing, [], "what was asked for and is not published");

    server.close();
    server.closeAllConnections();
    assertRan(await run([...allowed, "--cached-only", "main.ts"], cwd, env));
    assertRan(await run([...allowed, "main.ts"], cwd, env));
  });
} else {
  test("a packed tarball is added by bun and imported by its name", async () => {
    const packed = pack(JSON.parse(process.env["MOAT_DENO"] ?? '["deno"]')[0], directory);
    // What the README says of the size.
    const readme = readFileSync(join(ROOT, "README.md"), "utf8");
    const [, said] = /(\d+) KiB packed/.exec(readme) ?? [];
    assert.ok(said, "the README says how large the package is");
    const kib = packed.packed / 1024;
    assert.ok(
      Math.abs(kib - Number(said)) < 0.1 * kib,
      `the README says ${said} KiB, it is ${kib}`,
    );

    const cwd = join(directory, "project"), [bun] = command("bun");
    mkdirSync(cwd);
    writeFileSync(join(cwd, "package.json"), '{ "name": "project", "type": "module" }\n');
    const env = { BUN_INSTALL_CACHE_DIR: join(directory, "cache") };
    const added = await run([bun!, "add", packed.path], cwd, env);
    assert.equal(added.status, 0, added.stderr);
    const { dependencies } = JSON.parse(readFileSync(join(cwd, "package.json"), "utf8"));
    assert.deepEqual(Object.keys(dependencies), ["@moat/rdma"]);

    writeFileSync(join(cwd, "main.ts"), program("@moat/rdma"));
    assertRan(await run([bun!, "main.ts"], cwd));
    writeFileSync(
      join(cwd, "verbs.ts"),
      'import { openDevice } from "@moat/rdma/verbs";\nconsole.log(typeof openDevice);\n',
    );
    assertRan(await run([bun!, "verbs.ts"], cwd), "function\n");

    // A project's type check looks into it, too: these are sources, not declarations.
    const types = ["typescript@7.0.2", "@types/bun@1.4.4"];
    const tools = await run([bun!, "add", "-d", ...types], cwd, env);
    assert.equal(tools.status, 0, tools.stderr);
    const compilerOptions = {
      ...{ lib: ["ESNext"], target: "ESNext", module: "Preserve", types: ["bun"] },
      ...{ moduleResolution: "bundler", allowImportingTsExtensions: true, noEmit: true },
      ...{ strict: true, noUncheckedIndexedAccess: true, noImplicitOverride: true },
    };
    writeFileSync(join(cwd, "tsconfig.json"), JSON.stringify({ compilerOptions }));
    writeFileSync(
      join(cwd, "types.ts"),
      'import { doctor } from "@moat/rdma/doctor";\nimport { Pool } from "@moat/rdma";\n' +
        'import { openDevice } from "@moat/rdma/verbs";\nvoid [doctor, Pool, openDevice];\n',
    );
    const checked = await run([join(cwd, "node_modules/.bin/tsc"), "--noEmit"], cwd);
    const wrong = checked.stdout.split("\n").filter((line) => !/^(main|verbs)\.ts/.test(line)).join(
      "\n",
    );
    assert.equal(wrong.trim(), "");

    // The helper is inside the executable: it needs none of the files it was made of.
    const built = await run([bun!, "build", "--compile", "main.ts", "--outfile", "main"], cwd);
    assert.equal(built.status, 0, built.stderr);
    const elsewhere = join(directory, "elsewhere");
    mkdirSync(elsewhere);
    cpSync(join(cwd, "main"), join(elsewhere, "main"));
    renameSync(cwd, join(directory, "gone"));
    assertRan(await run([join(elsewhere, "main")], elsewhere));
  });
}
