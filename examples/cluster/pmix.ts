/**
 * The key-value store of a launcher that speaks PMIx, as Open MPI's mpirun does, through its library, which is
 * installed with it.
 *
 * Source: the PMIx standard, version 4: structures of pmix_common.h, chapters 4 and 5.
 *
 * @module
 */
import { cString, cText, openFirst } from "../../ffi/libc.ts";
import { type Functions, runtime, type Symbols } from "../../ffi/runtime.ts";

const symbols = {
  // pmix_status_t PMIx_Init(pmix_proc_t *proc, pmix_info_t info[], size_t ninfo);
  PMIx_Init: { parameters: ["buffer", "address", "size"], result: "i32" },
  // pmix_status_t PMIx_Put(pmix_scope_t scope, const pmix_key_t key, pmix_value_t *val);
  PMIx_Put: { parameters: ["u32", "buffer", "buffer"], result: "i32" },
  // pmix_status_t PMIx_Commit(void);
  PMIx_Commit: { parameters: [], result: "i32" },
  // pmix_status_t PMIx_Fence(const pmix_proc_t procs[], size_t nprocs, const pmix_info_t info[], size_t ninfo);
  PMIx_Fence: { parameters: ["address", "size", "address", "size"], result: "i32" },
  // pmix_status_t PMIx_Get(const pmix_proc_t *proc, const pmix_key_t key, const pmix_info_t info[], size_t ninfo,
  //                        pmix_value_t **val);
  PMIx_Get: { parameters: ["buffer", "buffer", "address", "size", "buffer"], result: "i32" },
  // pmix_status_t PMIx_Finalize(const pmix_info_t info[], size_t ninfo);
  PMIx_Finalize: { parameters: ["address", "size"], result: "i32" },
  // const char *PMIx_Error_string(pmix_status_t status);
  PMIx_Error_string: { parameters: ["i32"], result: "address" },
} as const satisfies Symbols;

/** pmix_proc_t: char nspace[256], and the rank. */
const PROC = { size: 260, rank: 256 };
/** pmix_key_t: char[512]. pmix_value_t: a type of 16 bits and a union; it is given room to spare. */
const KEY_BYTES = 512, VALUE = { size: 64, type: 0, data: 8 };
const PMIX_STRING = 3, PMIX_GLOBAL = 3;

/**
 * The process's side of PMIx. Every call blocks until the launcher has answered; a fence when all have called it.
 * The launcher ends all processes when one ends without {@linkcode close}.
 */
export class Pmix {
  /** Never: the launcher ends all processes when one has died. */
  readonly lost: Promise<never> = new Promise(() => {});
  readonly #pmix: Functions<typeof symbols>;
  readonly #proc = new Uint8Array(PROC.size);
  readonly #rank: number;
  readonly #size: number;
  #exchanges = 0;

  private constructor(pmix: Functions<typeof symbols>, rank: number, size: number) {
    this.#pmix = pmix;
    this.#rank = rank;
    this.#size = size;
    this.#check("PMIx_Init", pmix.PMIx_Init(this.#proc, 0, 0));
  }

  /** Finds the launcher. The library may be named by MOAT_PMIX; undefined if there is none. */
  static open(rank: number, size: number, path: string | undefined): Pmix | undefined {
    const what = path === undefined ? "PMIx" : "PMIx (MOAT_PMIX names it)";
    const hint = "it is installed with Open MPI: libpmix2 of Debian";
    let pmix: Functions<typeof symbols>;
    try {
      pmix = openFirst(what, [path ?? "libpmix.so.2"], symbols, hint);
    } catch (error) {
      if (path === undefined) return undefined;
      throw error;
    }
    return new Pmix(pmix, rank, size);
  }

  /** Gives a text to all, and returns those of all by their ranks. */
  exchange(own: string): Promise<string[]> {
    const pmix = this.#pmix, key = new Uint8Array(KEY_BYTES);
    key.set(cString(`moat-${this.#exchanges++}`));
    const text = cString(own), value = new DataView(new ArrayBuffer(VALUE.size));
    value.setUint16(VALUE.type, PMIX_STRING, true);
    value.setBigUint64(VALUE.data, BigInt(runtime().addressOf(text)), true);
    this.#check("PMIx_Put", pmix.PMIx_Put(PMIX_GLOBAL, key, new Uint8Array(value.buffer)));
    this.#check("PMIx_Commit", pmix.PMIx_Commit());
    this.#check("PMIx_Fence", pmix.PMIx_Fence(0, 0, 0, 0));
    const all = Array.from({ length: this.#size }, (_, rank) => {
      return rank === this.#rank ? own : this.#get(rank, key);
    });
    return Promise.resolve(all);
  }

  #get(rank: number, key: Uint8Array): string {
    const proc = this.#proc.slice(), out = new BigUint64Array(1);
    new DataView(proc.buffer).setUint32(PROC.rank, rank, true);
    const status = this.#pmix.PMIx_Get(proc, key, 0, 0, new Uint8Array(out.buffer));
    this.#check(`PMIx_Get from rank ${rank}`, status);
    const value = new DataView(runtime().viewOf(Number(out[0]), VALUE.data + 8));
    return cText(Number(value.getBigUint64(VALUE.data, true)));
  }

  /** Tells the launcher that this process needs it no more. */
  close(): Promise<void> {
    this.#check("PMIx_Finalize", this.#pmix.PMIx_Finalize(0, 0));
    return Promise.resolve();
  }

  #check(what: string, status: number): void {
    if (status === 0) return;
    const why = cText(this.#pmix.PMIx_Error_string(status));
    throw new Error(`${what}: ${why} (${status}): was it started by mpirun?`);
  }
}
