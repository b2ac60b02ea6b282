/**
 * How processes find each other without help: rank 0 listens at an address that all know, everybody connects to it.
 *
 * @module
 */
import { setTimeout as sleep } from "node:timers/promises";
import { type Channel, connect, listen, type Listener, MoatError, Pool } from "../../mod.ts";
import type { Place } from "./place.ts";

const YET = ["CONNECTION_REFUSED", "UNREACHABLE", "TIMED_OUT", "ADDRESS_ERROR"];

/** Rank 0 knows who is missing: it is to be the first to say that the time is over. */
const GRACE_MS = 3000;

/** What a process says first. */
interface Hello {
  job: string;
  rank: number;
  size: number;
}

/** This process's side: of rank 0 a channel to everybody, of the others one to rank 0. */
export class Star {
  readonly #place: Place;
  readonly #address: string;
  readonly #pool: Pool;
  readonly #channels: readonly Channel[];
  /** What comes next from each channel, so that one that ends is noticed at any time. */
  readonly #next: Promise<string>[];
  /** Rejects when another process has gone away. */
  readonly lost: Promise<never>;
  readonly #lose: (error: unknown) => void;
  #closing = false;

  private constructor(place: Place, address: string, pool: Pool, channels: Channel[]) {
    this.#place = place;
    this.#address = address;
    this.#pool = pool;
    this.#channels = channels;
    const { promise, reject } = Promise.withResolvers<never>();
    promise.catch(() => {});
    this.lost = promise;
    this.#lose = reject;
    this.#next = channels.map((_, i) => this.#listen(i));
  }

  /**
   * Meets the others at an address.
   *
   * @param timeout milliseconds until all have to be there
   */
  static async meet(place: Place, address: string, timeout: number): Promise<Star> {
    const pool = Pool.create({ bytes: 1 << 20 });
    const end = performance.now() + timeout;
    const channels = place.rank === 0
      ? await gather(place, address, pool, timeout)
      : [await reach(place, address, pool, end)];
    return new Star(place, address, pool, channels);
  }

  /**
   * Gives a text to all, and returns those of all by their ranks. An address without a host, such as `tcp://:7471`,
   * gets the one by which rank 0 knows its sender, or by which the others know rank 0.
   */
  async exchange(own: string, timeout: number): Promise<string[]> {
    if (this.#place.rank > 0) {
      await this.#send(0, own);
      return JSON.parse(await this.#take(0, timeout + GRACE_MS)) as string[];
    }
    const others = await Promise.all(this.#channels.map((_, i) => this.#take(i, timeout)));
    const hosts = [this.#address, ...this.#channels.map(({ peer }) => peer)].map(hostOf);
    const all = [own, ...others].map((each, rank) => each.replace("//:", `//${hosts[rank]}:`));
    const text = JSON.stringify(all);
    await Promise.all(this.#channels.map((_, i) => this.#send(i, text)));
    return all;
  }

  /** Ends the connections. The others are not lost by that. */
  async close(): Promise<void> {
    this.#closing = true;
    await Promise.all(this.#channels.map((channel) => channel.close().catch(() => {})));
    await this.#pool.close();
  }

  #rankOf(i: number): number {
    return this.#place.rank === 0 ? i + 1 : 0;
  }

  async #send(i: number, text: string): Promise<void> {
    await this.#channels[i]!.send(new TextEncoder().encode(text));
  }

  async #take(i: number, timeout: number): Promise<string> {
    const text = await within(
      Promise.race([this.#next[i]!, this.lost]),
      timeout,
      () => `rank ${this.#rankOf(i)} has said nothing for ${timeout / 1000} s`,
    );
    this.#next[i] = this.#listen(i);
    return text;
  }

  #listen(i: number): Promise<string> {
    const next = this.#hear(i);
    next.catch((error) => {
      if (!this.#closing) this.#lose(error);
    });
    return next;
  }

  async #hear(i: number): Promise<string> {
    try {
      using message = await this.#channels[i]!.recv();
      if (message) return new TextDecoder().decode(message.bytes);
      throw new Error("it closed the connection");
    } catch (error) {
      throw new Error(`rank ${this.#rankOf(i)} has ended too early: ${(error as Error).message}`);
    }
  }
}

/** Waits for all others at rank 0. Returns channels to rank 1, 2, … */
async function gather(
  place: Place,
  address: string,
  pool: Pool,
  timeout: number,
): Promise<Channel[]> {
  const { job, size } = place, channels = new Map<number, Channel>();
  if (size === 1) return [];
  await using listener = await listen(address, { pool });
  const missing = (): string => {
    const ranks = Array.from({ length: size - 1 }, (_, i) => i + 1);
    return ranks.filter((rank) => !channels.has(rank)).join(", ");
  };
  const greeted = acceptFrom(listener, size - 1, (said, channel) => {
    const hello = parse(said);
    if (hello?.job !== job) return false; // somebody else's, at the same port
    if (hello.size !== size || channels.has(hello.rank)) {
      throw new Error(
        `rank ${hello.rank} of ${hello.size} came to rank 0 of ${size}` +
          `${channels.has(hello.rank) ? ", for the second time" : ""}: is it of another start?`,
      );
    }
    channels.set(hello.rank, channel);
    return true;
  });
  await within(
    greeted,
    timeout,
    () =>
      `after ${timeout / 1000} s these ranks of ${size} are missing at ${address}: ${missing()}`,
  );
  return Array.from({ length: size - 1 }, (_, i) => channels.get(i + 1)!);
}

/**
 * Accepts connections until so many have said what they should, whatever else comes.
 *
 * @param greet is given the first message; false if it is a stranger's, throws if it cannot be
 */
export async function acceptFrom(
  listener: Listener,
  wanted: number,
  greet: (said: string, channel: Channel) => boolean,
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  let missing = wanted;
  const hear = async (channel: Channel): Promise<void> => {
    try {
      using message = await channel.recv();
      if (!greet(new TextDecoder().decode(message?.bytes), channel)) channel.abort();
      else if (--missing === 0) resolve();
    } catch (error) {
      // Who goes away without a word is missed when the time is over.
      if (!(error instanceof MoatError)) reject(error);
    }
  };
  const stop = new AbortController();
  const accept = async (): Promise<void> => {
    for (;;) void hear(await listener.accept({ signal: stop.signal }));
  };
  if (wanted === 0) return;
  accept().catch(reject); // which is too late when all have come
  try {
    await promise;
  } finally {
    stop.abort();
  }
}

function parse(text: string): Hello | undefined {
  try {
    return JSON.parse(text) as Hello;
  } catch {
    return undefined;
  }
}

/** Connects to rank 0, which may start later than this process. */
async function reach(place: Place, address: string, pool: Pool, end: number): Promise<Channel> {
  for (;;) {
    try {
      const channel = await connect(address, {
        pool,
        timeout: Math.max(1, end - performance.now()),
      });
      const { job, rank, size } = place;
      const hello: Hello = { job, rank, size };
      await channel.send(new TextEncoder().encode(JSON.stringify(hello)));
      return channel;
    } catch (error) {
      const yet = error instanceof MoatError && YET.includes(error.code);
      if (yet && performance.now() < end) await sleep(50);
      else if (!yet) throw error;
      else throw new Error(`rank 0 could not be reached at ${address}: ${error.message}`);
    }
  }
}

/** The host of `tcp://host:port`, or of `… (from host:port)`, as it is written in an address. */
function hostOf(peer: string): string {
  return /(?:^tcp:\/\/|\(from )(\[[^\]]+\]|[^:/]+):\d+\)?$/.exec(peer)?.[1] ?? "";
}

/** A promise with a limit of time, and what to say when it is over. */
export async function within<T>(
  promise: Promise<T>,
  milliseconds: number,
  late: () => string,
): Promise<T> {
  const { promise: over, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(late())), milliseconds);
  try {
    return await Promise.race([promise, over]);
  } finally {
    clearTimeout(timer);
  }
}
