import { test } from "node:test";
import { share } from "./support/child.ts";
import { Harness, type Machine, machines, own } from "./support/harness.ts";

// What the helper does on a processor, without JavaScript: a C program loads the very object that the
// library carries and checks it. On x86-64 the aarch64 helper runs under QEMU.

// Linux on aarch64 may have pages of 16 or 64 KiB. The helper is told the size, so any multiple will do.
const largePages = [16 << 10, 64 << 10];
const harness = new Harness("helper_harness.c");

const GUARDS: Record<string, string> = {
  cow: "a write to a page in flight gets a private page, and the device keeps the old bytes",
  restore: "a write after completion only gives the permission back",
  wait: 'a write under "wait" goes on when another thread has completed the send',
  receive: "a read and a write of a page being received go on when its data is there",
  receive_into_sent: "a receive into pages being sent leaves the device the old ones",
  timeout: "a wait ends after its time, and only an operation that was broken says so",
  wait_then_no_frame: "the want of a frame after a wait is waited for as well",
  runs_4: "four runs of frames fit the operation",
  runs_5: "five runs of frames make a list",
  no_frame_for_the_list:
    "an operation without a frame for its list is refused, and nothing is lost",
  no_mapping: "without a mapping a guard is refused, a write waits, and an idle page opens",
  two_writers: "two threads that write to the same pages in flight lose nothing",
  eager: "small messages go around the ring, whole and in order",
  in_place: "a message is read in place; writes to it are private until its release",
  alias: "a scattered message is read as one, and copied; its mappings are all given back",
  into_receive: "a message of scattered pages lands in scattered pages, moved by the handler alone",
  deadlock: "a wait that only the waiting thread could end is ended at once",
  two_threads:
    "2,000 messages between two threads, each rewritten in flight, arrive as they were sent",
};
const LONG_LISTS: Record<string, string> = {
  runs_511: "a list of runs fills its frame",
  runs_512: "a list of runs goes on in a second frame",
  runs_1200: "a list of runs goes on in a third frame",
};
const FOREIGN: Record<string, string> = {
  null: "a null pointer goes to the action before ours, 40 times, and the guard holds",
  null_plain: "the action before ours may take only the signal's number",
  in_front: "an action in front of ours that passes on to ours does not make a circle",
  jump_into_window: "a jump into a buffer goes to the action before ours",
  freed_pool: "a fault where a pool has been goes to the action before ours",
  sent: "a sent SIGSEGV leaves our action in place; what was before it decides",
  sent_by_default: "a sent SIGSEGV and a fault end the process if that is the action before ours",
  sent_to_ignore: "a sent SIGSEGV is ignored if that is the action before ours; a fault is not",
  reset_hand: "an action that is good for one fault is called once, and the guard holds",
};

interface Variant {
  name: string;
  machine: Machine;
  cases: Record<string, string>;
  args: string[];
}

const variants: Variant[] = [
  ...machines.map((machine) => ({
    name: machine.name,
    machine,
    cases: { ...GUARDS, ...LONG_LISTS, ...FOREIGN },
    args: [],
  })),
  ...largePages.map((pageSize) => ({
    name: `${own.name}, pages of ${pageSize >> 10} KiB`,
    machine: own,
    cases: GUARDS,
    args: [String(pageSize)],
  })),
];
for (const { name, machine, cases, args } of share(variants)) {
  for (const [key, says] of Object.entries(cases)) {
    test(`${name}: ${says}`, () => harness.run(machine, key, ...args));
  }
}
