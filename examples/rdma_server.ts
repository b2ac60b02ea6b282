/**
 * Answers one message of 16 bytes, of rdma_client(1) or of rdma_client.ts, with the same.
 *
 *     deno run -A examples/rdma_server.ts [-p PORT]
 *     bun examples/rdma_server.ts [-p PORT]
 *
 *     -p, --port PORT      port (7471)
 *
 * @module
 */
import { parseArgs } from "node:util";
import { CmId } from "../lib/verbs/mod.ts";
import { completed, endWithPeer, number, run } from "./verbs/support.ts";

const BYTES = 16;

await run("rdma_server", async () => {
  const { values } = parseArgs({
    options: { port: { type: "string", short: "p", default: "7471" } },
  });
  const port = number("--port", values.port, 1, 65535);
  console.log("rdma_server: start");
  using listener = CmId.create();
  await listener.listen("", port);
  using id = (await listener.nextRequest())!.id;

  const { context } = id;
  using pd = context.allocPd();
  using channel = context.createCompletionChannel();
  const cq = context.createCq({ channel });
  const qp = id.createQp(pd, { sendCq: cq, maxSendWr: 1, maxRecvWr: 1, maxInlineData: BYTES });
  using memory = pd.allocate(BYTES);
  qp.postRecv({ segments: memory.segment() }); // before the client can send
  endWithPeer(id);
  await id.accept();

  const { byteLength } = await completed(cq);
  console.log(`received: ${JSON.stringify(new TextDecoder().decode(memory.bytes))}`);
  const inline = qp.capacity.maxInlineData >= byteLength;
  qp.send(memory.segment(0, byteLength), { inline });
  await completed(cq); // the client has it
  id.disconnect();
  console.log("rdma_server: end 0");
});
