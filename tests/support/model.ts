/**
 * A model of a pool and a channel that copies everything, beside the real ones.
 *
 * @module
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Channel,
  type File,
  type Guard,
  type MappedFile,
  type Message,
  Pool,
  type PoolBuffer,
  type Snapshot,
} from "../../mod.ts";
import { helper, QUERY } from "../../ffi/helper.ts";
import { fill, same } from "./bytes.ts";
import { type Pair, pair } from "./pair.ts";

/** One step: what to do, and four numbers that say with what, taken modulo what there is. */
export type Step = readonly [kind: StepKind, which: number, from: number, to: number, seed: number];

/** What a step can do. */
export const KINDS = [
  "alloc",
  "free",
  "write",
  "write",
  "writePage",
  "send",
  "send",
  "snapshot",
  "release",
  "sendSnapshot",
  "sendHeader",
  "swap",
  "swapPart",
  "recv",
  "recvInto",
  "fileWrite",
  "fileRead",
  "mapWrite",
  "mapSend",
  "mapReceive",
  "let go",
  "check",
  "settle",
] as const;

/** One of {@linkcode KINDS}. */
export type StepKind = typeof KINDS[number];

/** What was sent, and its header. */
type Sent = Uint8Array & { header?: Uint8Array };

const NO_HEADER = new Uint8Array(0);

interface Real<T> {
  real: T;
  model: Uint8Array;
}

/** A part of the file that one write at a time is written to. */
interface Slot {
  model: Uint8Array;
  offset: number;
  written: Promise<unknown>;
}

const PAGE = 4096, MOST = 24;
const SLOTS = 8, SLOT = 41 * PAGE, MAPPED = 20 * PAGE;
const SIZES = [1, 100, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 5 * PAGE + 7, 16 * PAGE, 40 * PAGE];
const GUARDS: Guard[] = ["auto", "cow", "wait", "copy", "move", "cow"];

/** A pool, both ends of a channel in this thread, and what they should hold. */
export class World {
  readonly #pool: Pool;
  readonly #ends: Pair;
  readonly #buffers: Real<PoolBuffer>[] = [];
  readonly #versions: Real<Snapshot>[] = [];
  readonly #messages: Real<Message>[] = [];
  /** What is on its way, in order. */
  readonly #wire: Sent[] = [];
  readonly #sent: Promise<unknown>[] = [];

  readonly #slots: Slot[] = Array.from(
    { length: SLOTS },
    () => ({ model: new Uint8Array(0), offset: 0, written: Promise.resolve() }),
  );
  readonly #directory = mkdtempSync(join(tmpdir(), "moat-model-"));
  readonly #file: File;
  readonly #mapped: Real<MappedFile>;

  private constructor(pool: Pool, ends: Pair) {
    this.#pool = pool;
    this.#ends = ends;
    this.#file = pool.open(join(this.#directory, "file"), { create: true });
    const path = join(this.#directory, "mapped");
    writeFileSync(path, new Uint8Array(MAPPED));
    this.#mapped = { real: pool.map(path, { write: true }), model: new Uint8Array(MAPPED) };
  }

  /** Makes a world with nothing in it, whose channel is over `shm://` or `tcp://`. */
  static async create(transport: string): Promise<World> {
    const pool = Pool.create({ bytes: 16 << 20, reserve: 8 << 20, guardTimeout: 2000 });
    const at = transport === "tcp" ? "tcp://127.0.0.1:0" : undefined;
    return new World(pool, await pair(pool, at));
  }

  get #here(): Channel {
    return this.#ends.here;
  }

  /** Does a step on both sides; compares what there is to compare. */
  async step([kind, which, from, to, seed]: Step): Promise<void> {
    const buffer = this.#buffers[which % (this.#buffers.length || 1)];
    switch (kind) {
      case "alloc":
        return this.#alloc(SIZES[which % SIZES.length]!, seed);
      case "free":
        return this.#free(which);
      case "write":
        return buffer && this.#write(buffer, this.#range(buffer, from, to), seed);
      case "writePage": {
        if (!buffer) return;
        const page = from % Math.ceil(buffer.model.length / PAGE) * PAGE;
        return this.#write(buffer, [page, Math.min(page + 9, buffer.model.length)], seed);
      }
      case "send":
        return buffer && this.#send(which, this.#range(buffer, from, to), seed);
      case "snapshot":
        if (buffer && this.#versions.length < MOST) {
          this.#versions.push({ real: buffer.real.snapshot(), model: buffer.model.slice() });
        }
        return;
      case "release":
        return this.#versions.splice(which % MOST, 1)[0]?.real.release();
      case "sendSnapshot":
        return this.#sendVersion(which, from, to);
      case "swap":
      case "swapPart":
        return buffer && this.#swap(buffer, from, kind === "swapPart" ? to : -1);
      case "recv":
        return await this.#receive();
      case "recvInto":
        return buffer && await this.#receiveInto(buffer);
      case "sendHeader":
        return buffer && this.#sendHeader(buffer, seed);
      case "fileWrite":
        return buffer && await this.#fileWrite(buffer, this.#range(buffer, from, to), seed);
      case "fileRead":
        return buffer && await this.#fileRead(buffer, from, seed);
      case "mapWrite": {
        const page = from % 20 * PAGE, range: [number, number] = [page + 5, page + 5 + to % PAGE];
        return this.#write(this.#mapped, range, seed);
      }
      case "mapSend":
        return this.#mapSend(this.#range(this.#mapped, from, to), seed);
      case "mapReceive":
        return await this.#receiveInto(this.#mapped);
      case "let go":
        return this.#messages.splice(which % MOST, 1)[0]?.real.release();
      case "check":
        return this.#check();
      case "settle":
        return await this.#settle();
    }
  }

  #alloc(size: number, seed: number): void {
    if (this.#buffers.length >= MOST) return;
    const real = this.#pool.alloc(size), model = new Uint8Array(size);
    fill(real.bytes, seed);
    fill(model, seed);
    this.#buffers.push({ real, model });
  }

  #free(which: number): void {
    this.#buffers.splice(which % MOST, 1)[0]?.real.free();
  }

  #range({ model }: Real<unknown>, from: number, to: number): [number, number] {
    const start = from % model.length, end = start + 1 + to % (model.length - start);
    return [start, end];
  }

  #write(
    { real, model }: Real<PoolBuffer | MappedFile>,
    [from, to]: [number, number],
    seed: number,
  ): void {
    fill(real.bytes.subarray(from, to), seed);
    fill(model.subarray(from, to), seed);
  }

  #send(which: number, [from, to]: [number, number], seed: number): void {
    if (this.#wire.length >= MOST) return;
    const index = which % this.#buffers.length, guard = GUARDS[seed % GUARDS.length]!;
    const { real, model } = this.#buffers[index]!;
    const whole = guard === "move";
    this.#wire.push(whole ? model.slice() : model.slice(from, to));
    this.#sent.push(this.#here.send(whole ? real : real.bytes.subarray(from, to), { guard }));
    if (whole) this.#buffers.splice(index, 1);
  }

  #sendVersion(which: number, from: number, to: number): void {
    const version = this.#versions[which % (this.#versions.length || 1)];
    if (!version || this.#wire.length >= MOST) return;
    const [start, end] = this.#range(version, from, to);
    const part = from % 3 > 0;
    this.#wire.push(part ? version.model.slice(start, end) : version.model);
    const data = part ? version.real.bytes.subarray(start, end) : version.real;
    this.#sent.push(this.#here.send(data));
  }

  #sendHeader({ real, model }: Real<PoolBuffer>, seed: number): void {
    if (this.#wire.length >= MOST) return;
    const header = new Uint8Array(1 + seed % 1024).fill(seed);
    this.#wire.push(Object.assign(model.slice(), { header }));
    this.#sent.push(this.#here.send(real, { header }));
  }

  // Refused if an operation is in the way; then nothing may have changed, which the checks see.
  #swap(a: Real<PoolBuffer>, other: number, part: number): void {
    const b = this.#buffers[other % this.#buffers.length]!;
    if (a === b || (part < 0 && a.model.length !== b.model.length)) return;
    const pages = Math.floor(Math.min(a.model.length, b.model.length) / PAGE);
    const count = part < 0 ? 0 : part % (pages + 1);
    if (part >= 0 && count === 0) return;
    const pick = (bytes: Uint8Array): Uint8Array =>
      part < 0 ? bytes : bytes.subarray(
        Math.floor(bytes.length / PAGE) * PAGE - count * PAGE,
        Math.floor(bytes.length / PAGE) * PAGE,
      );
    try {
      this.#pool.swap(pick(a.real.bytes), pick(b.real.bytes));
    } catch (error) {
      assert.equal((error as { code: string }).code, "BUFFER_BUSY");
      return;
    }
    const [x, y] = [pick(a.model), pick(b.model)], kept = x.slice();
    x.set(y);
    y.set(kept);
  }

  async #receive(): Promise<void> {
    const expected = this.#wire.shift();
    if (!expected) return;
    const message = await this.#ends.there.recv();
    compare(message!.bytes, expected, "a message");
    compare(message!.header, expected.header ?? NO_HEADER, "its header");
    this.#messages.push({ real: message!, model: expected });
    if (this.#messages.length > MOST) this.#messages.shift()!.real.release();
  }

  async #receiveInto({ real, model }: Real<PoolBuffer | MappedFile>): Promise<void> {
    const next = this.#wire[0];
    if (!next) return;
    try {
      const { bytes, header } = (await this.#ends.there.recv(real))!;
      assert.equal(bytes, next.length);
      compare(header, next.header ?? NO_HEADER, "a header");
      model.set(next);
      this.#wire.shift();
    } catch (error) { // and is there for the next receive
      assert.equal((error as { code: string }).code, "MESSAGE_TOO_LARGE", String(error));
      assert.ok(next.length > model.length);
    }
    compare(real.bytes, model, "a buffer received into");
  }

  async #fileWrite(
    { real, model }: Real<PoolBuffer>,
    [from, to]: [number, number],
    seed: number,
  ): Promise<void> {
    const index = seed % SLOTS, slot = this.#slots[index]!;
    await slot.written;
    const guard = GUARDS.filter((guard) => guard !== "move")[seed % 5]!;
    const [start, end] = seed % 2 ? [0, model.length] : [from, to];
    slot.model = model.slice(start, end);
    const data = real.bytes.subarray(start, end);
    slot.written = this.#file.write(data, index * SLOT + seed % 3, { guard });
    slot.offset = index * SLOT + seed % 3;
  }

  // What is read is there for whoever looks, though nobody has awaited it.
  async #fileRead({ real, model }: Real<PoolBuffer>, from: number, seed: number): Promise<void> {
    const slot = this.#slots[seed % SLOTS]!;
    await slot.written;
    const length = Math.min(slot.model.length, model.length);
    if (length === 0) return;
    const at = from % (model.length - length + 1);
    const reading = this.#file.read(real.bytes.subarray(at, at + length), slot.offset);
    model.set(slot.model.subarray(0, length), at);
    if (seed % 2) compare(real.bytes, model, "a buffer being read into");
    assert.equal((await reading).bytes, length);
    compare(real.bytes, model, "a buffer read into");
  }

  #mapSend([from, to]: [number, number], seed: number): void {
    if (this.#wire.length >= MOST) return;
    const { real, model } = this.#mapped, guard = GUARDS.filter((g) => g !== "move")[seed % 5]!;
    this.#wire.push(model.slice(from, to));
    this.#sent.push(this.#here.send(real.bytes.subarray(from, to), { guard }));
  }

  #check(): void {
    compare(this.#mapped.real.bytes, this.#mapped.model, "the mapped file");
    for (const { real, model } of this.#buffers) compare(real.bytes, model, "a buffer");
    for (const { real, model } of this.#versions) compare(real.bytes, model, "a snapshot");
    for (const { real, model } of this.#messages) compare(real.bytes, model, "a message kept");
  }

  async #settle(): Promise<void> {
    while (this.#wire.length > 0) await this.#receive();
    for (const { real } of this.#messages.splice(0)) real.release();
    await Promise.all(this.#sent.splice(0));
    await Promise.all(this.#slots.map(({ written }) => written));
  }

  /** Ends it: everything must be as expected, and everything must come back. */
  async end(): Promise<void> {
    this.#check();
    await this.#settle();
    this.#check();
    for (const { real } of this.#versions.splice(0)) real.release();
    for (const { real } of this.#buffers.splice(0)) real.free();
    const { here, there } = this.#ends; // one of them may have a place ready for the next message
    await Promise.all([here.close(), there.close()]);
    const { real, model } = this.#mapped;
    await real.close();
    compare(readFileSync(real.path), model, "the file that was mapped");
    await this.#file.close();
    const { freeFrames, reserveFrames, bytes, bytesAvailable } = this.#pool.stats();
    assert.equal(freeFrames, reserveFrames, "free frames at the end");
    assert.equal(bytesAvailable, bytes, "bytes free at the end");
    assert.equal(helper().moat_query(QUERY.opsLive, 0), 0, "operations at the end");
  }

  /** Gives up, whatever is under way. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#ends[Symbol.dispose]();
    for (const { real } of this.#versions) real.release();
    for (const { real } of this.#messages) real.release();
    await Promise.allSettled([...this.#sent, ...this.#slots.map(({ written }) => written)]);
    await this.#file.close();
    await this.#mapped.real.close();
    await this.#pool.close();
    rmSync(this.#directory, { recursive: true });
  }
}

function compare(actual: Uint8Array, expected: Uint8Array, what: string): void {
  if (same(actual, expected)) return;
  const at = expected.findIndex((byte, i) => actual[i] !== byte);
  assert.fail(`${what} of ${expected.length} bytes differs from the model at byte ${at}`);
}
