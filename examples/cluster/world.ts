/**
 * The processes of a job, each with a channel to each other.
 *
 * @module
 */
import { hostname } from "node:os";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import {
  type Channel,
  connect,
  listen,
  type Listener,
  type Message,
  MoatError,
  type Pool,
  type SendOptions,
} from "../../mod.ts";
import { openDevice } from "../../lib/verbs/mod.ts";
import { UsageError } from "../support/program.ts";
import { findPlace, type Place, type PlaceValues } from "./place.ts";
import { Pmi } from "./pmi.ts";
import { Pmix } from "./pmix.ts";
import { acceptFrom, Star, within } from "./star.ts";

/** What carries the channels. */
export type TransportName = "shm" | "tcp" | "rdma";

/** How to join. */
export interface JoinOptions {
  readonly transport: TransportName;
  /** Whose buffers are sent and received. */
  readonly pool: Pool;
  /** What the command line said: values of `PLACE_OPTIONS`. */
  readonly place?: PlaceValues;
  /** Milliseconds until all have to be there; 30,000 by default. */
  readonly timeout?: number;
}

/** What finds the others: {@linkcode Star}, {@linkcode Pmi} or {@linkcode Pmix}. */
interface Meeting {
  readonly lost: Promise<never>;
  exchange(own: string, timeout: number): Promise<string[]>;
  close(): Promise<void>;
}

/** For so long a process that was left by another waits to hear who was lost in the first place. */
const GRACE_MS = 2000;

/** Another process has gone away. */
export class RankLost extends Error {
  /** The name of the class. */
  override readonly name = "RankLost";
}

/** The processes of a job. Made by {@linkcode join}. */
export class World implements AsyncDisposable {
  /** What the launcher said. */
  readonly place: Place;
  /** By what the processes found each other: PMI-1, PMIx, or an address. */
  readonly by: string;
  /** The number of this process, from 0. */
  readonly rank: number;
  /** How many there are. */
  readonly size: number;
  readonly #channels: ReadonlyMap<number, Channel>;
  /** The first that went away without closing its channel. */
  readonly #gone = Promise.withResolvers<RankLost>();

  /** Use {@linkcode join}. */
  constructor(place: Place, by: string, channels: ReadonlyMap<number, Channel>) {
    this.place = place;
    this.by = by;
    this.rank = place.rank;
    this.size = place.size;
    this.#channels = channels;
  }

  /** The numbers of the others. The next one first, so that not all begin with the same. */
  get others(): number[] {
    return Array.from({ length: this.size - 1 }, (_, i) => (this.rank + 1 + i) % this.size);
  }

  /** The channel to another process. */
  to(rank: number): Channel {
    return this.#channels.get(rank)!;
  }

  /** Sends to another process; throws {@linkcode RankLost}. */
  async send(rank: number, bytes: Uint8Array, options?: SendOptions): Promise<void> {
    try {
      await this.to(rank).send(bytes, options);
    } catch (error) {
      throw await this.#lost(rank, error);
    }
  }

  /** What another process sends next; throws {@linkcode RankLost}. */
  async recv(rank: number): Promise<Message> {
    try {
      const message = await this.to(rank).recv();
      if (message) return message;
    } catch (error) {
      throw await this.#lost(rank, error);
    }
    throw await this.#lost(rank);
  }

  /**
   * Says which rank is lost when a channel has failed. One that closed its channel has left, as a rank does that has
   * lost another: then it is the other that is named, if this process hears of it in time.
   *
   * @param error of the channel to this rank; undefined if it has ended
   */
  #lost(rank: number, error?: unknown): RankLost | Promise<RankLost> {
    const message = error instanceof Error ? error.message : "it closed its channel";
    const lost = new RankLost(`rank ${rank} of ${this.size} is lost: ${message}`, { cause: error });
    const left = error === undefined ||
      error instanceof MoatError && error.code === "CHANNEL_CLOSED";
    if (left) return Promise.race([this.#gone.promise, sleep(GRACE_MS, lost)]);
    this.#gone.resolve(lost);
    return lost;
  }

  /**
   * Gives a text to all, and returns those of all by their ranks. On every channel it comes after what was sent
   * before, and nobody returns before all have called it.
   */
  async allGather(own: string): Promise<string[]> {
    const texts: string[] = [];
    texts[this.rank] = own;
    await Promise.all(this.others.map(async (rank) => {
      const sent = this.send(rank, new TextEncoder().encode(own));
      sent.catch(() => {}); // told below, unless the receive fails first
      using message = await this.recv(rank);
      texts[rank] = new TextDecoder().decode(message.bytes);
      await sent;
    }));
    return texts;
  }

  /** Leaves. The others find their channels to this process closed. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(
      [...this.#channels.values()].map((channel) => channel.close().catch(() => {})),
    );
  }
}

/**
 * Finds the other processes of the job and connects to each.
 *
 * @throws {UsageError} if the environment does not say which process this is, or says what cannot be
 * @throws {Error} if one of them does not come, or goes away
 */
export async function join(options: JoinOptions): Promise<World> {
  const { transport, pool, timeout = 30_000 } = options;
  let place = findPlace(process.env, options.place);
  if (transport === "shm" && !place.oneHost) {
    throw new UsageError(
      "shm:// reaches processes of one host, and these are on several: use tcp or rdma",
    );
  }
  const { meeting, job, by } = await meet(place, timeout);
  place = { ...place, job };
  await using listener = await listen(listenAddress(transport, place), { pool });
  const all = await meeting.exchange(announced(listener.address, place), timeout);
  const channels = await within(
    Promise.race([mesh(place, listener, all, pool, timeout), meeting.lost]),
    timeout,
    () => `rank ${place.rank}: not all ${place.size} were connected after ${timeout / 1000} s`,
  );
  await meeting.exchange("connected", timeout);
  await meeting.close();
  return new World(place, by, channels);
}

async function meet(
  place: Place,
  timeout: number,
): Promise<{ meeting: Meeting; job: string; by: string }> {
  const { rank, size, job, meet } = place;
  if (meet.how === "pmi") {
    const meeting = new Pmi(meet.fd, rank, size);
    return { meeting, job: meeting.job, by: "PMI-1" };
  }
  const pmix = meet.how === "pmix" ? Pmix.open(rank, size, meet.library) : undefined;
  if (pmix) return { meeting: pmix, job, by: "PMIx" };
  if (meet.address !== undefined) {
    return { meeting: await Star.meet(place, meet.address, timeout), job, by: meet.address };
  }
  throw new UsageError(
    "mpirun does not say on which host rank 0 is, and there is no libpmix.so.2 (MOAT_PMIX) to ask it: " +
      "tell all by mpirun -x MOAT_ROOT=HOST:PORT",
  );
}

/** Where this process listens for the others. MOAT_ADDRESS names the interface, where it matters. */
function listenAddress(transport: TransportName, place: Place): string {
  const host = process.env["MOAT_ADDRESS"];
  if (transport === "shm") return `shm://moat-${place.job}-${place.rank}`;
  if (transport === "rdma") return `rdma://${host ?? deviceAddress()}:0`;
  return `tcp://${host ?? (place.oneHost ? "127.0.0.1" : "")}:0`;
}

/** What it tells the others: an address with the host by which they reach it. */
function announced(address: string, { host, meet }: Place): string {
  if (!/^tcp:\/\/(0\.0\.0\.0|\[::\]|):/.test(address)) return address;
  // It listens everywhere. Launchers say by which name the others know this host; else rank 0 sees it.
  const name = meet.how === "address" ? "" : host ?? hostname();
  return `tcp://${name}:${address.slice(address.lastIndexOf(":") + 1)}`;
}

/** The address of the first RDMA device of this host. */
function deviceAddress(): string {
  using device = openDevice();
  const gid = device.preferredGid()?.gid;
  if (gid === undefined) {
    throw new Error(
      `${device.deviceName} has no address: name that of its interface in MOAT_ADDRESS`,
    );
  }
  return gid.startsWith("::ffff:") ? gid.slice(7) : `[${gid}]`;
}

/** Connects to the ranks below, and accepts those above. */
async function mesh(
  place: Place,
  listener: Listener,
  addresses: string[],
  pool: Pool,
  timeout: number,
): Promise<Map<number, Channel>> {
  const { rank, size, job } = place, channels = new Map<number, Channel>();
  const below = addresses.slice(0, rank).map(async (address, other) => {
    try {
      const channel = await connect(address, { pool, timeout });
      await channel.send(new TextEncoder().encode(`${job} ${rank}`));
      channels.set(other, channel);
    } catch (error) {
      throw new RankLost(`rank ${other} of ${size} at ${address}: ${(error as Error).message}`);
    }
  });
  const above = acceptFrom(listener, size - 1 - rank, (said, channel) => {
    const [from, other] = said.split(" ");
    if (from !== job || !(Number(other) > rank)) return false; // none of this job
    channels.set(Number(other), channel);
    return true;
  });
  await Promise.all([...below, above]);
  return channels;
}
