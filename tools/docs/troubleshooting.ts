/**
 * What docs/troubleshooting.md says of each error. A code without an entry is a type error.
 *
 * @module
 */
import { ERROR_CODES, type ErrorCode } from "../../ffi/errors.ts";

/** What to know of an error besides what it means, in Markdown. */
export interface Advice {
  /** When it occurs. */
  when: string;
  /** What to do about it. */
  then: string;
}

const ADVICE = {
  INVALID_ARGUMENT: {
    when: "Before anything is done. The message has the value, and the range that it should be in.",
    then: "Correct the call; it is never a matter of timing, and trying again does not help.",
  },
  UNSUPPORTED_PLATFORM: {
    when:
      "At the first `Pool.create()`, `listen()` or `connect()`, on anything but Linux on x86-64 or " +
      "aarch64, and with a Deno or Bun that is too old.",
    then: "`deno upgrade`, `bun upgrade`; elsewhere, a Linux virtual machine.",
  },
  LIBRARY_NOT_FOUND: {
    when:
      "At the first use of `rdma://` or of the verbs layer where libibverbs or librdmacm is not " +
      "installed or too old. The message lists every path that was tried.",
    then:
      "`apt-get install ibverbs-providers librdmacm1`, or the like of your distribution. `shm://`, " +
      "`tcp://` and files need neither.",
  },
  SYSTEM: {
    when: "When the kernel refused something; `errno` has the number, the message its name.",
    then:
      "`ENOENT`, `ENOSPC` and the like of `pool.open()` and `pool.map()` are what they are anywhere. " +
      "`ENOMEM` from mmap: there is no memory or no address space for a pool of this size. `EMFILE`: " +
      "raise `ulimit -n`; a pool takes one descriptor, an end of a `tcp://` connection one, of an " +
      "`shm://` connection four.",
  },
  HELPER_BROKEN: {
    when: "At the first use, when the helper, which is loaded from a memfd, could not be.",
    then:
      "A system with `vm.memfd_noexec=2` forbids code in a memfd: `sysctl vm.memfd_noexec=1`. A " +
      "security module may forbid it too; the `cause` has what the loader said.",
  },
  POOL_EXHAUSTED: {
    when:
      "`alloc()` finds no run of free pages that is long enough, or `recv()` has no room for a large " +
      "message: that message stays for the next receive. With a guard, or `swap()`: the process has no " +
      "mappings left, or the pool no frame.",
    then:
      "Free buffers and release messages (`using` does both), make the pool larger, or raise `reserve`. " +
      "A pool that is large enough but full of holes: allocate large buffers first and keep them. For " +
      "mappings: `sysctl vm.max_map_count=262144`.",
  },
  POOL_CLOSED: {
    when: "When a pool is used after `close()`, which the end of an `await using` block calls.",
    then: "Close pools last: after the channels and files that use them.",
  },
  BUFFER_FREED: {
    when:
      '`free()` for the second time, or a send of a buffer that was freed or given away with `"move"`.',
    then: "Allocate another buffer. `buf.freed` says whether one has been freed.",
  },
  FOREIGN_BUFFER: {
    when: "When a channel or file of one pool is handed a buffer of another.",
    then: "Give `listen()`, `connect()` and `open()` the pool whose buffers you will send.",
  },
  BUFFER_MODIFIED: {
    when:
      'With `verify: "checksum"`: somebody wrote to data that was being sent, or written to a file, with the ' +
      'guard `"none"`. The message names the first changed bytes; `error.cause` has the line that started the ' +
      "operation. The other side may have got the changed bytes.",
    then: 'Await the operation before the write, or use `"cow"` or `"wait"`.',
  },
  BUFFER_BUSY: {
    when:
      '`swap()` while a receive, or a send with `"wait"` or `"none"`, holds one of the pages: these are ' +
      "tied to their place.",
    then: 'Await that operation first. Sends with `"cow"` and snapshots are not in the way.',
  },
  SNAPSHOT_WRITTEN: {
    when:
      "The next use of a snapshot whose `bytes` were written to. The write has been undone; it is told " +
      "once.",
    then: "Write to the buffer it was taken of, or to a copy (`snapshot.bytes.slice()`).",
  },
  DETACHED_VIEW: {
    when:
      "A view was kept whose buffer has since been freed, moved, or transferred (`postMessage` with a " +
      "transfer list, `transfer()`).",
    then: "Take `buf.bytes` again when you need it, instead of keeping views.",
  },
  TOO_MANY_OPERATIONS: {
    when: "262,144 operations are in flight in the process. A snapshot counts as one.",
    then: "Await some of them before you start more; release snapshots.",
  },
  MESSAGE_TOO_LARGE: {
    when:
      "The message that is next does not fit the buffer of `recv(buffer)`: it stays for the next " +
      "receive. Or a copy to be sent does not fit the pool's reserve.",
    then: "Receive it with a larger buffer or with `recv()` alone; send pool memory, or give " +
      "`Pool.create()` a larger `reserve`.",
  },
  GUARD_TIMEOUT: {
    when:
      "An access waited for a receive longer than the pool's `guardTimeout` (10 s), or was made by the " +
      "only thread that could have ended the wait, which is noticed at once: both ends in one thread, " +
      "or a `recv()` of a large message called before. What the access then read is not the message; " +
      "the message goes to the next receive.",
    then:
      "Await the operation before you touch the buffer; put the other end into another process or " +
      "Worker; or raise `guardTimeout`. `pool.onFault` says which access it was.",
  },
  ADDRESS_IN_USE: {
    when: "`listen()` at an address where somebody listens.",
    then:
      "Another name or port (port 0 is a free one: `listener.address` says which), or end the other.",
  },
  CONNECTION_REFUSED: {
    when:
      "`connect()` where nobody listens, or where the listener's queue is full because it does not call " +
      "`accept()`.",
    then:
      "Start the listener first. `shm://name` is looked up by user and by mount namespace: the two " +
      "ends of it have to be the same user's, and in containers they need a common directory " +
      "(`shm:///path/to/socket`).",
  },
  PERMISSION_DENIED: {
    when:
      "The listener of an `shm://` address is another user's; a file may not be read or written; a " +
      "file was not opened for what is asked of it; or Deno was started without `--allow-ffi`, or with it " +
      "for some paths only.",
    then:
      "`listen(address, { uids: [1000] })` lets that user in, and both sides have to say so. For " +
      "files: their mode, or `{ write: true }`. For Deno: `deno run --allow-ffi SCRIPT`.",
  },
  TIMED_OUT: {
    when: "A step of connecting took longer than `timeout` (10 s).",
    then: "Is the other side busy with something that does not await? Otherwise raise `timeout`.",
  },
  CHANNEL_CLOSED: {
    when: "The channel was closed, by `close()` here or by the peer, with the operation pending.",
    then: "Connect again. `recv()` tells the peer's ordinary end by `null` instead.",
  },
  ABORTED: {
    when:
      "`channel.abort()` was called; its argument is the `cause`. Of a file: the thread that began the " +
      "operation has ended.",
    then: "It is what was asked for.",
  },
  PEER_ABORTED: {
    when: "The peer called `abort()`.",
    then: "Look for the reason there.",
  },
  PEER_LOST: {
    when:
      "The peer's process ended without `close()`, or was killed, or its host vanished. Pages that were " +
      "in flight are free again. Over `rdma://` the `cause` says what the device said, over `tcp://` a " +
      "host that has fallen silent counts as lost after some 15 s.",
    then: "Connect again. A program that simply ends: let it `await channel.close()` first.",
  },
  PEER_PROTOCOL: {
    when:
      "The greeting is not this library's, is of another version or page size, or something that came " +
      "later is not the protocol. The channel is cut off.",
    then:
      "Use the same version on both sides. To talk to programs that are not Moat over `rdma://`, use " +
      '`protocol: "raw"`.',
  },
  NO_DEVICE: {
    when: "The host has no RDMA device, or none of the name that was asked for.",
    then:
      "`deno task doctor` says what is there. Without a card, make one of an Ethernet interface: see " +
      "the [tutorial](tutorial.md#a-device-without-a-card).",
  },
  VERB_FAILED: {
    when:
      "A function of libibverbs or librdmacm failed. The message has its name, the errno and, where " +
      "there is one, the usual cause.",
    then:
      "`ENOMEM` when memory is registered is nearly always the limit of locked memory: compare " +
      "`ulimit -l` with the size of the pool.",
  },
  COMPLETION_ERROR: {
    when: "A work request ended with another status than `SUCCESS`: `status`, `opcode`, `qpNum`, " +
      "`vendorError` and a `hint`. `flushed` is true if an earlier request failed, which is the `cause`.",
    then: "Read the hint of the first failure; all others follow from it.",
  },
  ADDRESS_ERROR: {
    when:
      "The host's name is not known, the address is not one of this host to listen at, or no RDMA " +
      "device leads to it.",
    then: "`ip route get ADDRESS` says which interface leads there; it has to have a device " +
      "(`rdma link show`).",
  },
  UNREACHABLE: {
    when: "There is no way to the host, or nothing answers there.",
    then:
      "Check the address, the route and firewalls. RoCE v2 travels as UDP to port 4791, whatever port " +
      "the program has.",
  },
  REJECTED: {
    when: "The other side's connection manager said no, or its program called `reject()`.",
    then: "The `hint` says which.",
  },
  FILE_TRUNCATED: {
    when:
      "Somebody shortened a mapped file. What is gone reads as zeros, and operations on it end with " +
      "this. A full disk has the same effect on a sparse file.",
    then: "Map it again. `pool.open()` does not mind: reads just end sooner.",
  },
  READ_ONLY: {
    when:
      "A receive into a file that was mapped without `write: true`, or the next use of one whose bytes " +
      "the program wrote to: the file is as it was.",
    then: "`pool.map(path, { write: true })`.",
  },
  RESOURCE_CLOSED: {
    when: "A file, or an object of the verbs layer, is used after it was closed, or its parent.",
    then: "Closing an object closes what was made of it: close the parent last.",
  },
} as const satisfies Record<ErrorCode, Advice>;

/** The part of docs/troubleshooting.md about the codes. */
export function errorSections(): string {
  return (Object.keys(ERROR_CODES) as ErrorCode[]).sort().map((code) => {
    const { when, then } = ADVICE[code];
    return `### ${code}\n\n${ERROR_CODES[code]}.\n\n- When: ${when}\n- What to do: ${then}\n`;
  }).join("\n");
}
