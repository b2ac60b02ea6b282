/**
 * Messages as they are received.
 *
 * @module
 */
/**
 * A whole message. Over `shm://` large ones lie in the sender's pages and are read there: until
 * {@linkcode release}, the sender's send has not completed, and a write to {@linkcode bytes} goes to a private
 * copy of the page. Over `rdma://` they lie in a buffer of this side's pool, which is free after
 * {@linkcode release}; `channel.send(message.bytes)` sends it on without a copy.
 *
 * @example Released at the end of the block
 * ```ts ignore
 * for await (using message of channel) {
 *   console.log(message.bytes.length);
 * }
 * ```
 */
export class Message implements Disposable {
  /** The bytes. Detached (length 0) after {@linkcode release}, unless the message was {@linkcode copied}. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The length of the message in bytes; still known after it was released. */
  readonly byteLength: number;
  /** True if the bytes are a copy of their own: small messages, and some in very scattered pages. */
  readonly copied: boolean;
  /** The bytes it was sent with besides ({@linkcode SendOptions.header}): a copy; empty if there are none. */
  readonly header: Uint8Array<ArrayBuffer>;
  readonly #release: () => void;

  /** Messages are made by {@linkcode Channel.recv}. */
  constructor(
    bytes: Uint8Array<ArrayBuffer>,
    header: Uint8Array<ArrayBuffer>,
    copied: boolean,
    release: () => void,
  ) {
    this.bytes = bytes;
    this.header = header;
    this.byteLength = bytes.byteLength;
    this.copied = copied;
    this.#release = release;
  }

  /** Lets the sender have its pages back. The second time it does nothing. */
  release(): void {
    this.#release();
  }

  /** The same as {@linkcode release}. */
  [Symbol.dispose](): void {
    this.#release();
  }
}
