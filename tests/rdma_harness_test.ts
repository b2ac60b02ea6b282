import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { share } from "./support/child.ts";
import { Harness, type Machine, machines, own } from "./support/harness.ts";

// The transport over verbs, without JavaScript and without a device: a C program drives the helper's exports
// over queue pairs that it makes itself (support/rdma_harness.c). They do on demand what no real device does:
// lose a completion, fail the third request, come from a peer that lies. The same cases run under sanitizers
// where the compiler has them, and for aarch64 under QEMU. This stands beside the tests over soft-RoCE in
// tests/vm, which show that the transport works over a real stack, and not instead of them.

const harness = new Harness("rdma_harness.c");

// Its memcpy and memset are those of the sanitizer: symbols that a shared object defines can be replaced.
const sanitized: Machine = {
  name: `${own.name} under sanitizers`,
  compiler: "gcc",
  flags: ["-fsanitize=address"],
  helper: ["-std=gnu11", "-O1", "-g", "-fPIC", "-shared", "-w", "-fno-strict-aliasing"].concat(
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
  ),
  emulator: [],
};

function hasSanitizers(): boolean {
  const program = join(harness.directory, "empty");
  writeFileSync(`${program}.c`, "int main(void) { return 0; }\n");
  const words = ["-fsanitize=address,undefined", `${program}.c`, "-o", program];
  return spawnSync("gcc", words).status === 0 && spawnSync(program).status === 0;
}

const CASES: Record<string, string> = {
  sizes: "messages of every size, sent and received in every way, arrive",
  headers: "messages of every size with headers arrive, received in every way",
  headers_no_frames: "headers are sent and received one after the other where no frame is free",
  header_chain: "a header takes its room from the first slot of an announcement",
  raw_header: "over plain SEND and RECV a header is the start of the message",
  overwritten: "a message that is overwritten in flight arrives as it was sent",
  chain: "a message of many runs is announced in several slots",
  longest_chain: "the longest announcement",
  mended: "a message too scattered for any announcement is copied together",
  chain_after_eager: "slots whose completions nobody asked for hold up no long announcement",
  credits: "credits run out, the rest queues, and all of it comes when they come back",
  control_flood: "more releases than the peer has slots for wait for it",
  never_receives: "what nobody receives stays guarded until the end",
  batched: "releases gather while a control message is under way",
  signalling: "with few completions neither slots nor the send queue run out",
  cancelled: "a receive can be taken back until its message is there",
  cancelled_want: "a receive that waited for a place and is taken back leaves nothing to be done",
  too_large: "a message stays for a receive that it fits",
  order: "taken messages and received ones keep their order",
  landing: "a message of any size lands, or stays when there is no room",
  few_pieces: "a device that takes few pieces gets small messages in one",
  staged: "staged sends wait for frames",
  abort_while_read: "pages being read into open when the device has given them back",
  goodbye_then_flush: "a goodbye outranks the flush behind it",
  hang_up: "a peer that hangs up is lost, or has said goodbye",
  silent_death: "a handler that waits finds out that the peer is dead",
  post_fails: "a request that cannot be posted ends the connection and nothing else",
  request_fails: "a request that fails ends the connection and nothing else",
  lost_flush: "pages whose device is silent open when its queue pair is gone",
  raw: "plain SEND and RECV",
  end_before_it_begins: "a connection may end before it has begun",
  handler: "a handler that waits reads the message by itself, or sees another thread do it",
  own_thread: "a thread does not wait for itself",
  doorbell: "the doorbell's thread moves a connection on and rings",
  two_threads: "two threads that rewrite, and look at, what is in flight lose nothing",
  random: "any sequence of steps: everything arrives, in order",
  random_failures: "any sequence of steps with a failure: nothing ends twice, nothing is lost",
  malformed: "what is no message of the protocol breaks the connection",
  false_release: "a peer can let go only of what was announced to it, once",
  flood: "a peer that sends without end gets no more than its turn",
  fuzz: "forged messages break the connection or do no harm",
};

const skip = !hasSanitizers();
if (skip) console.log(`# SKIP ${sanitized.name}: gcc has no libasan or libubsan`);
if (skip) test(sanitized.name, { skip });
for (const machine of share(skip ? machines : [...machines, sanitized])) {
  for (const [name, says] of Object.entries(CASES)) {
    test(`${machine.name}: ${says}`, () => harness.run(machine, name));
  }
}
