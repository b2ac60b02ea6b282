/**
 * Where the bytes of an operation lie in the device view.
 *
 * @module
 */
import { DESC, DESC_KIND, OP } from "../../ffi/layout.ts";
import { runtime } from "../../ffi/runtime.ts";
import type { PoolCore } from "./core.ts";

/** Neighbouring frames of an operation. */
export interface Run {
  readonly frame: number;
  readonly count: number;
}

/** The list of an operation's frames, in the order of its bytes. It has one until the device is done with it. */
export function runsOf({ helper, device, pageSize }: PoolCore, op: number): Run[] {
  const list: Run[] = [];
  const desc = viewAt(helper.moat_op_address(op) + OP.desc, DESC.size);
  const count = desc.getUint32(DESC.nruns, true);
  const add = (from: DataView, at: number): void => {
    list.push({ frame: from.getUint32(at, true), count: from.getUint32(at + 4, true) });
  };
  if (desc.getUint32(DESC.kind, true) !== DESC_KIND.table) {
    for (let i = 0; i < count; i++) add(desc, DESC.runs + i * 8);
  } else {
    // The list fills frames; the last entry of each says which is the next.
    const tableAt = (frame: number): DataView => viewAt(device + frame * pageSize, pageSize);
    const last = pageSize / 8 - 1;
    let table = tableAt(desc.getUint32(DESC.table, true));
    for (let i = 0; i < count; i++) {
      if (i > 0 && i % last === 0) {
        const next = tableAt(table.getUint32(last * 8, true));
        drop(table);
        table = next;
      }
      add(table, i % last * 8);
    }
    drop(table);
  }
  drop(desc);
  return list;
}

function viewAt(address: number, bytes: number): DataView<ArrayBuffer> {
  return new DataView(runtime().viewOf(address, bytes));
}

function drop(view: DataView<ArrayBufferLike>): void {
  (view.buffer as ArrayBuffer).transfer(0);
}
