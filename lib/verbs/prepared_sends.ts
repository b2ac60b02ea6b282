/**
 * Requests that are written once and posted many times.
 *
 * @module
 */
import { type Helper, helper } from "../../ffi/helper.ts";
import type { QueuePair } from "./queue_pair.ts";
import { Resource } from "./resource.ts";
import { RequestSlab, type SendRequest } from "./work_request.ts";

/**
 * A list of requests in native memory, ready to be posted again and again with nothing to write or allocate:
 * {@linkcode QueuePair.prepareSend}. Closed with its queue pair.
 */
export class PreparedSends extends Resource {
  /** How many requests there are. */
  readonly count: number;
  readonly #qp: QueuePair;
  readonly #helper: Helper;
  readonly #slab: RequestSlab;
  readonly #ids: number[];
  readonly #opcodes: string[];

  /** Use {@linkcode QueuePair.prepareSend}. */
  constructor(qp: QueuePair, requests: readonly SendRequest[]) {
    super([qp]);
    this.#qp = qp;
    this.#helper = helper();
    this.count = requests.length;
    this.#ids = requests.map(({ id = 0 }) => id);
    this.#opcodes = requests.map(({ opcode = "SEND" }) => opcode);
    this.#slab = new RequestSlab("send", requests.length, qp.capacity.maxSendSge);
    try {
      for (const [i, request] of requests.entries()) {
        this.#slab.writeSend(i, request, i + 1 < requests.length);
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Changes the number that the completion of a request will bear. */
  setId(index: number, id: number): void {
    this.#slab.setId(index, id);
    this.#ids[index] = id;
  }

  /**
   * Posts all of them: ibv_post_send(3).
   *
   * @throws {MoatError} `VERB_FAILED` as {@linkcode QueuePair.postSend}, `RESOURCE_CLOSED`
   */
  post(): void {
    if (this.closed) this.assertOpen();
    if (this.count === 0) return;
    const slab = this.#slab;
    const r = this.#helper.moat_verbs_post_send(this.#qp.address, slab.address(0), slab.bad);
    const taken = r < 0 ? slab.badSlot(this.count) : this.count;
    for (let i = 0; i < taken; i++) {
      this.#qp.posted(this.#ids[i]!, this.#opcodes[i]!, slab.bytes(i));
    }
    if (r < 0) this.#qp.refused("ibv_post_send", r, taken, this.count);
  }

  /** Frees the memory. */
  protected override destroy(): void {
    this.#slab?.close();
  }
}
