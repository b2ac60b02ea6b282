import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { type Channel, connect, listen, MoatError, Pool } from "../../mod.ts";
import { assertBytes, fill, pattern, sha256 } from "../support/bytes.ts";

const HOST = "10.9.0.1", AT = `rdma://${HOST}:0`, MIB = 1 << 20;
const raw = { protocol: "raw" } as const;

async function ends(pool: Pool): Promise<[Channel, Channel]> {
  await using listener = await listen(AT, { pool, ...raw });
  return await Promise.all([listener.accept(), connect(listener.address, { pool, ...raw })]);
}

test("over the raw protocol a message is one SEND and one RECV, straight from pages to pages", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  const [here, there] = await ends(pool);
  for (const [i, size] of [1, 100, 4096, 4097, 100_000, MIB].entries()) {
    using buf = pool.alloc(size), into = pool.alloc(size + 10);
    fill(buf.bytes, i);
    const got = there.recv(into), expected = pattern(i, size);
    await here.send(buf, { guard: "cow" });
    assert.equal((await got)!.bytes, size);
    assertBytes(into.bytes.subarray(0, size), expected, `${size} bytes`);
  }
  const message = there.recv();
  await here.send(pattern(9, 3000));
  using got = await message;
  assertBytes(got!.bytes, pattern(9, 3000), "into a buffer made for it");
  got!.release();
  here.abort();
  there.abort();
});

test("over the raw protocol a send is guarded until its completion", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  const [here, there] = await ends(pool);
  using buf = pool.alloc(MIB), into = pool.alloc(MIB);
  for (const guard of ["cow", "wait"] as const) {
    fill(buf.bytes, 1);
    const got = there.recv(into), sent = here.send(buf, { guard });
    buf.bytes.fill(0xee);
    await Promise.all([got, sent]);
    assert.equal(sha256(into.bytes), sha256(pattern(1, MIB)), guard);
  }
  here.abort();
  there.abort();
});

test("a scattered buffer is brought together for a device that takes few segments", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  const [here, there] = await ends(pool);
  using buf = pool.alloc(MIB), into = pool.alloc(MIB);
  fill(buf.bytes, 1);
  // Every other page becomes private, while the first message is held by its receive not being there yet.
  const first = here.send(buf, { guard: "cow" });
  for (let at = 0; at < MIB; at += 8192) buf.bytes[at]! ^= 0xff;
  const expected = sha256(buf.bytes);
  const second = here.send(buf, { guard: "cow" });
  await there.recv(into);
  assert.equal(sha256(into.bytes), sha256(pattern(1, MIB)));
  await there.recv(into);
  assert.equal(sha256(into.bytes), expected);
  await Promise.all([first, second]);
  here.abort();
  there.abort();
});

test("a message larger than a raw receive ends both sides, and the cause says why", async () => {
  await using pool = Pool.create({ bytes: 32 * MIB });
  const [here, there] = await ends(pool);
  using small = pool.alloc(100);
  const got = there.recv(small), sent = here.send(pattern(1, 5000));
  for (const promise of [got, sent]) {
    await assert.rejects(promise, (error) => {
      assert.ok(error instanceof MoatError);
      assert.equal(error.code, "PEER_LOST");
      assert.ok(error.cause instanceof MoatError, "a cause");
      assert.equal(error.cause.code, "COMPLETION_ERROR");
      assert.match(error.cause.message, /receive buffer/);
      return true;
    });
  }
  await Promise.all([here.close(), there.close()]);
});

test("the raw protocol talks to the C programs rdma_client and rdma_server", async () => {
  await using pool = Pool.create({ bytes: MIB });
  // rdma_client sends 16 bytes and wants 16 back.
  await using listener = await listen(`rdma://${HOST}:7471`, { pool, ...raw });
  const client = spawn("rdma_client", ["-s", HOST, "-p", "7471"], { stdio: "pipe" });
  let said = "";
  client.stdout.on("data", (chunk) => said += chunk);
  const channel = await listener.accept();
  using message = await channel.recv();
  assert.equal(message!.byteLength, 16);
  await channel.send(new Uint8Array(16));
  const [status] = await once(client, "close");
  assert.equal(status, 0, said);
  assert.match(said, /rdma_client: end 0/);
  channel.abort();
  await listener.close();

  // rdma_server answers 16 bytes with 16.
  const server = spawn("rdma_server", ["-p", "7472"], { stdio: "pipe" });
  let answered = "";
  server.stdout.on("data", (chunk) => answered += chunk);
  const ended = once(server, "close");
  let other: Channel | undefined;
  for (let tries = 0; !other; tries++) {
    try {
      other = await connect(`rdma://${HOST}:7472`, { pool, ...raw });
    } catch (error) {
      if (tries === 50) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
  const answer = other.recv();
  await other.send(new Uint8Array(16).fill(7));
  using got = await answer;
  assert.equal(got!.byteLength, 16);
  const [exit] = await ended;
  assert.equal(exit, 0, answered);
  assert.match(answered, /rdma_server: end 0/);
  other.abort();
});
