/**
 * A peer that changes its ring and its lists of pages while the other side reads them.
 *
 *     flipper.ts ADDRESS MS
 */
import process from "node:process";
import { DESC, DESC_KIND } from "../../ffi/layout.ts";
import { pageSize } from "../../ffi/libc.ts";
import { receivePacket } from "../../lib/shm/socket.ts";
import { say } from "../support/child.ts";
import { AT, Hostile, hungUp } from "../support/hostile.ts";

const [address, ms] = process.argv.slice(2) as [string, string];
const PAGE = pageSize(), FRAMES = 1024, LAST = PAGE / 8 - 1;
const end = performance.now() + Number(ms);
const random = (below: number): number => Math.floor(Math.random() * below);

/** Lists that are right: short, of many short runs (copied), of long ones (mapped). */
function prepare(peer: Hostile): void {
  const short: [number, number][] = Array.from({ length: 200 }, (_, i) => [500 + i * 2, 1]);
  const long: [number, number][] = Array.from({ length: 6 }, (_, i) => [100 + i * 40, 40]);
  peer.table(2, short);
  peer.table(3, long);
  for (let slot = 0; slot < AT.slots; slot++) {
    peer.describe(
      slot,
      [
        { kind: DESC_KIND.eager, len: 1000, off: random(AT.eagerBytes - 1000) },
        { kind: DESC_KIND.table, len: 200 * PAGE, nruns: 200, table: 2 },
        { kind: DESC_KIND.table, len: 240 * PAGE, nruns: 6, table: 3 },
        { len: 20 * PAGE - 8, off: 8, runs: [[10, 15], [40, 5]] as [number, number][] },
      ][random(4)]!,
    );
  }
}

const BAD = [0, 1, FRAMES, 0xffffffff, 0x80000000, 511, 1000];

let caught = 0, told = 0;
while (performance.now() < end) {
  const peer = await Hostile.connect(address, FRAMES);
  prepare(peer);
  const tables = new DataView(peer.pool.buffer, 2 * PAGE, 2 * PAGE);
  const until = performance.now() + 100;
  for (let tail = 0, open = true; open;) {
    for (let step = 0; step < 200; step++) {
      const taken = Number(peer.theirs.getBigUint64(AT.rxHead, true));
      tail = Math.min(taken + 8, tail + 1);
      peer.set(AT.txTail, tail);
      if (step % 16 === 0) peer.wake();
      // Wrong for a moment, then right again: what is being read now, or a list.
      const at = step % 2 === 0
        ? AT.desc + ((taken + random(3)) % AT.slots) * DESC.size + random(16) * 4
        : random(2) * PAGE + random(step % 4 === 1 ? 12 : 2 * LAST) * 4;
      const view = step % 2 === 0 ? peer.ring : tables;
      const right = view.getUint32(at, true), wrong = BAD[random(BAD.length)]!;
      // Rarely enough that messages come through as well.
      for (let flips = random(8) === 0 ? random(300) : 0; flips > 0; flips--) {
        view.setUint32(at, wrong, true);
        view.setUint32(at, right, true);
      }
    }
    for (let packet; open && (packet = receivePacket(peer.fd, 64));) open = packet.data.length > 0;
    if (!open) caught++;
    else if (performance.now() > until) { // it was always looked at in the right moment
      told++;
      peer.set(AT.txTail, tail + 2 * AT.slots);
      peer.wake();
      await hungUp(peer.fd);
      open = false;
    } else await new Promise((resolve) => setTimeout(resolve, 0));
  }
  peer.close();
}
say({ caught, told });
process.exit(0);
