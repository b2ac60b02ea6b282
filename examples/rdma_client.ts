/**
 * Sends one message of 16 bytes to rdma_server(1) or to rdma_server.ts and waits for the answer.
 *
 *     deno run -A examples/rdma_client.ts -s HOST [options]
 *     bun examples/rdma_client.ts -s HOST [options]
 *
 *     -s, --server HOST    the server (127.0.0.1)
 *     -p, --port PORT      port (7471)
 *
 * @module
 */
import { parseArgs } from "node:util";
import { CmId } from "../lib/verbs/mod.ts";
import { completed, endWithPeer, number, run } from "./verbs/support.ts";

const MESSAGE = new TextEncoder().encode("sixteen of bytes");

await run("rdma_client", async () => {
  const { values } = parseArgs({
    options: {
      server: { type: "string", short: "s", default: "127.0.0.1" },
      port: { type: "string", short: "p", default: "7471" },
    },
  });
  const port = number("--port", values.port, 1, 65535);
  console.log("rdma_client: start");
  using id = CmId.create();
  await id.resolveAddr(values.server, port);
  await id.resolveRoute();

  const { context } = id, bytes = MESSAGE.length;
  using pd = context.allocPd();
  using channel = context.createCompletionChannel();
  const sends = context.createCq({ channel }), receives = context.createCq({ channel });
  const qp = id.createQp(pd, {
    ...{ sendCq: sends, recvCq: receives, maxSendWr: 1, maxRecvWr: 1, maxInlineData: bytes },
  });
  using memory = pd.allocate(2 * bytes);
  qp.postRecv({ segments: memory.segment(0, bytes) }); // before the server can answer
  endWithPeer(id);
  await id.connect();

  memory.bytes.set(MESSAGE, bytes);
  qp.send(memory.segment(bytes), { inline: qp.capacity.maxInlineData >= bytes });
  // The answer says that the message has arrived. Its own completion may never come: the server disconnects as soon
  // as it has answered.
  const { byteLength } = await completed(receives);
  const answer = new TextDecoder().decode(memory.bytes.subarray(0, byteLength));
  console.log(`received: ${JSON.stringify(answer)}`);
  id.disconnect();
  console.log("rdma_client: end 0");
});
