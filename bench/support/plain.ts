/**
 * The runtimes' own sockets behind one small interface, for comparison: `Deno.connect`, `Bun.connect`, and `node:net` on
 * either. They copy: into the kernel, and out of it into the program's buffer.
 *
 * @module
 */
import { rmSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";

/** One end of a connection. */
export interface PlainSocket {
  /** Resolves when all of it was taken. */
  write(data: Uint8Array): Promise<void>;
  /** Fills the buffer; false if the other end has closed. One call at a time. */
  read(into: Uint8Array): Promise<boolean>;
  /** Reads until the other end closes, in the way that is the fastest, and does not look at it. */
  drain(): Promise<void>;
  close(): void;
}

/** A set of sockets. */
export interface PlainSockets {
  name: "Deno" | "Bun" | "node:net";
  connect(where: Where): Promise<PlainSocket>;
  /** Listens and serves; resolves to where. */
  listen(kind: Kind, serve: (socket: PlainSocket) => Promise<void>): Promise<Where>;
}

/** What the sockets are of: 127.0.0.1, or a path. */
export type Kind = "tcp" | "unix";
/** Where one listens. */
export type Where = { port: number } | { path: string };

let paths = 0;
function freshPath(): string {
  const path = join(tmpdir(), `moat-bench-${process.pid}-${paths++}.sock`);
  rmSync(path, { force: true }); // of a process that was killed, and had the same number
  process.once("exit", () => rmSync(path, { force: true }));
  return path;
}

// ---- Deno

class DenoSocket implements PlainSocket {
  constructor(readonly connection: Deno.Conn) {}

  async write(data: Uint8Array): Promise<void> {
    for (let at = 0; at < data.length;) at += await this.connection.write(data.subarray(at));
  }
  async read(into: Uint8Array): Promise<boolean> {
    for (let at = 0; at < into.length;) {
      const n = await this.connection.read(at === 0 ? into : into.subarray(at));
      if (n === null) return false;
      at += n;
    }
    return true;
  }
  async drain(): Promise<void> {
    const buffer = new Uint8Array(1 << 20);
    while (await this.connection.read(buffer) !== null);
  }
  close(): void {
    this.connection.close();
  }
}

const denoSockets: PlainSockets = {
  name: "Deno",
  async connect(where): Promise<PlainSocket> {
    if ("path" in where) {
      return new DenoSocket(await Deno.connect({ transport: "unix", ...where }));
    }
    const connection = await Deno.connect({ hostname: "127.0.0.1", ...where });
    connection.setNoDelay(true);
    return new DenoSocket(connection);
  },
  listen(kind, serve): Promise<Where> {
    const path = freshPath();
    const listener = kind === "unix"
      ? Deno.listen({ transport: "unix", path })
      : Deno.listen({ hostname: "127.0.0.1", port: 0 });
    (async () => {
      for await (const connection of listener) {
        if ("setNoDelay" in connection) (connection as Deno.TcpConn).setNoDelay(true);
        serve(new DenoSocket(connection));
      }
    })();
    const { addr } = listener;
    return Promise.resolve(kind === "unix" ? { path } : { port: (addr as Deno.NetAddr).port });
  },
};

// ---- those that push what came

/** Bytes that came, for who reads them; they are copied into the reader's buffer as they come. */
class Inbox {
  readonly #parts: Uint8Array[] = [];
  #into: Uint8Array | undefined;
  #at = 0;
  #tell: (whole: boolean) => void = () => {};
  #ended = false;
  #drain = false;
  #drained: () => void = () => {};

  push(part: Uint8Array): void {
    if (this.#drain) return;
    const rest = this.#into ? this.#take(part) : part;
    // What is left over belongs to the runtime, which may use its memory again.
    if (rest.length > 0) this.#parts.push(rest.slice());
  }

  end(): void {
    this.#ended = true;
    this.#into = undefined;
    this.#tell(false);
    this.#drained();
  }

  read(into: Uint8Array): Promise<boolean> {
    return new Promise((resolve) => {
      this.#into = into;
      this.#at = 0;
      this.#tell = resolve;
      while (this.#into && this.#parts.length > 0) {
        const rest = this.#take(this.#parts.shift()!);
        if (rest.length > 0) this.#parts.unshift(rest);
      }
      if (this.#into && this.#ended) this.end();
    });
  }

  drain(): Promise<void> {
    this.#drain = true;
    return new Promise((resolve) => {
      this.#drained = resolve;
      if (this.#ended) resolve();
    });
  }

  // Copies what fits; returns the rest.
  #take(part: Uint8Array): Uint8Array {
    const into = this.#into!, n = Math.min(part.length, into.length - this.#at);
    into.set(n === part.length ? part : part.subarray(0, n), this.#at);
    this.#at += n;
    if (this.#at === into.length) {
      this.#into = undefined;
      this.#tell(true);
    }
    return part.subarray(n);
  }
}

// ---- Bun

/** As much of Bun's interface as is used here. */
interface BunHandle {
  data: BunSocket;
  write(data: Uint8Array, offset: number, length: number): number;
  end(): void;
}
interface BunRuntime {
  listen(options: unknown): { port: number };
  connect(options: unknown): Promise<BunHandle>;
}
const { Bun } = globalThis as { Bun?: BunRuntime };

class BunSocket implements PlainSocket {
  readonly inbox = new Inbox();
  handle: BunHandle | undefined;
  wake = (): void => {};

  async write(data: Uint8Array): Promise<void> {
    for (let at = 0;;) {
      at += this.handle!.write(data, at, data.length - at);
      if (at >= data.length) return;
      await new Promise<void>((resolve) => this.wake = resolve);
    }
  }
  read(into: Uint8Array): Promise<boolean> {
    return this.inbox.read(into);
  }
  drain(): Promise<void> {
    return this.inbox.drain();
  }
  close(): void {
    this.handle!.end();
  }
}

function bunHandlers(opened: (socket: BunSocket) => void): Record<string, unknown> {
  return {
    open(handle: BunHandle): void {
      handle.data = new BunSocket();
      handle.data.handle = handle;
      opened(handle.data);
    },
    data: (handle: BunHandle, part: Uint8Array) => handle.data.inbox.push(part),
    drain: (handle: BunHandle) => handle.data.wake(),
    close: (handle: BunHandle) => handle.data.inbox.end(),
  };
}

const bunSockets: PlainSockets = {
  name: "Bun",
  async connect(where): Promise<PlainSocket> {
    const at = "path" in where ? { unix: where.path } : { hostname: "127.0.0.1", ...where };
    const handle = await Bun!.connect({ ...at, socket: bunHandlers(() => {}) });
    return handle.data;
  },
  listen(kind, serve): Promise<Where> {
    const path = freshPath();
    const at = kind === "unix" ? { unix: path } : { hostname: "127.0.0.1", port: 0 };
    const { port } = Bun!.listen({ ...at, socket: bunHandlers(serve) });
    return Promise.resolve(kind === "unix" ? { path } : { port });
  },
};

// ---- node:net

class NodeSocket implements PlainSocket {
  readonly #inbox = new Inbox();

  constructor(readonly socket: Socket) {
    socket.setNoDelay(true);
    socket.on("data", (part) => this.#inbox.push(part as Uint8Array));
    socket.on("close", () => this.#inbox.end());
    socket.on("error", () => {}); // it is closed, too
  }
  write(data: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      this.socket.write(data, (error) => error ? reject(error) : resolve());
    });
  }
  read(into: Uint8Array): Promise<boolean> {
    return this.#inbox.read(into);
  }
  drain(): Promise<void> {
    return this.#inbox.drain();
  }
  close(): void {
    this.socket.end();
  }
}

/** Those of `node:net`. */
export const nodeSockets: PlainSockets = {
  name: "node:net",
  connect(where): Promise<PlainSocket> {
    return new Promise((resolve, reject) => {
      const socket = "path" in where ? connect(where.path) : connect(where.port, "127.0.0.1");
      socket.once("connect", () => resolve(new NodeSocket(socket)));
      socket.once("error", reject);
    });
  },
  listen(kind, serve): Promise<Where> {
    const path = freshPath();
    const server = createServer((socket) => void serve(new NodeSocket(socket)));
    return new Promise((resolve, reject) => {
      server.once("error", reject);
      const done = (): void => {
        const at = server.address();
        resolve(typeof at === "object" && at ? { port: at.port } : { path });
      };
      if (kind === "unix") server.listen(path, done);
      else server.listen(0, "127.0.0.1", done);
    });
  },
};

/** Those of this runtime. */
export const ownSockets: PlainSockets = Bun ? bunSockets : denoSockets;
