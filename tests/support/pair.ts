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

/** Connects this thread to itself. */
export async function pair(pool: Pool): Promise<Pair> {
  const address = freshAddress(), listener = await listen(address, { pool });
  const [here, there] = await Promise.all([listener.accept(), connect(address, { pool })]);
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
