import assert from "node:assert/strict";
import { test } from "node:test";
import { MoatError } from "../ffi/errors.ts";
import { environment } from "../ffi/libc.ts";
import { nameOf, WC_STATUS } from "../ffi/verbs_enums.ts";
import { eventError } from "../lib/verbs/cm_event.ts";
import { completionError, verbError } from "../lib/verbs/errors.ts";
import { formatGid, isIPv4 } from "../lib/verbs/gid.ts";
import { NativeMemory } from "../lib/verbs/native.ts";
import { Posted } from "../lib/verbs/posted.ts";
import { Resource } from "../lib/verbs/resource.ts";
import { formatAddress, readAddress, writeAddress } from "../lib/verbs/socket_address.ts";
import { runtime } from "../ffi/runtime.ts";

test("a failed verb names itself, what it was asked, the errno and the likely cause", () => {
  const error = verbError("ibv_post_send", 12, {
    device: "rxe0",
    qpNum: 17,
    what: "request 3 of 5",
  });
  assert.equal(error.code, "VERB_FAILED");
  assert.equal(error.errno, 12);
  assert.equal(error.qpNum, 17);
  assert.match(
    error.message,
    /^ibv_post_send \(request 3 of 5\) on rxe0 failed: ENOMEM: the send queue is full/,
  );
});

test("what helps with each errno of a verb is in its message", () => {
  const hints: [string, number, Parameters<typeof verbError>[2], RegExp][] = [
    ["ibv_open_device", 13, {}, /\/dev\/infiniband\/uverbsN/],
    ["ibv_reg_mr", 22, {}, /remoteWrite and remoteAtomic need localWrite/],
    ["ibv_reg_mr", 12, { bytes: 1 }, /RLIMIT_MEMLOCK/],
    ["ibv_modify_qp", 22, { gidIndex: 3 }, /GID index 3 is empty/],
    ["ibv_modify_qp", 110, { gidIndex: 1, gidType: "RoCE v1 fe80::1" }, /GID index 1 is RoCE v1/],
    ["ibv_modify_qp", 22, {}, /transition is not allowed/],
    ["ibv_post_recv", 12, {}, /receive queue is full/],
    ["rdma_bind_addr", 19, {}, /rdma link add rxe0/],
    ["rdma_resolve_addr", 101, {}, /no route/],
  ];
  for (const [verb, errno, context, hint] of hints) {
    assert.match(verbError(verb, errno, context).message, hint);
  }
});

test("a completion error has everything that is known of it", () => {
  const error = completionError({
    status: 13,
    opcode: "SEND",
    qpNum: 9,
    vendorError: 0x81,
    peer: "10.0.0.1:7471",
    wrId: 4,
  });
  assert.deepEqual(
    [error.code, error.status, error.opcode, error.qpNum, error.vendorError, error.peer],
    ["COMPLETION_ERROR", "RNR_RETRY_EXC_ERR", "SEND", 9, 0x81, "10.0.0.1:7471"],
  );
  assert.equal(error.flushed, false);
  assert.equal(
    error.message,
    "SEND 4 on QP 9 with 10.0.0.1:7471 completed with RNR_RETRY_EXC_ERR (vendor error 0x81): the " +
      "receiver had no receive posted: post receives before the peer sends, or set rnrRetry to 7, for ever",
  );
});

test("a receive that was too short is told with its size", () => {
  const error = completionError({ status: WC_STATUS.LOC_LEN_ERR, opcode: "RECV", bytes: 4096 });
  assert.match(error.message, /the receive buffer of 4096 B was smaller than the message/);
});

test("a flushed request has the first failure as its cause", () => {
  const cause = new MoatError("COMPLETION_ERROR", "first");
  const error = completionError({ status: WC_STATUS.WR_FLUSH_ERR, cause });
  assert.equal(error.flushed, true);
  assert.equal(error.cause, cause);
  assert.match(error.message, /see the cause/);
});

test("every status a reliable connection can give has a hint in words", () => {
  const others = /^(SUCCESS|LOC_EEC|MW_BIND|LOC_RDD|REM_INV_RD|INV_EEC|GENERAL|TM_)/;
  for (const name of Object.keys(WC_STATUS).filter((name) => !others.test(name))) {
    assert.ok(completionError({ status: name }).hint, name);
  }
});

test("a status this version does not know is told by its number", () => {
  assert.equal(completionError({ status: 99 }).status, "99");
  assert.equal(nameOf(WC_STATUS, 99), "99");
});

test("connection events become errors with event, status and cause", () => {
  const none = { responderResources: 0, initiatorDepth: 0, rnrRetryCount: 0, qpNum: 0 };
  const event = (type: string, status: number): Parameters<typeof eventError>[1] => ({
    type,
    status,
    privateData: new Uint8Array(0),
    ...none,
  });
  const cases: [string, number, string, RegExp][] = [
    ["REJECTED", 8, "CONNECTION_REFUSED", /nobody listens at this port/],
    ["REJECTED", 28, "REJECTED", /said no/],
    ["ADDR_ERROR", -110, "TIMED_OUT", /ETIMEDOUT.*not resolved in time/],
    ["ADDR_ERROR", -19, "ADDRESS_ERROR", /ENODEV.*rdma link add/],
    ["ROUTE_ERROR", -22, "ADDRESS_ERROR", /no path/],
    ["UNREACHABLE", -110, "UNREACHABLE", /UDP port 4791/],
    ["DEVICE_REMOVAL", 0, "NO_DEVICE", /was removed/],
  ];
  for (const [type, status, code, text] of cases) {
    const error = eventError("connecting to", event(type, status), "10.0.0.1:1");
    assert.equal(error.code, code);
    assert.equal(error.status, type);
    assert.equal(error.peer, "10.0.0.1:1");
    assert.match(error.message, new RegExp(`^connecting to 10.0.0.1:1: RDMA_CM_EVENT_${type}`));
    assert.match(error.message, text);
  }
});

class Thing extends Resource {
  constructor(
    readonly name: string,
    readonly log: string[],
    parents: Resource[],
    readonly failing = false,
  ) {
    super(parents);
  }
  protected override destroy(): void {
    this.log.push(this.name);
    if (this.failing) throw new Error(`${this.name} stays`);
  }
  protected override onUnused(): void {
    this.log.push(`${this.name} unused`);
  }
}

test("closing an object closes its children before it, the newest first, and each once", () => {
  const log: string[] = [];
  const root = new Thing("root", log, []), one = new Thing("one", log, [root]);
  const two = new Thing("two", log, [root]);
  const both = new Thing("both", log, [one, two]);
  root.close();
  root.close();
  assert.deepEqual(log, ["both", "one unused", "two", "one", "root"]);
  assert.deepEqual([one, two, both].map(({ closed }) => closed), [true, true, true]);
});

test("a child that cannot be closed does not keep the others from it, and its error is thrown", () => {
  const log: string[] = [];
  const root = new Thing("root", log, []);
  new Thing("bad", log, [root], true);
  new Thing("good", log, [root]);
  assert.throws(() => root.close(), /bad stays/);
  assert.deepEqual(log, ["good", "bad", "root"]);
});

test("nothing can be made of what is closed", () => {
  const root = new Thing("root", [], []);
  root.close();
  assert.throws(
    () => new Thing("late", [], [root]),
    (error) => error instanceof MoatError && error.code === "RESOURCE_CLOSED",
  );
});

test("addresses survive being written and read as sockaddr", () => {
  const addresses: [string, string][] = [
    ["10.9.0.1", "10.9.0.1"],
    ["::1", "::1"],
    ["fe80::5054:ff:fe09:1%3", "fe80::5054:ff:fe09:1%3"],
    ["2001:db8:0:1:2:3:4:5", "2001:db8:0:1:2:3:4:5"],
    ["::ffff:10.1.2.3", "::ffff:a01:203"],
    ["", "0.0.0.0"],
  ];
  for (const [given, read] of addresses) {
    const bytes = new Uint8Array(28);
    bytes.set(writeAddress(given, 65000));
    assert.deepEqual(readAddress(new DataView(bytes.buffer)), { host: read, port: 65000 });
  }
  assert.equal(formatAddress({ host: "fe80::1", port: 5 }), "[fe80::1]:5");
  assert.throws(() => writeAddress("example", 1), /numeric/);
  assert.throws(() => writeAddress("10.0.0.1", 65536), /65536/);
});

test("the GID of an IPv4 address is known as such", () => {
  const gid = new Uint8Array([...new Array<number>(10).fill(0), 255, 255, 10, 9, 0, 1]);
  assert.equal(isIPv4(gid), true);
  assert.equal(formatGid(gid), "::ffff:10.9.0.1");
  assert.equal(isIPv4(new Uint8Array(16)), false);
});

test("what was posted last is found by its number, the oldest first", () => {
  const posted = new Posted(4);
  for (let i = 0; i < 6; i++) posted.add(i % 5, `OP${i}`, i);
  assert.equal(posted.find(1), undefined);
  assert.deepEqual(posted.find(2), { opcode: "OP2", bytes: 2 });
  assert.deepEqual(posted.find(0), { opcode: "OP5", bytes: 5 });
});

test("native memory is zeroed, whole, and gone when it is closed", () => {
  const memory = new NativeMemory(5000);
  assert.equal(memory.bytes.byteLength, 5000);
  assert.ok(memory.bytes.every((byte) => byte === 0));
  assert.equal(runtime().addressOf(memory.bytes), memory.address);
  memory.close();
  memory.close();
  assert.equal(memory.bytes.byteLength, 0);
  assert.throws(() => new NativeMemory(0), /at least 1/);
});

test("the environment is read without asking for a permission", () => {
  assert.ok(environment("PATH").length > 0);
  assert.equal(environment("MOAT_NO_SUCH_VARIABLE"), "");
});
