/**
 * What a mapped file adds to a pool's inside: whether the mapping can still be trusted.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { type Helper, MAP_QUERY } from "../../ffi/helper.ts";
import { ensureBusHandler } from "../../ffi/sigbus.ts";

/** A mapped part of a file, and the pool it is used with. */
export class Mapping {
  readonly path: string;
  readonly writable: boolean;
  readonly #helper: Helper;
  readonly #end: number;
  readonly #size: () => number;
  /** Its pool in the helper; set when it has one. */
  index = -1;

  /**
   * @param end the offset in the file behind the last byte mapped
   * @param size tells the bytes of the file now
   */
  constructor(
    helper: Helper,
    path: string,
    { writable, end, size }: { writable: boolean; end: number; size: () => number },
  ) {
    this.path = path;
    this.writable = writable;
    this.#helper = helper;
    this.#end = end;
    this.#size = size;
    ensureBusHandler(helper);
  }

  // What somebody has cut off and nobody has touched yet is found by the file's size.
  #broken(): boolean {
    if (this.#helper.moat_map_query(this.index, MAP_QUERY.broken) === 1) return true;
    if (this.#size() >= this.#end) return false;
    this.#helper.moat_map_break(this.index);
    return true;
  }

  /**
   * Checks that it is still what it was mapped as. To be asked before an operation, and after its bytes were
   * copied.
   *
   * @throws {MoatError} `FILE_TRUNCATED` or `READ_ONLY`
   */
  assertUsable(what: string): void {
    if (this.#broken()) throw this.truncated(what);
    if (this.#helper.moat_map_query(this.index, MAP_QUERY.scribbled) !== 1) return;
    throw new MoatError(
      "READ_ONLY",
      `${what}: ${JSON.stringify(this.path)} is mapped read-only, and the program wrote to it`,
      { hint: "the file is as it was, what was written is lost; map it with write: true" },
    );
  }

  /** Notes that a system call met the end of the file, and says so. */
  broke(what: string): MoatError {
    this.#helper.moat_map_break(this.index);
    return this.truncated(what);
  }

  /** The error of everything that is done to a mapping whose file has been cut off. */
  truncated(what: string): MoatError {
    return truncatedError(what, this.path);
  }

  /** Checks that it may be received or read into. */
  assertWritable(what: string): void {
    if (this.writable) return;
    throw new MoatError(
      "READ_ONLY",
      `${what} into ${JSON.stringify(this.path)}, which is mapped read-only`,
      { hint: "map it with write: true" },
    );
  }

  /** Brings home what can go; the pages that operations still hold. */
  away(): number {
    return this.#helper.moat_map_query(this.index, MAP_QUERY.away);
  }
}

/** The error of an operation on a mapped file that has been cut off. */
export function truncatedError(what: string, path?: string): MoatError {
  const which = path === undefined ? "the mapped file" : JSON.stringify(path);
  return new MoatError("FILE_TRUNCATED", `${what}: ${which} was cut off while it was mapped`, {
    hint:
      "bytes behind its end read as zeros since; map it again (a full disk has the same effect)",
  });
}
