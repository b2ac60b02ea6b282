/**
 * A page in headless Chromium, driven by the DevTools protocol.
 *
 * @module
 */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";

interface Message {
  id?: number;
  sessionId?: string;
  method?: string;
  params?: Record<string, unknown>;
  result?: Record<string, unknown>;
  error?: { message: string };
}

/** What a page did that one may want to know. */
export interface Seen {
  /** Exceptions, errors and warnings of the console, and of what the page may not do. */
  problems: string[];
  /** Addresses asked for. */
  requests: string[];
}

/** A page in a browser of its own. */
export class Chromium {
  readonly seen: Seen = { problems: [], requests: [] };
  readonly #child: ChildProcess;
  readonly #profile: string;
  readonly #socket: WebSocket;
  readonly #waiting = new Map<number, (message: Message) => void>();
  readonly #listeners = new Set<(message: Message) => void>();
  #session = "";
  #ids = 0;

  private constructor(child: ChildProcess, profile: string, socket: WebSocket) {
    this.#child = child;
    this.#profile = profile;
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => this.#hear(JSON.parse(String(data))));
  }

  /** Starts the browser. */
  static async start(): Promise<Chromium> {
    const profile = mkdtempSync(join(tmpdir(), "moat-chromium-"));
    const child = spawn("chromium", [
      ...["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
      ...["--no-first-run", "--disable-background-networking", "--disable-component-update"],
      ...["--disable-extensions", "--disable-sync", "--hide-scrollbars", "--mute-audio"],
      ...["--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank"],
    ], { stdio: ["ignore", "ignore", "pipe"], detached: true });
    try {
      const socket = new WebSocket(await address(child));
      await new Promise((resolve, reject) => {
        socket.addEventListener("open", resolve);
        socket.addEventListener("error", () => reject(new Error("chromium does not answer")));
      });
      const browser = new Chromium(child, profile, socket);
      await browser.#attach();
      return browser;
    } catch (error) {
      await end(child, profile);
      throw error;
    }
  }

  async #attach(): Promise<void> {
    const { targetInfos } = await this.send("Target.getTargets") as {
      targetInfos: { targetId: string; type: string }[];
    };
    const { targetId } = targetInfos.find(({ type }) => type === "page")!;
    const attached = await this.send("Target.attachToTarget", { targetId, flatten: true });
    this.#session = attached["sessionId"] as string;
    this.#listeners.add((message) => this.#watch(message));
    for (const domain of ["Page", "Runtime", "Log", "Network"]) await this.send(`${domain}.enable`);
  }

  #hear(message: Message): void {
    if (message.id !== undefined) this.#waiting.get(message.id)?.(message);
    else for (const listener of this.#listeners) listener(message);
  }

  #watch({ method, params }: Message): void {
    const { problems, requests } = this.seen;
    if (method === "Runtime.exceptionThrown") problems.push(JSON.stringify(params));
    if (method === "Runtime.consoleAPICalled" && params!["type"] !== "log") {
      problems.push(JSON.stringify(params!["args"]));
    }
    if (method === "Log.entryAdded") problems.push(JSON.stringify(params!["entry"]));
    if (method === "Page.javascriptDialogOpening") problems.push(`dialog: ${params!["message"]}`);
    if (method === "Network.requestWillBeSent") {
      requests.push((params!["request"] as { url: string }).url);
    }
  }

  /** A command of the protocol. */
  async send(method: string, params: object = {}): Promise<Record<string, unknown>> {
    const id = ++this.#ids;
    const session = this.#session === "" ? {} : { sessionId: this.#session };
    const { error, result } = await new Promise<Message>((resolve) => {
      this.#waiting.set(id, resolve);
      this.#socket.send(JSON.stringify({ id, method, params, ...session }));
    });
    this.#waiting.delete(id);
    if (error) throw new Error(`${method}: ${error.message}`);
    return result!;
  }

  /** Shows a page: how wide, on a light or a dark screen. Returns when it has been loaded and drawn. */
  async open(url: string, width: number, scheme: "light" | "dark" = "light"): Promise<void> {
    this.seen.problems.length = this.seen.requests.length = 0;
    await this.show(width, scheme);
    const loaded = new Promise<void>((resolve) => {
      const listener = ({ method }: Message): void => {
        if (method !== "Page.loadEventFired") return;
        this.#listeners.delete(listener);
        resolve();
      };
      this.#listeners.add(listener);
    });
    await this.send("Page.navigate", { url });
    await loaded;
    await this.drawn();
  }

  /** Changes the screen. */
  async show(width: number, scheme: "light" | "dark"): Promise<void> {
    const mobile = width < 600;
    const metrics = { width, height: 900, deviceScaleFactor: 1, mobile };
    await this.send("Emulation.setDeviceMetricsOverride", metrics);
    const features = [{ name: "prefers-color-scheme", value: scheme }];
    await this.send("Emulation.setEmulatedMedia", { features });
    await this.drawn();
  }

  /** Two frames from now, what was changed has been laid out, observed and drawn. */
  async drawn(): Promise<void> {
    await this.evaluate(
      "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))",
    );
  }

  /** The value of an expression (or of the promise that it is) in the page. */
  async evaluate<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", {
      ...{ expression, awaitPromise: true, returnByValue: true },
    }) as { result: { value: T }; exceptionDetails?: unknown };
    if (exceptionDetails !== undefined) throw new Error(JSON.stringify(exceptionDetails));
    return result.value;
  }

  /** Ends the browser; nothing is left of it. */
  async close(): Promise<void> {
    this.#socket.close();
    await end(this.#child, this.#profile);
  }
}

function address(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = "";
    child.stderr!.on("data", (piece) => {
      text += piece;
      const url = /DevTools listening on (ws:\S+)/.exec(text)?.[1];
      if (url) resolve(url);
    });
    child.on("error", reject);
    child.on("close", () => reject(new Error(`chromium ended instead of listening:\n${text}`)));
  });
}

async function end(child: ChildProcess, profile: string): Promise<void> {
  const gone = new Promise((resolve) => child.on("close", resolve));
  if (child.pid !== undefined && child.exitCode === null && child.signalCode === null) {
    process.kill(-child.pid, "SIGKILL"); // with its processes
    await gone;
  }
  rmSync(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
}
