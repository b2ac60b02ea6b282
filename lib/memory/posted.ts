/**
 * The call that started an operation: where in the program it was.
 *
 * @module
 */

/** What V8 and JavaScriptCore tell of a frame of the stack. */
interface CallSite {
  getScriptNameOrSourceURL(): string | null | undefined;
  getFileName(): string | null | undefined;
  getLineNumber(): number | null;
  getColumnNumber(): number | null;
  getFunctionName(): string | null;
  isAsync?(): boolean;
}

/** A frame of the stack. */
interface Frame {
  /** A path or URL: of the source, if the library itself is in a bundle. */
  readonly file: string;
  /** `file:line:column`. */
  readonly place: string;
  /** What it is called. */
  readonly name: string;
}

// Frames that are kept: those of the library, of which a stream's write has nine, and some of the program.
const DEPTH = 16;
const HERE = "lib/memory/posted.ts";
// A path or URL: native functions and initializers have "native", "unknown" or nothing. And files of the runtime.
const FILE = /^(\/|[a-z][\w+.-]*:)/;
const RUNTIME = /^(ext:|node:|bun:|internal:)/;

/**
 * The stack of a call. Taking it costs a microsecond or a few; what it says is found out when somebody asks,
 * and that costs ten times as much.
 */
export class Posted {
  readonly #error: Error = captured();
  #frames: Frame[] | undefined;
  #stack: string | undefined;
  #line: string | undefined;

  /** The stack from the program's call of the library on, as lines that begin with `at`; or all, if it is not there. */
  get stack(): string {
    if (this.#stack === undefined) {
      const program = this.#program(),
        frames = program.length > 0 ? program : framesOf(this.#error);
      this.#stack = frames.map(({ name, place }) =>
        name ? `    at ${name} (${place})` : `    at ${place}`
      ).join("\n");
    }
    return this.#stack;
  }

  /** The program's line, as `file:line:column`; the runtime's if it was called from there; empty if there is none. */
  get line(): string {
    if (this.#line === undefined) {
      const frames = this.#program();
      const frame = frames.find(({ file }) => FILE.test(file) && !RUNTIME.test(file));
      this.#line = (frame ?? frames[0])?.place ?? "";
    }
    return this.#line;
  }

  // The frames behind those of the library.
  #program(): Frame[] {
    if (this.#frames) return this.#frames;
    const root = library(), frames = framesOf(this.#error);
    const first = frames.findIndex(({ file }) => FILE.test(file) && !file.startsWith(root));
    return this.#frames = first < 0 ? [] : frames.slice(first);
  }
}

function captured(): Error {
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = DEPTH;
  const error = new Error();
  Error.stackTraceLimit = stackTraceLimit;
  return error;
}

let root: string | undefined;
// What the runtime loaded is told ten times faster than what that was made of, which matters for a bundle only.
let asLoaded = true;

// What the paths of the library's files begin with, in the notation of the runtime's stacks. In a bundle without a
// source map they are all one file.
function library(): string {
  if (root !== undefined) return root;
  let here = "";
  for (asLoaded of [true, false]) {
    here = framesOf(captured())[0]?.file ?? "";
    if (here.endsWith(HERE)) return root = here.slice(0, -HERE.length) + "lib/";
  }
  return root = here;
}

// The frames themselves: to have the text made, with the positions of the source, takes Deno six times as long. Bun
// has made the text already if it has collected garbage since.
function framesOf(error: Error): Frame[] {
  const before = Error.prepareStackTrace;
  Error.prepareStackTrace = (_, sites): unknown => sites;
  try {
    const stack = error.stack as unknown;
    if (Array.isArray(stack)) return stack.map(frameOfSite);
    return String(stack).split("\n").flatMap(frameOfLine);
  } finally {
    Error.prepareStackTrace = before;
  }
}

// Everything is asked for when it is needed: that is what costs.
function frameOfSite(site: CallSite): Frame {
  return {
    get file(): string {
      return (asLoaded ? site.getScriptNameOrSourceURL() : site.getFileName()) ?? "";
    },
    get place(): string {
      return `${site.getFileName() ?? "native"}:${site.getLineNumber()}:${site.getColumnNumber()}`;
    },
    get name(): string {
      const name = site.getFunctionName() ?? "";
      return name && site.isAsync?.() ? `async ${name}` : name;
    },
  };
}

function frameOfLine(line: string): Frame[] {
  const [, name, bare, file, at] =
    line.match(/^\s+at (?:(.+?) \((?=.*\)$)|(async )?)(.*?)(:\d+:\d+)\)?$/) ??
      [];
  if (file === undefined) return [];
  return [{ file, place: file + at, name: name && name !== "<anonymous>" ? name : bare ?? "" }];
}
