/**
 * The sections of the report: what each shows, and the charts it makes of the results.
 *
 * @module
 */
import type { Result } from "../../bench/results.ts";
import { sizeName } from "../../bench/stats.ts";
import { type Chart, chart, groupBy, runtimeName } from "./chart.ts";

/** A section of the report. */
export interface Section {
  /** Also the name of the part of the benchmarks. */
  part: string;
  title: string;
  /** What is shown, and how to read it. */
  text: string;
  /** The charts, of the results of the part. */
  charts(results: readonly Result[]): (Chart | undefined)[];
}

const TOUCHED: Record<string, string> = {
  untouched: "Left alone",
  byte: "One byte rewritten",
  rewritten: "All of it rewritten",
  touched: "Written and read",
};

function touchedName({ at }: Result): string {
  return TOUCHED[String(at["touched"])] ?? String(at["touched"] ?? "");
}

function transport({ at }: Result): string {
  return at["transport"] === undefined ? "" : `${at["transport"]}://`;
}

function joined(...words: string[]): string {
  return words.filter((word) => word !== "").join(", ");
}

const BYTES = { label: "size of a message", scale: "bytes" } as const;

function guards(results: readonly Result[]): (Chart | undefined)[] {
  const setting = ({ runtime, at }: Result): string => {
    const holding = Number(at["holding"] ?? 0);
    const when = holding > 0 ? `when ${holding} others have come` : "at once";
    return joined(runtimeName(runtime), `the receiver releases a message ${when}`);
  };
  return groupBy(results, setting).map(([name, group]) => {
    // What a message costs that is copied, in the same place: a copy does not mind what becomes of the buffer.
    const copied = new Map<string, number>();
    for (const { series, at, value } of group) {
      if (series !== "copy") continue;
      copied.set(`${at["bytes"]} ${at["touched"]}`, value);
      if (at["touched"] === "untouched") copied.set(`${at["bytes"]}`, value);
    }
    const copyOf = ({ at }: Result): number | undefined =>
      copied.get(`${at["bytes"]} ${at["touched"]}`) ?? copied.get(`${at["bytes"]}`);
    return chart(group.filter((result) => copyOf(result) !== undefined), {
      title: name,
      kind: "lines",
      along: "bytes",
      x: BYTES,
      y: { label: "time of a message, as a multiple of a copied one", scale: "log" },
      panel: touchedName,
      series: ({ series }) => series,
      value: (result) => result.value / copyOf(result)!,
      reference: { value: 1, label: "as long as a copy" },
    });
  });
}

/** How far apart figures are drawn: those that differ by more than ten times cannot be read off a linear axis. */
function spread(results: readonly Result[]): "linear" | "log" {
  const all = results.map(({ value }) => value);
  const least = Math.min(...all);
  return least > 0 && Math.max(...all) > 10 * least ? "log" : "linear";
}

function throughput(results: readonly Result[]): (Chart | undefined)[] {
  return groupBy(results, transport).map(([name, group]) => {
    const sizes = new Set(group.map(({ at }) => at["bytes"]));
    return chart(group, {
      title: sizes.size === 1
        ? joined(name, `messages of ${sizeName(Number([...sizes][0]))}`)
        : name,
      kind: sizes.size === 1 ? "bars" : "lines",
      ...(sizes.size === 1 ? {} : { along: "bytes", x: BYTES }),
      y: { label: "GB/s", scale: sizes.size === 1 ? "linear" : spread(group) },
      panel: touchedName,
    });
  });
}

const ENDS: Record<string, string> = {
  await: "awaited",
  touch: "touched",
  stream: "a stream of them",
};

function overlap(results: readonly Result[]): (Chart | undefined)[] {
  return groupBy(results, transport).map(([name, group]) =>
    chart(group, {
      title: name,
      kind: "lines",
      along: "bytes",
      x: BYTES,
      y: { label: "share of the transfer that is hidden", scale: "linear" },
      panel: ({ at }) => {
        const side = String(at["side"] ?? ""), end = String(at["end"] ?? "");
        return joined(side.charAt(0).toUpperCase() + side.slice(1), ENDS[end] ?? end);
      },
    })
  );
}

function memory(results: readonly Result[]): (Chart | undefined)[] {
  const shown = ["beyond its ring", "ring"];
  return groupBy(results, ({ at }) => String(at["connections"])).map(([count, group]) =>
    chart(group.filter(({ at }) => shown.includes(String(at["what"]))), {
      title: `${Number(count).toLocaleString("en")} connections`,
      kind: "bars",
      y: { label: group[0]!.unit, scale: "linear" },
      panel: (result) => joined(transport(result), String(result.at["side"] ?? "")),
      series: ({ runtime }) => runtimeName(runtime),
      row: ({ at, runtime }) => joined(String(at["what"]), runtimeName(runtime)),
      all: group,
    })
  );
}

/** A row for every series, a panel for every transport and size. */
function rows(
  results: readonly Result[],
  kind: "bars" | "ranges",
  scale: "linear" | "log",
): (Chart | undefined)[] {
  return groupBy(results, ({ unit }) => unit).map(([unit, group]) =>
    chart(group, {
      title: "",
      kind,
      y: { label: unit, scale },
      panel: ({ at, ...result }) =>
        joined(
          transport({ at, ...result }),
          ...(typeof at["bytes"] === "number" ? [sizeName(at["bytes"])] : []),
        ),
    })
  );
}

/** All sections, in their order. */
export const sections: readonly Section[] = [
  {
    part: "guards",
    title: "Where a guard costs less than a copy",
    text:
      "A message is sent and its buffer then left alone, touched, or rewritten at once. Each line is a guard, and its " +
      "height is the time of a message divided by that of the same message copied before it is sent: below 1, " +
      "guarding costs less than copying. “none” protects nothing and is what integrity is compared with. " +
      "“auto” is the default and should follow the lowest of the safe ones.",
    charts: guards,
  },
  {
    part: "throughput",
    title: "Throughput by transport",
    text:
      "Two processes, one sending as fast as the other takes. “Left alone” means that neither looks at the data, which " +
      "is what the peers measure; “written and read” that the sender writes every byte and the receiver reads every byte.",
    charts: throughput,
  },
  {
    part: "latency",
    title: "Latency",
    text:
      "Half a round trip. The thick bar holds the middle half of the samples, the upright line is the median, the thin line " +
      "goes from the fastest to 99 in 100, and the dot is 999 in 1,000. The slowest are in the table. A peer that tells " +
      "no distribution is a single mark. A receiver sleeps until it is woken, or spins: looks for a message for some time first.",
    charts: (results) => rows(results, "ranges", "log"),
  },
  {
    part: "rate",
    title: "Message rate",
    text: "Small messages a second, one sender and one receiver.",
    charts: (results) => rows(results, "bars", "linear"),
  },
  {
    part: "overlap",
    title: "Overlap of computation and communication",
    text:
      "A program begins a transfer, computes for as long as the transfer alone takes, and then asks for its end. The " +
      "share of the transfer that the computation hides: at 100\u00a0% both together take no longer than one of them. “Awaited” asks by the " +
      "operation’s promise, “touched” by touching the buffer, in code that waits nowhere; in a stream it computes before " +
      "each of many messages, and asks only after the last.",
    charts: overlap,
  },
  {
    part: "inflight",
    title: "Operations in flight",
    text:
      "What one operation costs, from its call to its promise, while so many others are not completed. A flat line means " +
      "that bookkeeping does not grow with what is outstanding.",
    charts: (results) => [
      chart(results, {
        title: "",
        kind: "lines",
        along: "inFlight",
        x: { label: "operations in flight", scale: "log" },
        y: { label: results[0]!.unit, scale: spread(results) },
        panel: (result) =>
          joined(
            transport(result),
            `${result.at["operation"] ?? "operation"}() of ${sizeName(Number(result.at["bytes"]))}`,
          ),
      }),
    ],
  },
  {
    part: "memory",
    title: "Memory of a connection",
    text:
      "What an idle connection takes of each of its two processes: the ring it shares with its peer, and everything else. " +
      "What that consists of is in the table.",
    charts: memory,
  },
  {
    part: "ffi",
    title: "The cost of calling C",
    text:
      "What a call costs before a device has anything to do, and what the steps of a guard cost.",
    charts: (results) => [
      chart(results, {
        title: "",
        kind: "dots",
        y: { label: results[0]!.unit, scale: "log" },
        panel: ({ at }) => String(at["group"] ?? ""),
        series: ({ runtime }) => runtimeName(runtime),
        row: ({ series }) => series,
      }),
    ],
  },
  {
    part: "interop",
    title: "Copies in the network and in file I/O",
    text:
      "A file server and its client. Copies can be avoided in the network, in file I/O, in both, or in neither: the " +
      "four ways of Brustoloni’s “Interoperation of copy avoidance in network and file I/O” (INFOCOM 1999), which found the greatest " +
      "benefit in avoiding both.",
    charts: () => [],
  },
  {
    part: "rdma",
    title: "RDMA",
    text:
      "rdma:// between two processes, against perftest, rdma-core’s own benchmarks, on the same device. Where the device is " +
      "soft-RoCE in an emulated machine (the methods say so), only how the two compare means anything.",
    charts: (results) =>
      groupBy(results, ({ unit, at }) => `${at["what"] ?? ""} ${unit}`).map(([, group]) => {
        const lines = new Set(group.map(({ at }) => at["bytes"])).size > 1;
        return chart(group, {
          title: String(group[0]!.at["what"] ?? ""),
          kind: lines ? "lines" : "bars",
          ...(lines ? { along: "bytes", x: BYTES } : {}),
          y: {
            label: group[0]!.unit,
            scale: lines && group[0]!.unit !== "GB/s" ? "log" : "linear",
          },
          panel: touchedName,
        });
      }),
  },
];

/** The charts of a section; the ones without results are left out. */
export function chartsOf({ charts, part }: Section, results: readonly Result[]): Chart[] {
  const own = results.filter((result) => result.part === part);
  const found = own.length === 0 ? [] : charts(own).filter((each) => each !== undefined);
  return found.map((each, i) => ({ ...each, id: `${part}-${i + 1}` }));
}
