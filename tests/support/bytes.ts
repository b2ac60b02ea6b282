/**
 * Contents for buffers, and comparing them.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";

// The period is a prime above 64 KiB: no two pages of a buffer below 256 MiB are alike, so a page that
// arrives in the wrong place is noticed.
const PERIOD = 65_537;

/** Fills a view with pseudo-random bytes that depend on `seed`. */
export function fill(view: Uint8Array, seed: number): void {
  let x = (seed * 0x9e3779b1) | 1;
  const most = Math.min(PERIOD, view.length);
  for (let i = 0; i < most; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    view[i] = x;
  }
  for (let done = most; done < view.length; done *= 2) {
    view.copyWithin(done, 0, Math.min(done, view.length - done));
  }
}

/** New bytes filled by {@linkcode fill}. */
export function pattern(seed: number, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  fill(bytes, seed);
  return bytes;
}

/** True if two views hold the same bytes. */
export function same(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.from(a.buffer, a.byteOffset, a.length).equals(b);
}

/** Asserts that two views hold the same bytes; says where they first differ. */
export function assertBytes(actual: Uint8Array, expected: Uint8Array, what: string): void {
  if (same(actual, expected)) return;
  const at = expected.findIndex((byte, i) => actual[i] !== byte);
  assert.fail(
    `${what}: ${actual.length} bytes where ${expected.length} were expected, ` +
      `the first difference at byte ${at < 0 ? expected.length : at}`,
  );
}

/** The SHA-256 of a view, in hexadecimal. */
export function sha256(view: Uint8Array): string {
  return createHash("sha256").update(view).digest("hex");
}
