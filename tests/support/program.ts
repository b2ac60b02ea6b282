/**
 * Programs of any command, run as processes by a test while it goes on.
 *
 * @module
 */
import { spawn } from "node:child_process";
import process from "node:process";

/** How a program ended, and what it printed. */
export interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A program that runs. */
export interface Program {
  /** Ends it the hard way. */
  kill(): void;
  /** Resolves when what it printed looks like that; rejects if it ends before. */
  said(what: RegExp): Promise<void>;
  readonly ended: Promise<Ended>;
}

/** Starts a program, which has a minute. */
export function start([name, ...words]: string[], env: Record<string, string> = {}): Program {
  const child = spawn(name!, words, { env: { ...process.env, ...env }, stdio: "pipe" });
  const timer = setTimeout(() => child.kill("SIGKILL"), 60_000);
  let stdout = "", stderr = "", wake = (): void => {};
  child.stdout.on("data", (chunk) => {
    stdout += chunk;
    wake();
  });
  child.stderr.on("data", (chunk) => stderr += chunk);
  const ended = new Promise<Ended>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (status) => {
      clearTimeout(timer);
      resolve({ status, stdout, stderr });
    });
  });
  const said = (what: RegExp): Promise<void> =>
    new Promise((resolve, reject) => {
      wake = () => what.test(stdout) && resolve();
      wake();
      ended.then(
        () => reject(new Error(`it ended without saying ${what}:\n${stdout}${stderr}`)),
        reject,
      );
    });
  return { kill: () => void child.kill("SIGKILL"), said, ended };
}
