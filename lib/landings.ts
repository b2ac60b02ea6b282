/**
 * Places for announced messages: what a transport receives large ones into when nobody has given a buffer.
 *
 * @module
 */
import type { PoolCore, Region } from "./memory/core.ts";
import { resolveData } from "./memory/resolve.ts";
import type { PoolBuffer } from "./memory/buffer.ts";
import type { Opened } from "./native_transport.ts";

const ECANCELED = 125;

/** The part of a pool that messages read ahead may take. */
const AHEAD = 1 / 4;

/** A place for a message: a buffer made for it, and the receive into that. */
interface Landing {
  readonly buffer: PoolBuffer;
  readonly region: Region;
  /** The bytes it counts for among those received before the program asks for them. */
  readonly ahead: number;
}

/** The places of one connection. */
export class Landings {
  readonly #core: PoolCore;
  readonly #conn: number;
  readonly #landings = new Map<number, Landing>();
  #bytesAhead = 0;
  /** Where in a page the next message is to begin: where its reader wants it. */
  align = 0;

  constructor(core: PoolCore, conn: number) {
    this.#core = core;
    this.#conn = conn;
  }

  /**
   * Gives every message that wants one a place.
   *
   * @param fixed the bytes to receive into where the size of a message is not announced
   * @returns whether any wanted one
   */
  find(fixed?: number): boolean {
    const { helper } = this.#core;
    let any = false;
    for (let wanted; (wanted = helper.moat_conn_wants(this.#conn)) !== 0;) {
      any = true;
      this.#land(wanted, fixed);
    }
    return any;
  }

  // An announced message gets a buffer of its own in the pool, which is then received into.
  #land(wanted: number, fixed: number | undefined): void {
    const core = this.#core, { helper } = core;
    const ahead = wanted < 0, length = fixed ?? Math.abs(wanted);
    let buffer: PoolBuffer | undefined, region: Region | undefined, op = -1;
    if (!ahead || this.#bytesAhead + length <= core.pool.byteLength * AHEAD) {
      try {
        const { align } = this, { pageSize } = core;
        // Whole pages: what is behind the message in the last may be needed to exchange it.
        buffer = core.pool.alloc(Math.ceil((align + length) / pageSize) * pageSize);
        region = resolveData(core, buffer.bytes.subarray(align, align + length), "recv").region!;
        op = core.in(region, "none");
      } catch {
        buffer?.free(); // no room: a receive that waits fails, and the message stays for the next
      }
    }
    const r = helper.moat_conn_land(this.#conn, op);
    if (op < 0) return;
    if (r === 0) {
      const landing = { buffer: buffer!, region: region!, ahead: ahead ? buffer!.byteLength : 0 };
      this.#landings.set(op, landing);
      this.#bytesAhead += landing.ahead;
    } else {
      helper.moat_op_done(op, -ECANCELED);
      helper.moat_op_free(op);
      buffer!.free();
    }
  }

  /** Frees the place whose receive has ended, if it is one: nobody has asked for it, or it was not filled. */
  drop(op: number): boolean {
    if (!this.#landings.has(op)) return false;
    this.#take(op).buffer.free();
    return true;
  }

  /** The message of `length` bytes that was received by `op`. */
  open(op: number, length: number): Opened {
    const core = this.#core, { buffer, region: { state, offset } } = this.#take(op);
    core.counters.bytesReceived += length;
    // The release must not hold the buffer: a message that is dropped is released when it is collected.
    const release = (): void => {
      if (!state.freed) core.retire(state);
    };
    const bytes = buffer.bytes.subarray(offset, offset + length);
    return { bytes, copied: false, detaches: true, release };
  }

  // Forgets a receive that has ended.
  #take(op: number): Landing {
    const landing = this.#landings.get(op)!;
    this.#landings.delete(op);
    this.#core.helper.moat_op_free(op);
    this.#bytesAhead -= landing.ahead;
    return landing;
  }
}
