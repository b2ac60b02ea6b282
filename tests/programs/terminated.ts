/**
 * A Worker that opens a channel, to be terminated at any moment.
 *
 * @module
 */
import { parentPort, workerData } from "node:worker_threads";
import { connect, Pool } from "../../mod.ts";

const pool = Pool.create({ bytes: 1 << 20 });
const channel = await connect(workerData as string, { pool });
await channel.send(new Uint8Array([1, 2, 3]));
channel.recv().catch(() => {});
parentPort!.postMessage("ready");
