/**
 * What was passed where a buffer is wanted: pool memory, a part of it, or bytes from elsewhere.
 *
 * @module
 */
import { describe, MoatError } from "../../ffi/errors.ts";
import type { MappedFile } from "../file/mapped.ts";
import type { BufferState, PoolBuffer } from "./buffer.ts";
import type { PoolCore, Region } from "./core.ts";
import type { Mapping } from "./mapping.ts";
import type { Snapshot } from "./snapshot.ts";

// Which buffer an ArrayBuffer belongs to, over all pools of this isolate: how sub-views are recognised.
const buffers = new WeakMap<ArrayBufferLike, BufferState>();
const states = new WeakMap<PoolBuffer | MappedFile | Snapshot, BufferState>();

/** Remembers what the library knows of a buffer, a mapped file or a snapshot. */
export function rememberObject(
  object: PoolBuffer | MappedFile | Snapshot,
  state: BufferState,
): void {
  states.set(object, state);
}

/** Remembers whose an `ArrayBuffer` is. */
export function rememberMemory(memory: ArrayBuffer, state: BufferState): void {
  buffers.set(memory, state);
}

/** Pool memory, or bytes from elsewhere. */
export interface Resolved {
  readonly region: Region | undefined;
  readonly bytes: Uint8Array;
  /** Set if the bytes are a mapped file's. */
  readonly mapping?: Mapping;
}

/**
 * Finds out what was passed where a buffer is wanted.
 *
 * @param far whether pages besides the pool's own can be used where they are: those of a mapped file
 * @throws {MoatError} `INVALID_ARGUMENT`, `BUFFER_FREED`, `DETACHED_VIEW`, `FOREIGN_BUFFER`, `FILE_TRUNCATED` or
 * `READ_ONLY`
 */
export function resolveData(core: PoolCore, data: unknown, what: string, far = false): Resolved {
  const whole = states.get(data as PoolBuffer | Snapshot);
  if (whole) {
    whole.core.assertLive(whole);
    assertSame(core, whole, what);
    if (whole.version !== undefined) void (data as Snapshot).bytes; // makes the view, or says what is wrong with it
    const memory = whole.memory!.deref()!;
    assertAttached(memory, what);
    const region = { state: whole, offset: 0, length: whole.byteLength };
    return resolved(region, new Uint8Array(memory), what, far);
  }
  const memory = ArrayBuffer.isView(data)
    ? data.buffer
    : data instanceof ArrayBuffer || data instanceof SharedArrayBuffer
    ? data
    : undefined;
  if (!memory) {
    throw new MoatError("INVALID_ARGUMENT", `${what}: ${describe(data)} is not a buffer`, {
      hint: "pass a PoolBuffer, a typed array, a DataView or an ArrayBuffer",
    });
  }
  if (!(memory instanceof SharedArrayBuffer)) assertAttached(memory, what);
  const view = ArrayBuffer.isView(data)
    ? new Uint8Array(memory, data.byteOffset, data.byteLength)
    : new Uint8Array(memory);
  const state = buffers.get(memory);
  if (!state) return { region: undefined, bytes: view };
  assertSame(core, state, what);
  const region = { state, offset: view.byteOffset, length: view.byteLength };
  return resolved(region, view, what, far);
}

function resolved(region: Region, bytes: Uint8Array, what: string, far: boolean): Resolved {
  const { mapping } = region.state.core;
  if (!mapping) return { region, bytes };
  mapping.assertUsable(what);
  return { region: far ? region : undefined, bytes, mapping };
}

/** The part of a pool that a view is, if it is one of this pool. */
export function regionOf(core: PoolCore, view: Uint8Array): Region | undefined {
  const state = buffers.get(view.buffer);
  if (state?.core !== core) return undefined;
  return { state, offset: view.byteOffset, length: view.byteLength };
}

/**
 * Makes sure that the program may write to a view.
 *
 * @throws {MoatError} `INVALID_ARGUMENT` for a snapshot, `READ_ONLY` for a file mapped so
 */
export function assertWritable(view: Uint8Array, what: string): void {
  const state = buffers.get(view.buffer);
  if (state) state.core.assertWritable(state, what);
}

/** The mapped file that a view is of: what was read from it, or written to it, counts if it is usable then. */
export function mappingOf(view: Uint8Array): Mapping | undefined {
  return buffers.get(view.buffer)?.core.mapping;
}

function assertSame(core: PoolCore, state: BufferState, what: string): void {
  if (state.core !== core && !core.mapped.has(state.core)) {
    throw new MoatError("FOREIGN_BUFFER", `${what}: the buffer belongs to another pool`, {
      hint: "use a buffer of the pool the channel was made with",
    });
  }
}

function assertAttached(buffer: ArrayBuffer, what: string): void {
  if (buffer.detached) {
    throw new MoatError("DETACHED_VIEW", `${what}: the view's ArrayBuffer is detached`, {
      hint: "its buffer was freed, moved or transferred; take buffer.bytes again, or allocate",
    });
  }
}
