/**
 * Prints what `ibv_devinfo -v` prints: every device of this host, its limits, its ports and their GIDs.
 *
 *     deno run -A examples/devinfo.ts
 *     bun examples/devinfo.ts
 */
import { type Context, devices, openDevice } from "../lib/verbs/mod.ts";

const CAPABILITIES: [string, number][] = [
  ["RESIZE_MAX_WR", 0],
  ["BAD_PKEY_CNTR", 1],
  ["BAD_QKEY_CNTR", 2],
  ["RAW_MULTI", 3],
  ["AUTO_PATH_MIG", 4],
  ["CHANGE_PHY_PORT", 5],
  ["UD_AV_PORT_ENFORCE", 6],
  ["CURR_QP_STATE_MOD", 7],
  ["SHUTDOWN_PORT", 8],
  ["INIT_TYPE", 9],
  ["PORT_ACTIVE_EVENT", 10],
  ["SYS_IMAGE_GUID", 11],
  ["RC_RNR_NAK_GEN", 12],
  ["SRQ_RESIZE", 13],
  ["N_NOTIFY_CQ", 14],
  ["MEM_WINDOW", 17],
  ["UD_IP_CSUM", 18],
  ["XRC", 20],
  ["MEM_MGT_EXTENSIONS", 21],
  ["MEM_WINDOW_TYPE_2A", 23],
  ["MEM_WINDOW_TYPE_2B", 24],
  ["RC_IP_CSUM", 25],
  ["RAW_IP_CSUM", 26],
  ["MANAGED_FLOW_STEERING", 29],
];
const ODP = ["SEND", "RECV", "WRITE", "READ", "ATOMIC", "SRQ"];
const TYPES: [string, number][] = [["SUPPORT_RAW_PACKET", 8], ["SUPPORT_UD", 4], ["SUPPORT_RC", 2]];
const TRANSPORT: Record<string, string> = {
  IB: "InfiniBand (0)",
  IWARP: "iWARP (1)",
  USNIC: "usNIC (2)",
  USNIC_UDP: "usNIC UDP (3)",
  UNSPECIFIED: "unspecified (4)",
};
const ATOMIC = ["NONE", "HCA", "GLOB"];
const STATE = ["NOP", "DOWN", "INIT", "ARMED", "ACTIVE", "ACTIVE_DEFER"];
const LINK: Record<string, string> = {
  UNSPECIFIED: "Unspecified",
  INFINIBAND: "InfiniBand",
  ETHERNET: "Ethernet",
};
const MTU = [0, 256, 512, 1024, 2048, 4096];
const WIDTH: Record<number, string> = { 1: "1", 2: "4", 4: "8", 8: "12", 16: "2" };
const SPEED: Record<number, string> = {
  1: "2.5 Gbps",
  2: "5.0 Gbps",
  4: "10.0 Gbps",
  8: "10.0 Gbps",
  16: "14.0 Gbps",
  32: "25.0 Gbps",
  64: "50.0 Gbps",
  128: "100.0 Gbps",
};
const LANES = ["invalid value", "1", "2", "4", "8", "15"];
const PHYSICAL = [
  "invalid physical state",
  "SLEEP",
  "POLLING",
  "DISABLED",
  "PORT_CONFIGURATION TRAINNING",
  "LINK_UP",
  "LINK_ERROR_RECOVERY",
  "PHY TEST",
];

const lines: string[] = [];
const hex = (value: number | bigint, digits = 0): string =>
  `0x${value.toString(16).padStart(digits, "0")}`;

/** A line with the value in the column where ibv_devinfo has it. */
function field(name: string, value: number | bigint | string, indent = 1, column = 40): void {
  const start = "\t".repeat(indent) + `${name}:`;
  const width = 8 * indent + name.length + 1;
  const tabs = Math.max(1, Math.ceil((column - width) / 8));
  lines.push(`${start}${"\t".repeat(tabs)}${value}`);
}

function flag(name: string): void {
  lines.push(`\t\t\t\t\t${name}`);
}

function flags(value: bigint, names: [string, number][]): void {
  let left = value;
  for (const [name, bit] of names) {
    if (value >> BigInt(bit) & 1n) flag(name);
    left &= ~(1n << BigInt(bit));
  }
  if (left !== 0n) flag(`Unknown flags: 0x${left.toString(16).toUpperCase()}`);
}

/** An IPv6 address in its shortest form. */
function shortest(gid: string): string {
  if (gid.startsWith("::ffff:")) return gid;
  const groups = gid.split(":").map((group) => parseInt(group, 16).toString(16)).join(":");
  const runs = [...groups.matchAll(/(?:^|(?<=:))0(?::0)+(?=:|$)/g)];
  const longest = runs.sort((a, b) => b[0].length - a[0].length)[0];
  if (!longest) return groups;
  const before = groups.slice(0, longest.index).replace(/:$/, "");
  const after = groups.slice(longest.index + longest[0].length).replace(/^:/, "");
  return `${before}::${after}`;
}

function printDevice(context: Context, transport: string): void {
  const d = context.queryDevice(), ex = context.queryDeviceEx();
  lines.push(`hca_id:\t${context.deviceName}`);
  field("transport", TRANSPORT[transport] ?? "invalid transport (-1)");
  if (d.fwVer) field("fw_ver", d.fwVer);
  field("node_guid", d.nodeGuid);
  field("sys_image_guid", d.sysImageGuid);
  field("vendor_id", hex(d.vendorId, 4));
  field("vendor_part_id", d.vendorPartId);
  field("hw_ver", `0x${d.hwVer.toString(16).toUpperCase()}`);
  field("phys_port_cnt", d.physPortCnt);
  field("max_mr_size", hex(d.maxMrSize));
  field("page_size_cap", hex(d.pageSizeCap));
  field("max_qp", d.maxQp);
  field("max_qp_wr", d.maxQpWr);
  field("device_cap_flags", hex(d.deviceCapFlags, 8));
  flags(BigInt(d.deviceCapFlags), CAPABILITIES);
  field("max_sge", d.maxSge);
  field("max_sge_rd", d.maxSgeRd);
  field("max_cq", d.maxCq);
  field("max_cqe", d.maxCqe);
  field("max_mr", d.maxMr);
  field("max_pd", d.maxPd);
  field("max_qp_rd_atom", d.maxQpRdAtom);
  field("max_ee_rd_atom", d.maxEeRdAtom);
  field("max_res_rd_atom", d.maxResRdAtom);
  field("max_qp_init_rd_atom", d.maxQpInitRdAtom);
  field("max_ee_init_rd_atom", d.maxEeInitRdAtom);
  field("atomic_cap", `ATOMIC_${d.atomicCap} (${ATOMIC.indexOf(d.atomicCap)})`);
  field("max_ee", d.maxEe);
  field("max_rdd", d.maxRdd);
  field("max_mw", d.maxMw);
  field("max_raw_ipv6_qp", d.maxRawIpv6Qp);
  field("max_raw_ethy_qp", d.maxRawEthyQp);
  field("max_mcast_grp", d.maxMcastGrp);
  field("max_mcast_qp_attach", d.maxMcastQpAttach);
  field("max_total_mcast_qp_attach", d.maxTotalMcastQpAttach);
  field("max_ah", d.maxAh);
  field("max_fmr", d.maxFmr);
  if (d.maxFmr) field("max_map_per_fmr", d.maxMapPerFmr);
  field("max_srq", d.maxSrq);
  if (d.maxSrq) {
    field("max_srq_wr", d.maxSrqWr);
    field("max_srq_sge", d.maxSrqSge);
  }
  field("max_pkeys", d.maxPkeys);
  field("local_ca_ack_delay", d.localCaAckDelay);
  printExtended(ex);
  field("num_comp_vectors", context.completionVectors);
  for (let port = 1; port <= d.physPortCnt; port++) printPort(context, port, transport);
}

function printExtended(ex: ReturnType<Context["queryDeviceEx"]>): void {
  lines.push("\tgeneral_odp_caps:");
  flags(ex.odpGeneralCaps, [["ODP_SUPPORT", 0], ["ODP_SUPPORT_IMPLICIT", 1]]);
  for (const [name, caps] of Object.entries(ex.odpCaps)) {
    lines.push(`\t${name}_odp_caps:`);
    if (caps === 0) flag("NO SUPPORT");
    else flags(BigInt(caps), ODP.map((each, bit) => [`SUPPORT_${each}`, bit]));
  }
  lines.push(
    ex.completionTimestampMask
      ? `\tcompletion timestamp_mask:\t\t\t${hex(ex.completionTimestampMask, 16)}`
      : "\tcompletion_timestamp_mask not supported",
  );
  if (ex.hcaCoreClock) field("hca_core_clock", `${ex.hcaCoreClock}kHZ`);
  else lines.push("\tcore clock not supported");
  if (ex.rawPacketCaps) {
    lines.push("\traw packet caps:");
    const names = [
      "C-VLAN stripping offload",
      "Scatter FCS offload",
      "IP csum offload",
      "Delay drop",
    ];
    for (const [bit, name] of names.entries()) if (ex.rawPacketCaps >> bit & 1) flag(name);
  }
  field("device_cap_flags_ex", `0x${ex.deviceCapFlagsEx.toString(16).toUpperCase()}`);
  const high: [string, number][] = [["RAW_SCATTER_FCS", 34], ["PCI_WRITE_END_PADDING", 36]];
  flags(ex.deviceCapFlagsEx >> 32n << 32n, high);
  const supported = (types: number, names: [string, number][]): void => {
    lines.push("\t\tsupported_qp:");
    flags(BigInt(types), names);
  };
  lines.push("\ttso_caps:", `\t\tmax_tso:\t\t\t${ex.tso.maxTso}`);
  if (ex.tso.maxTso) supported(ex.tso.supportedQpts, TYPES.slice(0, 2));
  lines.push(
    "\trss_caps:",
    `\t\tmax_rwq_indirection_tables:\t\t\t${ex.rss.maxRwqIndirectionTables}`,
    `\t\tmax_rwq_indirection_table_size:\t\t\t${ex.rss.maxRwqIndirectionTableSize}`,
    `\t\trx_hash_function:\t\t\t\t${hex(ex.rss.rxHashFunction)}`,
    `\t\trx_hash_fields_mask:\t\t\t\t0x${ex.rss.rxHashFieldsMask.toString(16).toUpperCase()}`,
  );
  if (ex.rss.supportedQpts) supported(ex.rss.supportedQpts, TYPES.slice(0, 2));
  field("max_wq_type_rq", ex.maxWqTypeRq);
  lines.push(
    "\tpacket_pacing_caps:",
    `\t\tqp_rate_limit_min:\t${ex.packetPacing.qpRateLimitMin}kbps`,
    `\t\tqp_rate_limit_max:\t${ex.packetPacing.qpRateLimitMax}kbps`,
  );
  if (ex.packetPacing.qpRateLimitMax) supported(ex.packetPacing.supportedQpts, TYPES);
  const tm = ex.tagMatching;
  if (tm.maxNumTags) {
    field("max_rndv_hdr_size", tm.maxRndvHdrSize);
    field("max_num_tags", tm.maxNumTags);
    field("max_ops", tm.maxOps);
    field("max_sge", tm.maxSge);
    lines.push("\tflags:");
    if (tm.flags & 1) flag("IBV_TM_CAP_RC");
  } else {
    lines.push("\ttag matching not supported");
  }
  const { maxCqCount, maxCqPeriod } = ex.cqModeration;
  if (maxCqCount && maxCqPeriod) {
    lines.push(
      "",
      "\tcq moderation caps:",
      `\t\tmax_cq_count:\t${maxCqCount}`,
      `\t\tmax_cq_period:\t${maxCqPeriod} us`,
      "",
    );
  }
  if (ex.maxDmSize) lines.push(`\tmaximum available device memory:\t${ex.maxDmSize}Bytes`, "");
}

function printPort(context: Context, number: number, transport: string): void {
  const p = context.queryPort(number);
  const port = (name: string, value: number | string): void => field(name, value, 3, 48);
  lines.push(`\t\tport:\t${number}`);
  const state = ["DOWN", "INIT", "ARMED", "ACTIVE"].includes(p.state)
    ? `PORT_${p.state}`
    : "invalid state";
  port("state", `${state} (${STATE.indexOf(p.state)})`);
  port("max_mtu", `${p.maxMtu} (${MTU.indexOf(p.maxMtu)})`);
  port("active_mtu", `${p.activeMtu} (${MTU.indexOf(p.activeMtu)})`);
  port("sm_lid", p.smLid);
  port("port_lid", p.lid);
  port("port_lmc", hex(p.lmc, 2));
  port("link_layer", LINK[p.linkLayer] ?? "Unknown");
  port("max_msg_sz", hex(p.maxMsgSz));
  port("port_cap_flags", hex(p.portCapFlags, 8));
  port("port_cap_flags2", hex(p.portCapFlags2, 4));
  port("max_vl_num", `${LANES[p.maxVlNum] ?? LANES[0]} (${p.maxVlNum})`);
  port("bad_pkey_cntr", hex(p.badPkeyCntr));
  port("qkey_viol_cntr", hex(p.qkeyViolCntr));
  port("sm_sl", p.smSl);
  port("pkey_tbl_len", p.pkeyTblLen);
  port("gid_tbl_len", p.gidTblLen);
  port("subnet_timeout", p.subnetTimeout);
  port("init_type_reply", p.initTypeReply);
  port("active_width", `${WIDTH[p.activeWidth] ?? "invalid width"}X (${p.activeWidth})`);
  port("active_speed", `${SPEED[p.activeSpeed] ?? "invalid speed"} (${p.activeSpeed})`);
  if (transport === "IB") {
    port("phys_state", `${PHYSICAL[p.physState] ?? PHYSICAL[0]} (${p.physState})`);
  }
  for (const { index, gid, bytes, type } of context.gidTable(number)) {
    if (bytes.subarray(8).every((byte) => byte === 0)) continue;
    const text = type === "RoCE v2" ? shortest(gid) : full(bytes);
    const suffix = p.linkLayer === "ETHERNET" ? `, ${type}` : "";
    lines.push(`\t\t\tGID[${String(index).padStart(3)}]:\t\t${text}${suffix}`);
  }
  lines.push("");
}

function full(bytes: Uint8Array): string {
  return Array.from(
    { length: 8 },
    (_, i) => (bytes[2 * i]! << 8 | bytes[2 * i + 1]!).toString(16).padStart(4, "0"),
  ).join(":");
}

for (const { name, transport } of devices()) {
  using context = openDevice(name);
  printDevice(context, transport);
}
console.log(lines.length === 0 ? "No IB devices found" : lines.join("\n"));
