// Bundles in folders, for Node.

import { readFile } from "node:fs/promises";
import { resolve } from "node:path";

import { Bundle } from "./bundle.js";

/** The bundle in a folder. @param {string} path @returns {Promise<Bundle>} */
export async function openFolder(path) {
  const folder = resolve(path);
  const read = async (/** @type {string} */ name) => new Uint8Array(await readFile(resolve(folder, name)));
  return new Bundle(JSON.parse(await readFile(resolve(folder, "manifest.json"), "utf-8")), read, folder);
}

/** A profile of it, `profiles/<device>.json`. @param {string} path @param {string} device @returns {Promise<any>} */
export const readProfile = async (path, device) => JSON.parse(await readFile(resolve(path, "profiles", `${device}.json`), "utf-8"));
