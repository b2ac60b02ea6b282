/**
 * A key-value store on another host that is read without its processor: GET is an RDMA READ of the server's
 * table, and only PUT is a message.
 *
 *     deno run -A examples/key_value.ts
 *     bun examples/key_value.ts
 *
 * Like that it is a server and its clients, in two processes, and shows what that means: values are changed
 * while they are read, the server is stopped (SIGSTOP) and goes on being read. Without an RDMA device:
 *
 *     deno task vm -- deno run -A examples/key_value.ts
 *
 * On two hosts:
 *
 *     examples/key_value.ts serve --port 7475
 *     examples/key_value.ts put greeting hello --address 10.0.0.1 --port 7475
 *     examples/key_value.ts get greeting --address 10.0.0.1 --port 7475
 *
 * What is read may be in the middle of a change: how that is noticed is in verbs/key_value_table.ts.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { MoatError } from "../mod.ts";
import { openDevice } from "../lib/verbs/mod.ts";
import { again, number, oneOf, run, size, turn, UsageError } from "./support/program.ts";
import { Client } from "./verbs/key_value_client.ts";
import { readUnchecked } from "./verbs/key_value_table.ts";
import { serve } from "./verbs/key_value_server.ts";

const HELP = `
key_value.ts [OPTIONS]                  a server and its clients, in two processes
key_value.ts serve [OPTIONS]            a server, until SIGTERM or SIGINT
key_value.ts put KEY VALUE [OPTIONS]    stores a value
key_value.ts get KEY [OPTIONS]          prints a value; status 1 if there is none

    --address HOST   of the server (to serve: every address; else that of this host's first device)
    --port N         of the server (7475)
    --slots N        of the table (256)
    --slot BYTES     of a slot: a key and its value have 16 less; k and m stand for KiB and MiB (16k)
    --pause MS       the server pauses in the middle of each PUT, for readers to see it half done (0)
    --keys N         how many the clients use (20)
    --puts N         changes of one key while it is read (50)

It needs an RDMA device. Without one: deno task vm -- deno run -A examples/key_value.ts
`;

const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

await run("key_value", HELP, async () => {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      address: { type: "string" },
      port: { type: "string", default: "7475" },
      slots: { type: "string", default: "256" },
      slot: { type: "string", default: "16k" },
      pause: { type: "string", default: "0" },
      keys: { type: "string", default: "20" },
      puts: { type: "string", default: "50" },
    },
  });
  const port = number("--port", values.port, 1, 65535);
  const slots = number("--slots", values.slots, 1, 1 << 20);
  const slotBytes = size("--slot", values.slot, 64, 1 << 24);
  const pause = number("--pause", values.pause, 0, 1000);
  const keys = number("--keys", values.keys, 1, slots / 2);
  const puts = number("--puts", values.puts, 1, 1e6);
  const [mode, ...words] = positionals;
  const takes = { serve: 0, put: 2, get: 1 };
  if (mode !== undefined) {
    const takesWords = takes[oneOf("the mode", mode, ["serve", "put", "get"])];
    if (words.length !== takesWords) {
      throw new UsageError(`${mode} takes ${takesWords} argument(s), not ${words.length}`);
    }
  }
  try {
    if (mode === "serve") {
      return await serve({ host: values.address ?? "", port, slots, slotBytes, pause });
    }
    const host = values.address ?? deviceAddress();
    if (mode === undefined) {
      return await show({ host, port, slotBytes, keys, puts }, () => {
        const options = { port, slots, slot: slotBytes, pause };
        return again(import.meta.url, [
          ...["serve", "--address", host],
          ...Object.entries(options).flatMap(([name, value]) => [`--${name}`, `${value}`]),
        ]);
      });
    }
    using client = await Client.connect(host, port);
    if (mode === "put") return await client.put(bytesOf(words[0]!), bytesOf(words[1]!));
    const value = await client.get(bytesOf(words[0]!));
    if (!value) throw new Error(`there is no key ${JSON.stringify(words[0])}`);
    console.log(new TextDecoder().decode(value));
  } catch (error) {
    const none = ["NO_DEVICE", "LIBRARY_NOT_FOUND"];
    if (!(error instanceof MoatError && none.includes(error.code))) throw error;
    throw new Error(
      `${error.message}\nThis example needs an RDMA device. A machine with one, emulated: ` +
        "deno task vm -- deno run -A examples/key_value.ts",
    );
  }
});

/** The address of the first RDMA device of this host. */
function deviceAddress(): string {
  using device = openDevice();
  const gid = device.preferredGid()?.gid;
  if (gid === undefined) {
    throw new MoatError("NO_DEVICE", `${device.deviceName} has no address: name one by --address`);
  }
  return gid.startsWith("::ffff:") ? gid.slice(7) : gid;
}

interface Show {
  host: string;
  port: number;
  slotBytes: number;
  keys: number;
  puts: number;
}

/** A server and clients: what GETs return while values change, and while the server stands still. */
async function show(options: Show, startServer: () => ReturnType<typeof again>): Promise<void> {
  const { host, port, keys, puts } = options;
  const server = startServer();
  const early = server.done.then(() => {
    throw new Error("the server has ended");
  });
  using writer = await Promise.race([patiently(options), early]);
  using reader = await Client.connect(host, port);

  // The value of a key is one number in all of its bytes, so that one sees whether it is whole.
  const length = options.slotBytes - 64, expected = new Map<string, number>();
  const put = async (key: string, number: number): Promise<void> => {
    await writer.put(bytesOf(key), new Uint8Array(length).fill(number));
    expected.set(key, number);
  };
  let gets = 0;
  const get = async (key: string): Promise<number> => {
    const value = await reader.get(bytesOf(key));
    gets++;
    if (value?.length !== length) {
      throw new Error(`GET ${key}: ${value?.length} bytes of ${length}`);
    }
    if (value.some((byte) => byte !== value[0])) {
      throw new Error(`GET ${key} returned a torn value, parts of two PUTs`);
    }
    return value[0]!;
  };
  const getAll = async (): Promise<void> => {
    for (const [key, number] of expected) {
      const found = await get(key);
      if (found !== number) throw new Error(`GET ${key}: ${found}, and not ${number}`);
    }
  };

  for (let i = 0; i < keys; i++) await put(`key ${i}`, i % 256);
  await getAll();
  if (await reader.get(bytesOf("no such key")) !== undefined) throw new Error("a key that is none");
  console.log(`${keys} keys put and got, ${length} bytes each`);

  const before = gets, start = performance.now();
  let changing = true, newest = 0, mixed = 0;
  // What would have been returned by somebody who does not look at version and checksum.
  reader.onTorn = (slot) => {
    const found = readUnchecked(slot);
    if (typeof found === "object" && found.value.some((byte) => byte !== found.value[0])) mixed++;
  };
  const changes = (async () => {
    for (let i = 1; i <= puts; i++) await put("key 0", i % 256);
  })().finally(() => changing = false);
  const looks = (async () => {
    while (changing) {
      const got = await get("key 0");
      // Numbers count up, modulo 256; an older one than before would be a step back.
      if ((got - newest + 256) % 256 > 128) {
        throw new Error(`GET went back from ${newest} to ${got}`);
      }
      newest = got;
      await turn();
    }
  })();
  await Promise.all([changes, looks]);
  const seconds = (performance.now() - start) / 1000, during = gets - before;
  console.log(
    `${during} GETs of one key during ${puts} PUTs to it, ${
      (during / seconds).toFixed(0)
    } a second: ` +
      `each whole; ${reader.torn} of ${reader.reads} reads were torn, and done again; ` +
      `${mixed} of those had parts of two values`,
  );

  server.kill("SIGSTOP");
  await stopped(server.pid);
  const atStop = gets;
  await getAll();
  console.log(`${gets - atStop} GETs while the server's process was stopped`);
  let answered = false;
  const late = put("key 0", 99).then(() => answered = true);
  await sleep(100);
  if (answered) throw new Error("a stopped server has answered a PUT: then it was not stopped");
  server.kill("SIGCONT");
  await late;
  await getAll();
  console.log(`the PUT that was sent to it then was answered when it went on`);
  console.log(`${gets} GETs and ${keys + puts + 1} PUTs in all`);
  server.kill("SIGTERM");
  await server.done;
}

/** Connects to a server that is about to listen. */
async function patiently({ host, port }: Show): Promise<Client> {
  for (const end = performance.now() + 30_000;;) {
    try {
      return await Client.connect(host, port);
    } catch (error) {
      const yet = error instanceof MoatError && error.code === "CONNECTION_REFUSED";
      if (!yet || performance.now() > end) throw error;
      await sleep(200);
    }
  }
}

async function stopped(pid: number): Promise<void> {
  while (!/^State:\s*T/m.test(readFileSync(`/proc/${pid}/status`, "utf8"))) await sleep(1);
}
