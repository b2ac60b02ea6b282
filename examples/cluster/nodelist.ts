/**
 * Slurm's lists of hosts, as in SLURM_JOB_NODELIST: `node[01-04,07],login1`.
 *
 * @module
 */

/**
 * The hosts of a list, in its order, as `scontrol show hostnames` prints them.
 *
 * @throws {Error} if it is not such a list
 */
export function expandNodeList(list: string): string[] {
  const hosts = list === "" ? [] : splitOutside(list).flatMap(expandOne);
  if (hosts.length === 0 || hosts.some((host) => host === "")) throw malformed(list);
  return hosts;
}

function malformed(list: string): Error {
  return new Error(
    `${JSON.stringify(list)} is not a list of hosts such as "node[01-04,07],login1"`,
  );
}

/** Splits at the commas that are not in brackets. */
function splitOutside(list: string): string[] {
  const parts = [""];
  let depth = 0;
  for (const character of list) {
    if (character === "[") depth++;
    if (character === "]") depth--;
    if (depth < 0 || depth > 1) throw malformed(list);
    if (character === "," && depth === 0) parts.push("");
    else parts[parts.length - 1] += character;
  }
  if (depth !== 0) throw malformed(list);
  return parts;
}

/** Expands the first brackets of a name, and then what is behind them: there may be several. */
function expandOne(name: string): string[] {
  const match = /^([^[\]]*)\[([^[\]]*)\](.*)$/.exec(name);
  if (!match) return [name];
  const [, before, ranges, after] = match as unknown as [string, string, string, string];
  const rests = expandOne(after);
  return ranges.split(",").flatMap((range) => numbers(range, name))
    .flatMap((number) => rests.map((rest) => `${before}${number}${rest}`));
}

/** `01-04` or `07`, with the zeros that are in front. */
function numbers(range: string, name: string): string[] {
  const [, first, last] = /^(\d+)(?:-(\d+))?$/.exec(range) ?? [];
  const from = Number(first), to = Number(last ?? first);
  if (first === undefined || to < from || to - from >= 1 << 20) throw malformed(name);
  return Array.from(
    { length: to - from + 1 },
    (_, i) => String(from + i).padStart(first.length, "0"),
  );
}
