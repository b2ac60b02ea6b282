/**
 * The table of key_value.ts: slots of one size in registered memory, that one process writes and others read
 * over the network at any moment, without asking.
 *
 * A slot begins with a version and a checksum. The version is odd while the slot is being written, and two
 * more each time it was. A reader copies the whole slot, in pieces that may be of different moments; if the
 * version is odd, or the checksum is not that of the rest and the version, it reads again. An even version
 * alone would not do: nothing says in which order the pieces of an RDMA READ are fetched.
 *
 * @module
 */
import { crc32 } from "node:zlib";

/** Bytes in front of a slot's key: version, checksum, and the lengths of key and value, 32 bits each. */
const HEADER = 16;
/** Slots that may have a key: the one of its hash and those behind it. */
const PROBES = 8;

/** The size of a table, which its readers have to know. */
export interface Geometry {
  /** How many slots. */
  readonly slots: number;
  /** Bytes of a slot. */
  readonly slotBytes: number;
}

/** What is in a slot that was read: an entry, nothing yet, or parts of different moments. */
export type Reading = { readonly key: Uint8Array; readonly value: Uint8Array } | "empty" | "torn";

/** The bytes that a key and its value may have together. */
export function roomFor({ slotBytes }: Geometry): number {
  return slotBytes - HEADER;
}

/** Where the slots that may have a key begin, in the order in which they are to be looked at. */
export function candidates(key: Uint8Array, { slots, slotBytes }: Geometry): number[] {
  const first = crc32(key);
  return Array.from(
    { length: Math.min(PROBES, slots) },
    (_, i) => (first + i) % slots * slotBytes,
  );
}

/** Reads a copy of a slot. The entry's bytes are those of the copy. */
export function readSlot(slot: Uint8Array): Reading {
  const view = new DataView(slot.buffer, slot.byteOffset, slot.byteLength);
  const version = view.getUint32(0, true), end = HEADER + keyBytes(view) + valueBytes(view);
  if (version === 0) return "empty";
  if (version % 2 !== 0 || end > slot.byteLength) return "torn";
  if (view.getUint32(4, true) !== checksum(slot, end, version)) return "torn";
  const split = HEADER + keyBytes(view);
  return { key: slot.subarray(HEADER, split), value: slot.subarray(split, end) };
}

/** What seems to be in a slot to somebody who does not look at its version and checksum. */
export function readUnchecked(slot: Uint8Array): Reading {
  const view = new DataView(slot.buffer, slot.byteOffset, slot.byteLength);
  if (view.getUint32(0, true) === 0) return "empty";
  const split = HEADER + keyBytes(view);
  return {
    key: slot.subarray(HEADER, split),
    value: slot.subarray(split, split + valueBytes(view)),
  };
}

/**
 * Puts an entry into the table, whose only writer this is.
 *
 * @param halfway awaited when half of it is written: readers see it like that
 * @returns false if all slots for the key have other keys
 */
export async function writeSlot(
  table: Uint8Array,
  geometry: Geometry,
  key: Uint8Array,
  value: Uint8Array,
  halfway: () => Promise<void>,
): Promise<boolean> {
  for (const at of candidates(key, geometry)) {
    const slot = table.subarray(at, at + geometry.slotBytes), found = readSlot(slot);
    if (found !== "empty" && (found === "torn" || !equal(found.key, key))) continue;
    const view = new DataView(slot.buffer, slot.byteOffset, slot.byteLength);
    const version = view.getUint32(0, true), end = HEADER + key.length + value.length;
    const next = (version + 2) % 2 ** 32 || 2; // 0 is an empty slot
    view.setUint32(0, version + 1, true);
    view.setUint32(8, key.length, true);
    view.setUint32(12, value.length, true);
    slot.set(key, HEADER);
    const half = value.length >> 1;
    slot.set(value.subarray(0, half), HEADER + key.length);
    await halfway();
    slot.set(value.subarray(half), HEADER + key.length + half);
    view.setUint32(4, checksum(slot, end, next), true);
    view.setUint32(0, next, true);
    return true;
  }
  return false;
}

/** Whether two keys are the same. */
export function equal(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

function keyBytes(view: DataView): number {
  return view.getUint32(8, true);
}

function valueBytes(view: DataView): number {
  return view.getUint32(12, true);
}

/** Of everything behind itself and of the version, with which it begins. */
function checksum(slot: Uint8Array, end: number, version: number): number {
  return crc32(slot.subarray(8, end), version);
}
