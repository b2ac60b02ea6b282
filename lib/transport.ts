/**
 * What a channel needs of a transport. A transport knows the pool through its operations only; the pool
 * knows no transport.
 *
 * @module
 */

/** The memory of a message that has arrived. */
export interface Arrival {
  /** The bytes: in place, or a copy. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The message's header, a copy; empty if it has none. */
  readonly header: Uint8Array<ArrayBuffer>;
  /** True if the bytes were copied and nothing has to be released. */
  readonly copied: boolean;
  /** Where a device can read them, if they are not the pool's: no write of the program reaches them there. */
  readonly device?: number | undefined;
  /** True if {@linkcode release} detaches the view itself. */
  readonly detaches?: boolean | undefined;
  /** Ends the reading: the pages may be used again. The view has been detached before. */
  release(escaped: boolean): void;
}

/** How a connection is doing. */
export type TransportState = "open" | "ended" | "lost" | "broken" | "aborted" | "peer-aborted";

/** An operation that has ended. */
export interface Ended {
  /** Its number. */
  readonly op: number;
  /** 0, or -errno. */
  readonly status: number;
  /** The bytes of the message it met. */
  readonly got: number;
}

/** One connection. Numbers that are returned are 0 or -errno unless said otherwise. */
export interface Transport {
  /** What it is, for people. */
  readonly name: string;
  /** The other side, for error messages. */
  readonly peer: string;
  /** The largest message, in bytes, that {@linkcode eager} takes. */
  readonly eagerMax: number;
  /** Whether it can send from, and receive into, pages that are not the pool's own: those of mapped files. */
  readonly reaches?: { readonly out: boolean; readonly in: boolean };
  /** Sends a small message by copying it at once. `-EAGAIN`: no room now, send it as an operation. */
  eager(bytes: Uint8Array): number;
  /** Hands over an operation that sends. It ends by itself, in {@linkcode next}. */
  send(op: number): void;
  /**
   * Hands over an operation that receives into `bytes` bytes, or (0) a message of any size. True if it may have ended;
   * false if another thread sees to it.
   */
  recv(op: number, bytes: number): boolean;
  /** Takes a receive back; it ends soon, one way or the other. */
  cancel(op: number): void;
  /** Takes a message that is there, or comes within `spin` nanoseconds. 1, 0, or -errno. */
  take(spin: number): number;
  /** The message that {@linkcode take} took. */
  taken(): Arrival;
  /** The message of a receive that has ended. To be asked before the operation is collected. */
  arrived(op: number): Arrival;
  /**
   * Copies the message of a receive that has ended, or (-1) of the one taken, instead of opening it. Its length;
   * -1 if it is longer than `to`, or has to be opened.
   */
  collect(op: number, to: Uint8Array): number;
  /** The header of the message of a receive that has ended, likewise. */
  header(op: number): Uint8Array<ArrayBuffer>;
  /**
   * Says where in a page the next large message is to begin if it is received into pages of this side's: at the
   * same offset as where the program wants it, they can be exchanged.
   */
  alignTo?(offset: number): void;
  /** The next operation that ended. */
  next(): Ended | undefined;
  /** How the connection is doing. */
  state(): TransportState;
  /** Asks to be woken; true if there is work already. */
  arm(): boolean;
  /** True while operations are under way. */
  busy(): boolean;
  /** Says goodbye to the peer. */
  end(abort: boolean): void;
  /** Gives everything back, at once or soon. Nothing may be under way. */
  destroy(): void | Promise<void>;
  /** Nothing will be received any more: what comes from now on need not be kept for anybody. */
  stopReceiving?(): void;
  /** Why the connection was lost, if more is known than that. */
  failure?(): unknown;
  /** The descriptor to watch, and the connection's number for the doorbell. */
  readonly fd: number;
  readonly conn: number;
}

/** What a listener needs of a transport. */
export interface Acceptor {
  /** Where it listens. */
  readonly address: string;
  /** Called when a connection is ready, or when no more can be made. */
  onready: () => void;
  /** Why no more connections can be made. */
  error: unknown;
  /** A connection that is ready. */
  take(): Transport | undefined;
  /** Stops listening; connections that nobody took are ended. */
  close(): Promise<void>;
}

/** How a connection is to be made. */
export interface ConnectSettings {
  /** Milliseconds for each phase. */
  timeout: number;
  signal: AbortSignal | undefined;
  /** `shm://`: users besides our own that may be at the other end. */
  uids: readonly number[];
  /** `rdma://`: plain SEND and RECV, and how large the messages for `recv()` may be. */
  raw: { messageBytes: number } | undefined;
}
