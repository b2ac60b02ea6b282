/**
 * The other side of tests of streams: connects, sends back what comes, and ends by itself, without closing.
 *
 *     echo.ts ADDRESS
 */
import process from "node:process";
import { connect } from "../../mod.ts";

const channel = await connect(process.argv[2]!);
await channel.readable.pipeTo(channel.writable);
