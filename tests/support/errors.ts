/**
 * How promises end.
 *
 * @module
 */
import { MoatError } from "../../mod.ts";

/** The code a promise is rejected with, or `"resolved"`. What is no error of ours is thrown. */
export async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
    return "resolved";
  } catch (error) {
    if (error instanceof MoatError) return error.code;
    throw error;
  }
}
