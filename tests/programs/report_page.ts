/**
 * Writes the page of the report in a file: report_page.ts REPORT.json PAGE.html. For Deno.
 *
 * @module
 */
import { readFileSync, writeFileSync } from "node:fs";
import { bundle } from "../../tools/report/bundle.ts";
import { page } from "../../tools/report/page.ts";

const [report, file] = Deno.args as [string, string];
const options = {
  report: JSON.parse(readFileSync(report, "utf8")),
  parts: [],
  bundle: await bundle(),
};
writeFileSync(file, page(options));
