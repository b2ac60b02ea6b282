/**
 * A channel's bytes as a `ReadableStream`.
 *
 * @module
 */
import type { Bytes } from "./bytes.ts";

/**
 * A byte stream that asks for a message when its reader asks for bytes, and never before: who does not read
 * holds the peer back.
 */
export function readableOf(bytes: Bytes): ReadableStream<Uint8Array<ArrayBuffer>> {
  return new ReadableStream({
    type: "bytes",
    async pull(controller): Promise<void> {
      const request = controller.byobRequest;
      if (request) {
        const got = await bytes.read(request.view as Uint8Array);
        if (got === null) controller.close();
        request.respond(got ?? 0);
        return;
      }
      const chunk = await bytes.chunk();
      if (chunk) controller.enqueue(chunk);
      else controller.close();
    },
    cancel: (reason) => bytes.cancel(reason),
  }, { highWaterMark: 0 });
}
