// What a profile says of the tail of its latencies: a part in milliseconds and a part in proportion. `selector/adapt/quiet.py`.

import { PERCENTILES } from "./selector.js";

const UNCERTAIN = 0.1; // of a run: by so much its level is uncertain where small sub-models have such tails

/** @typedef {{stall: number, share: number, careful: number}} Tail of one percentile's excess over the median */

/** The median, of two in the middle their mean. @param {number[]} values */
export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** The two parts, by the median of the slopes between all pairs (Theil 1950, Sen 1968). @param {number[]} medians @param {number[]} excesses @returns {Tail} */
export function fitted(medians, excesses) {
  const slopes = [];
  for (let i = 0; i < medians.length; i++)
    for (let j = i + 1; j < medians.length; j++) if (medians[i] !== medians[j]) slopes.push((excesses[j] - excesses[i]) / (medians[j] - medians[i]));
  const share = slopes.length ? Math.max(0, median(slopes)) : 0;
  const stall = Math.max(0, median(excesses.map((excess, i) => excess - share * medians[i])));
  const typical = Math.max(0, median(excesses.map((excess, i) => excess / medians[i])));
  return stall ? { stall, share, careful: Math.max(share, Math.min(2 * typical, UNCERTAIN)) } : { stall: 0, share: typical, careful: typical };
}

/** The tails of one profile, by percentile. */
export class Quiet {
  /** Fitted to all sub-models that were measured, or to the predicted ones where none was. @param {import("./candidates.js").Profile} profile */
  constructor(profile) {
    const all = Object.values(profile.submodels).map((one) => one.latency_ms);
    const measured = all.filter((one) => one.n);
    const latencies = measured.length ? measured : all;
    const medians = latencies.map((one) => one.p50);
    /** @type {Record<number, Tail>} */
    this.tails = {};
    for (const p of PERCENTILES) this.tails[p] = fitted(medians, latencies.map((one) => one[/** @type {"p50"} */ (`p${p}`)] - one.p50));
    this.spread = Math.log(median(latencies.map((one) => one.p90 / one.p50)));
    const { stall, share } = this.tails[99];
    this.parts = stall + share > 0 ? [stall, share] : [0, 1];
  }

  /** At a percentile, ms. @param {number} percentile @param {number} medianMs */
  latency(percentile, medianMs) {
    const tail = this.tails[percentile];
    return medianMs * (1 + tail.careful) + tail.stall;
  }

  /** Whose latency at that percentile is so much, ms. @param {number} percentile @param {number} latencyMs */
  median(percentile, latencyMs) {
    const tail = this.tails[percentile];
    return (latencyMs - tail.stall) / (1 + tail.careful);
  }

  /** How many times the excess of a run the excess of a longer one is. @param {number} shorter @param {number} longer */
  growth(shorter, longer) {
    const [stall, share] = this.parts;
    return (stall + share * longer) / (stall + share * shorter);
  }

  /** The run that reaches the limit with that excess grown to it, ms. @param {number} base @param {number} excess @param {number} limit */
  longest(base, excess, limit) {
    const [stall, share] = this.parts;
    const times = excess / (stall + share * base);
    return (limit - times * stall) / (1 + times * share);
  }
}
