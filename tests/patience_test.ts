// When the event loop's side goes to sleep, by times that are made up.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Patience } from "../lib/patience.ts";

/** Looks each 2 us from `now` on, until it is time to sleep. Returns when. */
function looks(patience: Patience, now: number): number {
  for (let at = now;; at += 0.002) if (patience.ends(at)) return at;
}

/** Something rings so many times, each so many milliseconds after the last. Returns how long was looked at the end. */
function rings(patience: Patience, times: number, gap: number, from = 0): number {
  let now = from, slept = now;
  for (let i = 0; i < times; i++) {
    now += gap;
    patience.rang(now);
    patience.found(now);
    slept = looks(patience, now);
  }
  return slept - now;
}

test("after something has happened one looks for a while", () => {
  const patience = new Patience();
  patience.began(5);
  const slept = looks(patience, 5);
  assert.ok(slept > 5.09 && slept < 5.12, `${slept}`);
});

test("where what comes next is always far away, one soon sleeps at once", () => {
  const patience = new Patience();
  assert.ok(rings(patience, 2, 1) > 0.09);
  assert.equal(rings(patience, 2, 1, 2), 0);
  assert.equal(rings(patience, 100, 0.2, 4), 0);
});

test("what comes soon after one went to sleep makes one look again", () => {
  const patience = new Patience();
  rings(patience, 10, 1);
  assert.equal(rings(patience, 1, 1, 10), 0);
  assert.ok(rings(patience, 1, 0.12, 11) > 0.09);
});

test("what is found by looking keeps one looking", () => {
  const patience = new Patience();
  let now = 0;
  for (let i = 0; i < 100; i++) {
    // Twice in vain, then something that comes while it is looked for.
    for (let k = 0; k < 2; k++) {
      patience.rang(now += 1);
      patience.found(now);
      assert.ok(looks(patience, now) - now > 0.09);
    }
    patience.rang(now += 1);
    patience.found(now);
    assert.equal(patience.ends(now + 0.05), false);
    patience.found(now + 0.06);
  }
});

test("a program that begins something again and again, whose end is far away, does not keep it awake", () => {
  const patience = new Patience();
  let now = 0, looked = 0;
  for (let i = 0; i < 100; i++) {
    patience.began(now += 1);
    looked += looks(patience, now) - now;
    patience.rang(now += 0.5);
    patience.found(now);
    looked += looks(patience, now) - now;
  }
  assert.ok(looked < 1, `${looked} ms`);
});
