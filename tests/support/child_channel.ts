/**
 * A channel to a process on the other runtime.
 *
 * @module
 */
import { type Channel, listen, Pool, type PoolOptions } from "../../mod.ts";
import { Child, freshAddress, other } from "./child.ts";

/** Starts `tests/programs/<name>.ts` with an address, and accepts its connection there. */
export async function childChannel(
  scope: { after(fn: () => void): void },
  name: string,
  options: PoolOptions,
): Promise<{ pool: Pool; channel: Channel }> {
  const pool = Pool.create(options), address = freshAddress();
  const listener = await listen(address, { pool });
  const child = new Child(scope, name, [address], other());
  const channel = await Promise.race([
    listener.accept(),
    child.exit.then(({ stderr }) => Promise.reject(new Error(`the ${name} ended: ${stderr}`))),
  ]);
  await listener.close();
  return { pool, channel };
}
