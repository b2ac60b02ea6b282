import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { DL } from "../ffi/library.ts";
import * as E from "../ffi/verbs_enums.ts";
import * as L from "../ffi/verbs_layout.ts";

// Those of the other architecture find the headers of libibverbs among this one's: they are the same.
const COMPILERS: Record<string, string[]> = process.arch === "x64"
  ? { "x86-64": ["gcc"], "aarch64": ["aarch64-linux-gnu-gcc", "-idirafter", "/usr/include"] }
  : { "aarch64": ["gcc"] };

const HELPER_DIR = fileURLToPath(new URL("../ffi/helper", import.meta.url));
const SYSTEM = `
#define _GNU_SOURCE
#include <stddef.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>`;
const HELPER = '#include "verbs.h"';

// Asks a compiler for the values of constant expressions: it writes them into its assembly, so that those of
// another architecture are known without running anything.
function ask(compiler: string[], headers: string, expressions: string[]): number[] {
  const lines = expressions.map((expression, i) =>
    `  __asm__ volatile("\\n->${i} %c0" : : "i"((long)(${expression})));`
  );
  const source = [headers, "void answers(void) {", ...lines, "}", ""].join("\n");
  const args = ["-S", "-O1", "-w", `-I${HELPER_DIR}`, "-x", "c", "-o", "-", "-"];
  const [command, ...more] = compiler as [string, ...string[]];
  const { status, stdout, stderr, error } = spawnSync(command, [...more, ...args], {
    input: source,
    encoding: "utf8",
    maxBuffer: 64 << 20,
  });
  assert.equal(status, 0, `${command} cannot compile: ${error ?? stderr}`);
  const values = [...stdout.matchAll(/^->(\d+) (-?\d+)$/gm)];
  assert.equal(values.length, expressions.length, "answers in the assembly");
  return values.map(([, , value]) => Number(value));
}

function member(struct: string, name: string): string {
  return name === "size"
    ? `sizeof(struct ${struct})`
    : `__builtin_offsetof(struct ${struct}, ${name})`;
}

// Our tables, and the members that C calls otherwise.
const STRUCTS: [string, Record<string, number>, Record<string, string>][] = [
  ["ibv_device", L.IBV_DEVICE, {
    nodeType: "node_type",
    transportType: "transport_type",
    devName: "dev_name",
    devPath: "dev_path",
    ibdevPath: "ibdev_path",
  }],
  ["ibv_context", L.IBV_CONTEXT, {
    cmdFd: "cmd_fd",
    asyncFd: "async_fd",
    numCompVectors: "num_comp_vectors",
    abiCompat: "abi_compat",
  }],
  ["ibv_device_attr", L.IBV_DEVICE_ATTR, {
    fwVer: "fw_ver",
    nodeGuid: "node_guid",
    sysImageGuid: "sys_image_guid",
    maxMrSize: "max_mr_size",
    pageSizeCap: "page_size_cap",
    vendorId: "vendor_id",
    vendorPartId: "vendor_part_id",
    hwVer: "hw_ver",
    maxQp: "max_qp",
    maxQpWr: "max_qp_wr",
    deviceCapFlags: "device_cap_flags",
    maxSge: "max_sge",
    maxSgeRd: "max_sge_rd",
    maxCq: "max_cq",
    maxCqe: "max_cqe",
    maxMr: "max_mr",
    maxPd: "max_pd",
    maxQpRdAtom: "max_qp_rd_atom",
    maxEeRdAtom: "max_ee_rd_atom",
    maxResRdAtom: "max_res_rd_atom",
    maxQpInitRdAtom: "max_qp_init_rd_atom",
    maxEeInitRdAtom: "max_ee_init_rd_atom",
    atomicCap: "atomic_cap",
    maxEe: "max_ee",
    maxRdd: "max_rdd",
    maxMw: "max_mw",
    maxRawIpv6Qp: "max_raw_ipv6_qp",
    maxRawEthyQp: "max_raw_ethy_qp",
    maxMcastGrp: "max_mcast_grp",
    maxMcastQpAttach: "max_mcast_qp_attach",
    maxTotalMcastQpAttach: "max_total_mcast_qp_attach",
    maxAh: "max_ah",
    maxFmr: "max_fmr",
    maxMapPerFmr: "max_map_per_fmr",
    maxSrq: "max_srq",
    maxSrqWr: "max_srq_wr",
    maxSrqSge: "max_srq_sge",
    maxPkeys: "max_pkeys",
    localCaAckDelay: "local_ca_ack_delay",
    physPortCnt: "phys_port_cnt",
  }],
  ["ibv_device_attr_ex", L.IBV_DEVICE_ATTR_EX, {
    compMask: "comp_mask",
    odpGeneralCaps: "odp_caps.general_caps",
    rcOdpCaps: "odp_caps.per_transport_caps.rc_odp_caps",
    ucOdpCaps: "odp_caps.per_transport_caps.uc_odp_caps",
    udOdpCaps: "odp_caps.per_transport_caps.ud_odp_caps",
    completionTimestampMask: "completion_timestamp_mask",
    hcaCoreClock: "hca_core_clock",
    deviceCapFlagsEx: "device_cap_flags_ex",
    tsoMaxTso: "tso_caps.max_tso",
    tsoSupportedQpts: "tso_caps.supported_qpts",
    rssSupportedQpts: "rss_caps.supported_qpts",
    rssMaxRwqIndirectionTables: "rss_caps.max_rwq_indirection_tables",
    rssMaxRwqIndirectionTableSize: "rss_caps.max_rwq_indirection_table_size",
    rssRxHashFieldsMask: "rss_caps.rx_hash_fields_mask",
    rssRxHashFunction: "rss_caps.rx_hash_function",
    maxWqTypeRq: "max_wq_type_rq",
    pacingQpRateLimitMin: "packet_pacing_caps.qp_rate_limit_min",
    pacingQpRateLimitMax: "packet_pacing_caps.qp_rate_limit_max",
    pacingSupportedQpts: "packet_pacing_caps.supported_qpts",
    rawPacketCaps: "raw_packet_caps",
    tmMaxRndvHdrSize: "tm_caps.max_rndv_hdr_size",
    tmMaxNumTags: "tm_caps.max_num_tags",
    tmFlags: "tm_caps.flags",
    tmMaxOps: "tm_caps.max_ops",
    tmMaxSge: "tm_caps.max_sge",
    maxCqCount: "cq_mod_caps.max_cq_count",
    maxCqPeriod: "cq_mod_caps.max_cq_period",
    maxDmSize: "max_dm_size",
    pciAtomicFetchAdd: "pci_atomic_caps.fetch_add",
    pciAtomicSwap: "pci_atomic_caps.swap",
    pciAtomicCompareSwap: "pci_atomic_caps.compare_swap",
    xrcOdpCaps: "xrc_odp_caps",
    physPortCntEx: "phys_port_cnt_ex",
  }],
  ["ibv_port_attr", L.IBV_PORT_ATTR, {
    maxMtu: "max_mtu",
    activeMtu: "active_mtu",
    gidTblLen: "gid_tbl_len",
    portCapFlags: "port_cap_flags",
    maxMsgSz: "max_msg_sz",
    badPkeyCntr: "bad_pkey_cntr",
    qkeyViolCntr: "qkey_viol_cntr",
    pkeyTblLen: "pkey_tbl_len",
    smLid: "sm_lid",
    maxVlNum: "max_vl_num",
    smSl: "sm_sl",
    subnetTimeout: "subnet_timeout",
    initTypeReply: "init_type_reply",
    activeWidth: "active_width",
    activeSpeed: "active_speed",
    physState: "phys_state",
    linkLayer: "link_layer",
    portCapFlags2: "port_cap_flags2",
  }],
  ["ibv_gid_entry", L.IBV_GID_ENTRY, {
    gidIndex: "gid_index",
    portNum: "port_num",
    gidType: "gid_type",
    ndevIfindex: "ndev_ifindex",
  }],
  ["ibv_async_event", L.IBV_ASYNC_EVENT, { eventType: "event_type" }],
  ["ibv_mr", L.IBV_MR, {}],
  ["ibv_comp_channel", L.IBV_COMP_CHANNEL, {}],
  ["ibv_cq", L.IBV_CQ, {}],
  ["ibv_qp", L.IBV_QP, { qpNum: "qp_num", qpType: "qp_type" }],
  ["ibv_qp_init_attr", L.IBV_QP_INIT_ATTR, {
    qpContext: "qp_context",
    sendCq: "send_cq",
    recvCq: "recv_cq",
    maxSendWr: "cap.max_send_wr",
    maxRecvWr: "cap.max_recv_wr",
    maxSendSge: "cap.max_send_sge",
    maxRecvSge: "cap.max_recv_sge",
    maxInlineData: "cap.max_inline_data",
    qpType: "qp_type",
    sqSigAll: "sq_sig_all",
  }],
  ["ibv_qp_attr", L.IBV_QP_ATTR, {
    qpState: "qp_state",
    curQpState: "cur_qp_state",
    pathMtu: "path_mtu",
    pathMigState: "path_mig_state",
    rqPsn: "rq_psn",
    sqPsn: "sq_psn",
    destQpNum: "dest_qp_num",
    qpAccessFlags: "qp_access_flags",
    maxSendWr: "cap.max_send_wr",
    maxRecvWr: "cap.max_recv_wr",
    maxSendSge: "cap.max_send_sge",
    maxRecvSge: "cap.max_recv_sge",
    maxInlineData: "cap.max_inline_data",
    ahAttr: "ah_attr",
    altAhAttr: "alt_ah_attr",
    pkeyIndex: "pkey_index",
    altPkeyIndex: "alt_pkey_index",
    enSqdAsyncNotify: "en_sqd_async_notify",
    sqDraining: "sq_draining",
    maxRdAtomic: "max_rd_atomic",
    maxDestRdAtomic: "max_dest_rd_atomic",
    minRnrTimer: "min_rnr_timer",
    portNum: "port_num",
    retryCnt: "retry_cnt",
    rnrRetry: "rnr_retry",
    altPortNum: "alt_port_num",
    altTimeout: "alt_timeout",
    rateLimit: "rate_limit",
  }],
  ["ibv_ah_attr", L.IBV_AH_ATTR, {
    dgid: "grh.dgid",
    flowLabel: "grh.flow_label",
    sgidIndex: "grh.sgid_index",
    hopLimit: "grh.hop_limit",
    trafficClass: "grh.traffic_class",
    srcPathBits: "src_path_bits",
    staticRate: "static_rate",
    isGlobal: "is_global",
    portNum: "port_num",
  }],
  ["ibv_sge", L.IBV_SGE, {}],
  ["ibv_send_wr", L.IBV_SEND_WR, {
    wrId: "wr_id",
    sgList: "sg_list",
    numSge: "num_sge",
    sendFlags: "send_flags",
    immData: "imm_data",
    remoteAddr: "wr.rdma.remote_addr",
    rkey: "wr.rdma.rkey",
    atomicRemoteAddr: "wr.atomic.remote_addr",
    atomicCompareAdd: "wr.atomic.compare_add",
    atomicSwap: "wr.atomic.swap",
    atomicRkey: "wr.atomic.rkey",
  }],
  ["ibv_recv_wr", L.IBV_RECV_WR, { wrId: "wr_id", sgList: "sg_list", numSge: "num_sge" }],
  ["ibv_wc", L.IBV_WC, {
    wrId: "wr_id",
    vendorErr: "vendor_err",
    byteLen: "byte_len",
    immData: "imm_data",
    qpNum: "qp_num",
    srcQp: "src_qp",
    wcFlags: "wc_flags",
    pkeyIndex: "pkey_index",
    dlidPathBits: "dlid_path_bits",
  }],
  ["rdma_event_channel", L.RDMA_EVENT_CHANNEL, {}],
  ["rdma_cm_id", L.RDMA_CM_ID, {
    srcAddr: "route.addr.src_addr",
    dstAddr: "route.addr.dst_addr",
    portNum: "port_num",
  }],
  ["rdma_conn_param", L.RDMA_CONN_PARAM, {
    privateData: "private_data",
    privateDataLen: "private_data_len",
    responderResources: "responder_resources",
    initiatorDepth: "initiator_depth",
    flowControl: "flow_control",
    retryCount: "retry_count",
    rnrRetryCount: "rnr_retry_count",
    qpNum: "qp_num",
  }],
  ["rdma_cm_event", L.RDMA_CM_EVENT, { listenId: "listen_id", conn: "param.conn" }],
  ["sockaddr_in", L.SOCKADDR_IN, { family: "sin_family", port: "sin_port", addr: "sin_addr" }],
  ["sockaddr_in6", L.SOCKADDR_IN6, {
    family: "sin6_family",
    port: "sin6_port",
    flowinfo: "sin6_flowinfo",
    addr: "sin6_addr",
    scopeId: "sin6_scope_id",
  }],
];

// What the helper declares for itself, and the members of it that exist in the header.
const HELPER_STRUCTS: Record<string, string[]> = {
  ibv_sge: ["size", "addr", "length", "lkey"],
  ibv_send_wr: ["size", "wr_id", "next", "sg_list", "num_sge", "opcode", "send_flags", "imm_data"],
  ibv_recv_wr: ["size", "wr_id", "next", "sg_list", "num_sge"],
  ibv_wc: [
    "size",
    ...["wr_id", "status", "opcode", "vendor_err", "byte_len", "imm_data", "qp_num", "src_qp"],
    ...["wc_flags", "pkey_index", "slid", "sl", "dlid_path_bits"],
  ],
  ibv_qp: ["context"],
  ibv_cq: ["context"],
};
const HELPER_PAIRS: [string, string][] = [
  ["ibv_send_wr, remote_addr", "ibv_send_wr, wr.rdma.remote_addr"],
  ["ibv_send_wr, rkey", "ibv_send_wr, wr.rdma.rkey"],
  ...["poll_cq", "req_notify_cq", "post_send", "post_recv"].map((op): [string, string] => [
    `ibv_context, ${op}`,
    `ibv_context, ops.${op}`,
  ]),
];
const HELPER_NUMBERS: [string, string][] = [
  ...["WRITE", "WRITE_IMM", "SEND", "SEND_IMM", "READ"].map((name): [string, string] => [
    `WR_${name}`,
    `IBV_WR_${name.replace(/^(WRITE|READ)/, "RDMA_$1").replace("_IMM", "_WITH_IMM")}`,
  ]),
  ...["SEND_FENCE", "SEND_SIGNALED", "SEND_SOLICITED", "SEND_INLINE"].map((
    name,
  ): [string, string] => [name, `IBV_${name}`]),
  ...["WC_SUCCESS", "WC_WR_FLUSH_ERR", "WC_RECV"].map((
    name,
  ): [string, string] => [name, `IBV_${name}`]),
];

const ENUMS: [string, Record<string, number>, string][] = [
  ["enum ibv_node_type", E.NODE_TYPE, "IBV_NODE_"],
  ["enum ibv_transport_type", E.TRANSPORT_TYPE, "IBV_TRANSPORT_"],
  ["enum ibv_atomic_cap", E.ATOMIC_CAP, "IBV_ATOMIC_"],
  ["enum ibv_port_state", E.PORT_STATE, "IBV_PORT_"],
  ["link layers", E.LINK_LAYER, "IBV_LINK_LAYER_"],
  ["enum ibv_mtu", E.MTU, "IBV_MTU_"],
  ["enum ibv_gid_type", E.GID_TYPE, "IBV_GID_TYPE_"],
  ["enum ibv_access_flags", E.ACCESS, "IBV_ACCESS_"],
  ["enum ibv_qp_type", E.QP_TYPE, "IBV_QPT_"],
  ["enum ibv_qp_state", E.QP_STATE, "IBV_QPS_"],
  ["enum ibv_mig_state", E.MIG_STATE, "IBV_MIG_"],
  ["enum ibv_qp_attr_mask", E.QP_ATTR_MASK, "IBV_QP_"],
  ["enum ibv_wr_opcode", E.WR_OPCODE, "IBV_WR_"],
  ["enum ibv_send_flags", E.SEND_FLAGS, "IBV_SEND_"],
  ["enum ibv_wc_status", E.WC_STATUS, "IBV_WC_"],
  ["enum ibv_wc_opcode", E.WC_OPCODE, "IBV_WC_"],
  ["enum ibv_wc_flags", E.WC_FLAGS, "IBV_WC_"],
  ["enum ibv_event_type", E.EVENT_TYPE, "IBV_EVENT_"],
  ["enum rdma_cm_event_type", E.CM_EVENT, "RDMA_CM_EVENT_"],
  ["enum rdma_port_space", E.PORT_SPACE, "RDMA_PS_"],
  ["options of an id", E.CM_OPTION, "RDMA_OPTION_ID_"],
  ["flags of dlopen", DL, ""],
];

// Before the context: the struct grows at its beginning.
const before = (name: string): string =>
  `__builtin_offsetof(struct verbs_context, context) - __builtin_offsetof(struct verbs_context, ${name})`;
const VERBS_CONTEXT: Record<keyof typeof L.VERBS_CONTEXT, string> = {
  sz: before("sz"),
  queryDeviceEx: before("query_device_ex"),
  queryPort: before("query_port"),
};

for (const [arch, compiler] of Object.entries(COMPILERS)) {
  for (const [struct, table, names] of STRUCTS) {
    test(`struct ${struct}: what JavaScript has is what the header has on ${arch}`, () => {
      const keys = Object.keys(table);
      const real = ask(compiler, SYSTEM, keys.map((key) => member(struct, names[key] ?? key)));
      assert.deepEqual({ ...table }, Object.fromEntries(keys.map((key, i) => [key, real[i]])));
    });
  }

  test(`the context's end is where JavaScript looks for it on ${arch}`, () => {
    const [real] = ask(compiler, SYSTEM, [member("ibv_context", "abi_compat")]);
    assert.equal(L.ABI_COMPAT[arch === "aarch64" ? "aarch64" : "x86_64"], real);
  });

  test(`struct verbs_context: what JavaScript has is what the header has on ${arch}`, () => {
    const real = ask(compiler, SYSTEM, Object.values(VERBS_CONTEXT));
    const names = Object.keys(VERBS_CONTEXT);
    assert.deepEqual(
      { ...L.VERBS_CONTEXT },
      Object.fromEntries(names.map((name, i) => [name, real[i]])),
    );
  });

  for (const [name, table, prefix] of ENUMS) {
    test(`${name}: what JavaScript has is what the header has on ${arch}`, () => {
      const keys = Object.keys(table);
      const real = ask(compiler, SYSTEM, keys.map((key) => prefix + key));
      assert.deepEqual({ ...table }, Object.fromEntries(keys.map((key, i) => [key, real[i]])));
    });
  }

  test(`the helper's own structs are those of the header on ${arch}`, () => {
    const ours: string[] = [], theirs: string[] = [];
    for (const [struct, names] of Object.entries(HELPER_STRUCTS)) {
      for (const name of names) {
        ours.push(member(struct, name));
        theirs.push(member(struct, name));
      }
    }
    for (const [our, their] of HELPER_PAIRS) {
      ours.push(`__builtin_offsetof(struct ${our})`);
      theirs.push(`__builtin_offsetof(struct ${their})`);
    }
    for (const [our, their] of HELPER_NUMBERS) {
      ours.push(our);
      theirs.push(their);
    }
    const named = (values: number[]): [string, number][] =>
      ours.map((name, i) => [name, values[i]!]);
    assert.deepEqual(named(ask(compiler, HELPER, ours)), named(ask(compiler, SYSTEM, theirs)));
  });
}

test("every status, opcode and event of the headers of this version has a name", () => {
  const last: [Record<string, number>, string][] = [
    [E.WC_STATUS, "IBV_WC_TM_RNDV_INCOMPLETE"],
    [E.EVENT_TYPE, "IBV_EVENT_WQ_FATAL"],
    [E.CM_EVENT, "RDMA_CM_EVENT_TIMEWAIT_EXIT"],
    [E.QP_STATE, "IBV_QPS_UNKNOWN"],
  ];
  const [compiler] = Object.values(COMPILERS);
  const ends = ask(compiler!, SYSTEM, last.map(([, name]) => name));
  for (const [i, [table]] of last.entries()) {
    const numbers = Object.values(table).sort((a, b) => a - b);
    assert.deepEqual(numbers, Array.from({ length: ends[i]! + 1 }, (_, n) => n));
  }
});
