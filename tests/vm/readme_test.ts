import { testPrograms } from "../support/readme.ts";

// The programs that need a device, at the VM's address.
testPrograms("ts rdma", 2, (source) => source.replaceAll("10.0.0.1", "10.9.0.1"));
