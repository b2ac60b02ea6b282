// Sends a message a moment after it was asked to.
import { listen, Pool } from "../../mod.ts";
import { pattern } from "../support/bytes.ts";
import { freshAddress, say } from "../support/child.ts";

await using pool = Pool.create({ bytes: 4 << 20 });
await using listener = await listen(freshAddress(), { pool });
say({ address: listener.address });
const channel = await listener.accept();
(await channel.recv())?.release();
await new Promise((resolve) => setTimeout(resolve, 60));
await channel.send(pattern(9, 1 << 20));
await channel.close();
