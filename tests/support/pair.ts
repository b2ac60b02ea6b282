/**
 * Both ends of a channel in one thread.
 *
 * @module
 */
import { type Channel, connect, listen, type Pool } from "../../mod.ts";
import { freshAddress } from "./child.ts";

/** A channel's ends, on one pool. The end of their block ends them, whatever is under way. */
export interface Pair extends Disposable {
  here: Channel;
  there: Channel;
}

/** Connects this thread to itself, over shared memory by default. */
export async function pair(pool: Pool, at: string = freshAddress()): Promise<Pair> {
  const listener = await listen(at, { pool });
  const [here, there] = await Promise.all([listener.accept(), connect(listener.address, { pool })]);
  await listener.close();
  return {
    here,
    there,
    [Symbol.dispose](): void {
      here.abort();
      there.abort();
    },
  };
}
