// What every sub-model takes on this device: a profile, as `sortednet profile` writes it.

import { sha256 } from "./bundle.js";
import { Sessions } from "./runtime.js";

/** @typedef {import("./bundle.js").Bundle} Bundle */
/** @typedef {{cpu: string, cores: number, threads: number, ram_mb: number, os: string, onnxruntime: string, execution_provider: string, label?: string}} Info */

const WARMUPS = 3;

/**
 * Measures these sub-models in interleaved rounds, so that a noisy moment hits all alike; each is opened once. Resolves to
 * measurements by sub-model. `told` is called after each round of one with what is known by then; `signal` ends it early.
 * @param {Bundle} bundle @param {any} ort @param {string[]} ids
 * @param {{session?: object, rounds?: number, runs?: number, seconds?: number, told?: (done: number, all: number, submodels: Record<string, any>) => unknown,
 *   signal?: AbortSignal, clock?: () => number, length?: number}} [more] a round is so many runs, or as many as fit into the seconds, at least 3
 */
export async function measure(bundle, ort, ids, { session = {}, rounds = 3, runs = 20, seconds = 0.4, told = () => {}, signal, clock = () => performance.now(), length = 0 } = {}) {
  const sessions = new Sessions(bundle, ort, session, ids.length);
  const feed = exampleFeed(bundle, ort, length);
  /** @type {Record<string, number[]>} */
  const taken = Object.fromEntries(ids.map((id) => [id, []]));
  /** @type {Record<string, number>} */
  const loadMs = {};
  /** @type {Record<string, any>} */
  const found = {};
  try {
    await sessions.get(ids[0]); // the engine itself is fetched and started with the first session: that is no size's time to open
    await sessions.close();
    for (let round = 0; round < rounds; round++) {
      for (const [place, id] of ids.entries()) {
        signal?.throwIfAborted();
        const begun = clock();
        const opened = await sessions.get(id);
        loadMs[id] ??= clock() - begun;
        for (let i = 0; i < WARMUPS; i++) await opened.run(feed);
        const end = clock() + seconds * 1e3;
        for (let i = 0; i < runs && (i < 3 || clock() < end); i++) {
          const start = clock();
          await opened.run(feed);
          taken[id].push(Math.max(clock() - start, 1e-3)); // a coarse clock may show no time at all
        }
        found[id] = measurement(taken[id], loadMs[id], length);
        await told(round * ids.length + place + 1, rounds * ids.length, found);
      }
    }
  } finally {
    await sessions.close();
  }
  return found;
}

/** @param {number[]} taken ms @param {number} load @param {number} length */
function measurement(taken, load, length) {
  const sorted = [...taken].sort((a, b) => a - b);
  const at = (/** @type {number} */ p) => {
    const place = ((sorted.length - 1) * p) / 100;
    const low = Math.floor(place);
    return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
  };
  const latency_ms = { p50: at(50), p90: at(90), p99: at(99), mean: taken.reduce((a, b) => a + b, 0) / taken.length, n: taken.length };
  return { latency_ms, ...(length && { lengths: { [length]: latency_ms } }), load_ms: load, source: { latency_ms: "measured", load_ms: "measured" } };
}

/** One example of the right shape: noise, ones where inputs are whole numbers. @param {Bundle} bundle @param {any} ort @param {number} length of a free axis beside the batch */
export function exampleFeed(bundle, ort, length) {
  /** @type {Record<string, any>} */
  const feed = {};
  for (const { name, dtype, shape } of bundle.inputs) {
    const dims = shape.map((size, i) => (typeof size === "number" ? size : i === 0 ? 1 : length || 1));
    const count = dims.reduce((a, b) => a * b, 1);
    const data = dtype === "int64" ? new BigInt64Array(count).fill(1n) : dtype === "int32" ? new Int32Array(count).fill(1) : Float32Array.from({ length: count }, (_, i) => Math.abs(Math.sin(i * 12.9898) * 43758.5453) % 1);
    feed[name] = new ort.Tensor(dtype, data, dims);
  }
  return feed;
}

/** The profile's document, sealed. @param {string} fingerprint of the whole bundle @param {string} name of the device @param {Info} info
 * @param {Record<string, any>} submodels @param {number} [length] the reference, where there are lengths */
export function profileOf(fingerprint, name, info, submodels, length) {
  const document = { format_version: 1, device: { spinning: true, energy: "", label: "", ...info, name }, bundle: fingerprint, measured_at: new Date().toISOString(), submodels };
  return sealed(length ? { ...document, length } : document);
}

/** With its checksum: SHA-256 of the canonical form (RFC 8785). @param {Record<string, any>} document */
export async function sealed(document) {
  const { sha256: _, ...rest } = document;
  return { ...rest, sha256: await sha256(new TextEncoder().encode(canonical(rest))) };
}

/** RFC 8785: numbers and strings as `JSON.stringify` writes them, names in the order of their UTF-16 code units. @param {any} value @returns {string} */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const names = Object.keys(value).filter((name) => value[name] !== undefined).sort();
  return `{${names.map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join(",")}}`;
}
