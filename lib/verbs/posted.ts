/**
 * What was posted last: a completion that failed does not say what failed.
 *
 * @module
 */

/** The numbers, operations and sizes of the requests a queue can hold. Adding one allocates nothing. */
export class Posted {
  readonly #ids: Float64Array;
  readonly #bytes: Float64Array;
  readonly #opcodes: string[];
  #count = 0;

  /** @param capacity requests of the queue: those under way are among the last so many */
  constructor(capacity: number) {
    const entries = Math.max(1, capacity);
    this.#ids = new Float64Array(entries);
    this.#bytes = new Float64Array(entries);
    this.#opcodes = new Array<string>(entries).fill("");
  }

  /** Notes a request. */
  add(id: number, opcode: string, bytes: number): void {
    const i = this.#count++ % this.#ids.length;
    this.#ids[i] = id;
    this.#bytes[i] = bytes;
    this.#opcodes[i] = opcode;
  }

  /** The request of a number. If several have it, the oldest that may be under way. */
  find(id: number): { opcode: string; bytes: number } | undefined {
    const entries = this.#ids.length;
    for (let n = Math.max(0, this.#count - entries); n < this.#count; n++) {
      const i = n % entries;
      if (this.#ids[i] === id) return { opcode: this.#opcodes[i]!, bytes: this.#bytes[i]! };
    }
    return undefined;
  }
}
