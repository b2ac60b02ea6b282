/**
 * The page's program and the library that draws its charts, as one script.
 *
 * @module
 */
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** A script for a page. */
export interface Bundle {
  /** Safe inside a `<script>` element. */
  script: string;
  /** The licences of what is in it. */
  licences: string;
}

const ENTRY = fileURLToPath(new URL("browser/main.ts", import.meta.url));

/** Bundles the page's program. What it needs from npm is fetched the first time. */
export async function bundle(): Promise<Bundle> {
  const script = await deno("bundle", "--quiet", "--platform=browser", "--minify", ENTRY);
  return {
    // In strings and expressions, `\x3c` is what `<` was; nothing else has these two.
    script: script.replace(/<(?=\/script|!--)/gi, "\\x3c"),
    licences: licences(JSON.parse(await deno("info", "--json", ENTRY))),
  };
}

async function deno(...args: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args,
    stdin: "null",
    env: { NO_COLOR: "1" },
  }).output();
  const decoder = new TextDecoder();
  if (!success) {
    throw new Error(
      `deno ${
        args[0]
      } could not make the page's script (it needs the npm registry the first time):\n` +
        decoder.decode(stderr).trim(),
    );
  }
  return decoder.decode(stdout);
}

interface NpmPackage {
  name: string;
  version: string;
  localPath?: string;
}

/** Each licence once, below the packages that have it. */
function licences({ npmPackages }: { npmPackages: Record<string, NpmPackage> }): string {
  const texts = new Map<string, string[]>();
  for (const { name, version, localPath } of Object.values(npmPackages)) {
    const file = localPath === undefined
      ? undefined
      : readdirSync(localPath).find((each) => /^licen[cs]e/i.test(each));
    const text = file === undefined
      ? `(${JSON.parse(readFileSync(`${localPath}/package.json`, "utf8")).license})`
      : readFileSync(`${localPath}/${file}`, "utf8").trim();
    texts.set(text, [...texts.get(text) ?? [], `${name} ${version}`]);
  }
  return [...texts].map(([text, names]) => `${names.join(", ")}:\n\n${text}`).join("\n\n\n");
}
