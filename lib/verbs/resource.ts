/**
 * Objects that live inside others: a memory region in its protection domain, that in its device's context.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";

/**
 * An object of the device that must be closed before those it was made of. Closing one closes first whatever
 * was made of it and is still open, the newest first.
 */
export abstract class Resource implements Disposable {
  #parents: readonly Resource[];
  readonly #children = new Set<Resource>();
  #closed = false;

  /** Makes an object inside others. */
  constructor(parents: readonly Resource[]) {
    for (const parent of parents) parent.assertOpen();
    this.#parents = [...new Set(parents)];
    for (const parent of this.#parents) parent.#children.add(this);
  }

  /** True after {@linkcode close}. */
  get closed(): boolean {
    return this.#closed;
  }

  /** How many objects live in this one. */
  get childCount(): number {
    return this.#children.size;
  }

  /** Leaves its parents for another. */
  protected adopt(parent: Resource): void {
    const before = this.#parents;
    parent.assertOpen();
    parent.#children.add(this);
    this.#parents = [parent];
    for (const old of before) if (old !== parent) old.#forget(this);
  }

  #forget(child: Resource): void {
    this.#children.delete(child);
    if (this.#children.size === 0 && !this.#closed) this.onUnused();
  }

  /** Frees the native object. Everything made of it is closed already. */
  protected abstract destroy(): void;

  /** Called when the last object that lived in this one was closed. */
  protected onUnused(): void {}

  /**
   * Throws unless it is open.
   *
   * @throws {MoatError} `RESOURCE_CLOSED`
   */
  assertOpen(): void {
    if (this.#closed) {
      throw new MoatError("RESOURCE_CLOSED", `the ${this.constructor.name} has been closed`, {
        hint: "closing an object closes everything made of it",
      });
    }
  }

  /** Closes it and, before it, whatever was made of it. Does nothing the second time. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const errors: unknown[] = [];
    const attempt = (act: () => void): void => {
      try {
        act();
      } catch (error) {
        errors.push(error);
      }
    };
    for (const child of [...this.#children].reverse()) attempt(() => child.close());
    attempt(() => this.destroy());
    for (const parent of this.#parents) attempt(() => parent.#forget(this));
    if (errors.length > 0) throw errors[0];
  }

  /** The same as {@linkcode close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}
