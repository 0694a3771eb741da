// What a device takes that is kept busy: `device_profiles/sustained.py` says how and why.

/** @typedef {import("./lengths.js").LatencyMs} LatencyMs */
/** @typedef {import("./candidates.js").Measurement} Measurement */
/** @typedef {{submodel: string, minutes: number, first: LatencyMs, after: LatencyMs, first_energy_mj?: number|null,
 *   after_energy_mj?: number|null, [more: string]: any}} Sustained as a profile has it */

/** By how much steady work is slower than the first minute, and what it takes more. */
export class Lasting {
  /** @param {Sustained} sustained */
  constructor({ first, after, first_energy_mj: before = null, after_energy_mj: later = null }) {
    const times = (/** @type {"p50"|"p90"|"p99"|"mean"} */ name) => Math.max(1, after[name] / first[name]); // a noisy first minute promises nothing
    this.latency = { p50: times("p50"), p90: times("p90"), p99: times("p99"), mean: times("mean") };
    this.energy = before && later !== null ? later / before : 1;
  }

  /** For p50, p90 or p99. @param {number} percentile */
  at(percentile) {
    return this.latency[/** @type {"p50"} */ (`p${percentile}`)];
  }

  /** What the sub-model costs in steady work, of what it costs in the first minute. @param {Measurement} first @returns {Measurement} */
  costs(first) {
    const lengths = Object.fromEntries(Object.entries(first.lengths ?? {}).map(([length, one]) => [length, this._latency(one)]));
    const energy = first.energy_mj ?? null;
    return { ...first, latency_ms: this._latency(first.latency_ms), lengths, energy_mj: energy === null ? null : energy * this.energy };
  }

  /** @param {LatencyMs} first @returns {LatencyMs} */
  _latency(first) {
    const p50 = first.p50 * this.latency.p50;
    const p90 = Math.max(p50, first.p90 * this.latency.p90);
    return { p50, p90, p99: Math.max(p90, first.p99 * this.latency.p99), mean: first.mean * this.latency.mean, n: 0 };
  }
}
