/**
 * Listening and connecting over `rdma://`.
 *
 * @module
 */
import { MoatError } from "../../ffi/errors.ts";
import { Welcome } from "../acceptor.ts";
import type { HostAddress } from "../address.ts";
import { processId } from "../identity.ts";
import type { PoolCore } from "../memory/core.ts";
import type { ConnectSettings } from "../transport.ts";
import { CmId, type ConnectRequest } from "../verbs/cm_id.ts";
import { formatAddress } from "../verbs/socket_address.ts";
import { Endpoint, READ_DEPTH } from "./endpoint.ts";
import { decodeHello, encodeHello, type Hello } from "./hello.ts";
import { RdmaTransport } from "./transport.ts";

// The local acknowledgement timeout is 4.096 us x 2^16, about 0.27 s (devices may wait up to four times as
// long), and six retries: a peer that is gone is noticed after some 2 s. Not seven, which soft-RoCE takes for
// ever, as is right only for the other number: a receiver that is behind is waited for.
const ACK_TIMEOUT = 16;
const PARAMETERS = {
  responderResources: READ_DEPTH,
  initiatorDepth: READ_DEPTH,
  retryCount: 6,
  rnrRetryCount: 7,
};
const BACKLOG = 128;

// What we say of ourselves.
function own(core: PoolCore, endpoint: Endpoint): Uint8Array {
  const hello: Hello = {
    base: core.device,
    rkey: endpoint.device.mr.rkey,
    frames: core.frames,
    pageSize: core.pageSize,
    thread: core.helper.moat_thread_id(),
    process: processId(),
  };
  return encodeHello(hello);
}

/** Connects to a listener. */
export async function connectRdma(
  core: PoolCore,
  to: HostAddress,
  settings: ConnectSettings,
): Promise<RdmaTransport> {
  if (to.host === "" || to.port === 0) {
    throw new MoatError("INVALID_ARGUMENT", `${to.text} is no address to connect to`, {
      hint: 'name a host and a port, for example "rdma://10.0.0.1:7471"',
    });
  }
  const { timeout, signal, raw } = settings, limits = { timeout, ...(signal ? { signal } : {}) };
  const id = CmId.create();
  let endpoint: Endpoint | undefined, transport: RdmaTransport | undefined;
  try {
    await id.resolveAddr(to.host, to.port, limits);
    id.setAckTimeout(ACK_TIMEOUT);
    await id.resolveRoute(limits);
    core.assertOpen();
    endpoint = new Endpoint(core, id, raw !== undefined);
    transport = new RdmaTransport(core, endpoint, to.text, raw);
    const privateData = raw ? undefined : own(core, endpoint);
    const answer = await id.connect({
      ...PARAMETERS,
      ...limits,
      ...(privateData ? { privateData } : {}),
    });
    transport.begin(raw ? undefined : decodeHello(answer, to.text, core.pageSize));
    return transport;
  } catch (error) {
    if (transport) await transport.giveUp();
    else if (endpoint) endpoint.close(0);
    else id.close();
    throw error;
  }
}

/** A listening id. */
export class RdmaListener extends Welcome<RdmaTransport> {
  readonly address: string;
  readonly #core: PoolCore;
  readonly #id: CmId;
  readonly #settings: ConnectSettings;

  /** Listens. */
  static async open(
    core: PoolCore,
    at: HostAddress,
    settings: ConnectSettings,
  ): Promise<RdmaListener> {
    const id = CmId.create();
    try {
      await id.listen(at.host, at.port, BACKLOG);
    } catch (error) {
      id.close();
      throw error;
    }
    return new RdmaListener(core, id, at, settings);
  }

  private constructor(core: PoolCore, id: CmId, at: HostAddress, settings: ConnectSettings) {
    super();
    this.#core = core;
    this.#id = id;
    this.#settings = settings;
    const host = at.host.includes(":") ? `[${at.host}]` : at.host;
    this.address = `rdma://${host}:${id.localPort}`;
    id.onRequest = (request) => this.welcome(this.#accept(request));
  }

  async #accept(request: ConnectRequest): Promise<RdmaTransport | undefined> {
    const { id, privateData } = request, { raw, timeout } = this.#settings;
    const from = formatAddress({ host: id.peerAddress, port: id.peerPort });
    const peer = `${this.address} (from ${from})`;
    let hello: Hello | undefined;
    if (!raw) {
      try {
        this.#core.assertOpen();
        hello = decodeHello(privateData, peer, this.#core.pageSize);
      } catch (error) {
        id.reject(new TextEncoder().encode((error as Error).message.slice(0, 140)));
        id.close();
        return undefined;
      }
    }
    const endpoint = new Endpoint(this.#core, id, raw !== undefined);
    let transport: RdmaTransport | undefined;
    try {
      id.setAckTimeout(ACK_TIMEOUT);
      transport = new RdmaTransport(this.#core, endpoint, peer, raw);
      await id.accept({
        ...PARAMETERS,
        responderResources: Math.min(READ_DEPTH, request.responderResources),
        initiatorDepth: Math.min(READ_DEPTH, request.initiatorDepth),
        timeout,
        ...(raw ? {} : { privateData: own(this.#core, endpoint) }),
      });
      transport.begin(hello);
      return transport;
    } catch (error) {
      if (transport) await transport.giveUp();
      else endpoint.close(0);
      throw error;
    }
  }

  protected shut(): void {
    this.#id.close();
  }
}
