/**
 * Waiting for a descriptor while a connection is being made.
 *
 * @module
 */
import { MoatError } from "../ffi/errors.ts";
import { reactor, type Source } from "./reactor.ts";
import type { ConnectSettings } from "./transport.ts";

/**
 * Calls `look` whenever the descriptor may have something new, until it returns something.
 *
 * @param late what did not come in time, for the error
 * @throws {MoatError} `TIMED_OUT`; what `look` throws; or `signal.reason`
 */
export function untilReady<T>(
  fd: number,
  look: () => T | undefined,
  late: string,
  settings: ConnectSettings,
): Promise<T> {
  const { timeout, signal } = settings, loop = reactor();
  return new Promise((resolve, reject) => {
    const finish = (tell: () => void): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      loop.remove(source, fd);
      tell();
    };
    const source: Source = {
      poll: () => {
        try {
          const found = look();
          if (found === undefined) return false;
          finish(() => resolve(found));
        } catch (error) {
          finish(() => reject(error));
        }
        return true;
      },
      arm: () => source.poll(),
    };
    const abort = (): void => finish(() => reject(signal?.reason));
    const timer = setTimeout(() =>
      finish(() =>
        reject(
          new MoatError("TIMED_OUT", `${late} within ${timeout} ms`, {
            hint: "the other side is busy, or does not accept connections",
          }),
        )
      ), timeout);
    signal?.addEventListener("abort", abort, { once: true });
    loop.add(source, fd, -1);
    if (signal?.aborted) abort();
  });
}
