// What may be chosen on a device, sub-models and cascades alike, with quality and costs.

import { BudgetError } from "./budget.js";
import { Lasting } from "./lasting.js";
import { Curve, atLength, hasLengths } from "./lengths.js";
import { fixed } from "./words.js";

/** @typedef {import("./lengths.js").LatencyMs} LatencyMs */
/** @typedef {{latency_ms: LatencyMs, lengths?: Record<string, LatencyMs>, decoding?: object|null, load_ms?: number|null,
 *   memory_mb?: number|null, energy_mj?: number|null, source?: Record<string, string>}} Measurement of one sub-model, as in a profile */
/** @typedef {{device: {name: string}, submodels: Record<string, Measurement>,
 *   sustained?: import("./lasting.js").Sustained|null, [more: string]: any}} Profile `profiles/<device>.json` */
/** @typedef {{id: string, first: string, then: string, threshold: number, escalation: number, accuracy: number,
 *   then_accuracy?: number|null, first_accuracy?: number|null}} Cascade as in `cascades.json` */
/** @typedef {{submodel: string, device: string, key: string, quality: number, costs: Measurement, stages: string[],
 *   threshold: number|null, words: string, lasting: Lasting|null}} Offer */
/** @typedef {{submodel: string, device: string, key: string, quality: number, latency_ms: number, energy_mj: number,
 *   memory_mb: number}} Candidate at one percentile; an unknown cost is infinite, so that no limit is met on a guess */

/** Of a sub-model or a cascade and the profile that it was measured for. @param {string} submodel @param {string} device */
export const keyOf = (submodel, device) => `${submodel}\n${device}`;

/** Built once for the profiles of one device, qualities by sub-model, and the bundle's cascades. */
export class Candidates {
  /** @param {Offer[]} offers @param {string} [metric] that the qualities are of */
  constructor(offers, metric = "accuracy") {
    this.offers = offers;
    this.metric = metric;
    this.hasLasting = offers.some((offer) => offer.lasting !== null);
    this.hasLengths = offers.some((offer) => hasLengths(offer.costs));
    /** @type {Map<string, Curve>|undefined} */
    this.curves = undefined;
  }

  /**
   * Every measured sub-model of known quality, and every cascade of which a profile knows both sub-models.
   * @param {Profile[]} profiles @param {Record<string, number|null>} qualities
   * @param {{cascades?: Cascade[], metric?: string}} [more] @returns {Candidates}
   */
  static measured(profiles, qualities, { cascades = [], metric = "accuracy" } = {}) {
    if (cascades.length && metric !== "accuracy")
      throw new BudgetError(`cascades: the metric here is ${metric}; allowed are bundles of accuracy, which they keep`);
    const names = profiles.map((profile) => profile.device.name);
    if (new Set(names).size < names.length) throw new BudgetError(`profiles: of devices ${names.map((name) => `'${name}'`).join(", ")}; allowed is one of each name`);
    /** @type {Offer[]} */
    const offers = [];
    for (const profile of profiles) {
      const [device, all] = [profile.device.name, profile.submodels];
      const lasting = profile.sustained ? new Lasting(profile.sustained) : null;
      for (const [submodel, costs] of Object.entries(all)) {
        if (costs.decoding) throw new BudgetError(`device ${device}: ${submodel} generates text, which this client does not do`);
        const quality = qualities[submodel] ?? null;
        if (quality !== null) offers.push({ submodel, device, key: keyOf(submodel, device), quality, costs, stages: [], threshold: null, words: "", lasting });
      }
      for (const one of cascades) {
        const [first, then] = [all[one.first], all[one.then]];
        if (!first || !then) continue;
        const costs = expected(first, then, one.escalation);
        const words = `a cascade: ${one.first}, and where that is not sure (${fixed(one.escalation * 100, 0)}%) ${one.then}`;
        const quality = qualityOf(one, qualities);
        const stages = [one.first, one.then];
        offers.push({ submodel: one.id, device, key: keyOf(one.id, device), quality, costs, stages, threshold: one.threshold, words, lasting });
      }
    }
    return new Candidates(offers, metric);
  }

  /** The same with what they cost for an input of that length. @param {number} length */
  atLength(length) {
    this.curves ??= new Map(this.offers.filter((one) => hasLengths(one.costs)).map((one) => [one.key, new Curve(/** @type {any} */ (one.costs.lengths))]));
    return new Candidates(this.offers.map((one) => ({ ...one, costs: atLength(one.costs, length, this.curves?.get(one.key)) })), this.metric);
  }

  /** The same with what they cost in steady work; as they are where the device was not kept busy. */
  sustained() {
    return new Candidates(this.offers.map((one) => (one.lasting ? { ...one, costs: one.lasting.costs(one.costs) } : one)), this.metric);
  }

  /** What steady work takes more on a device; null where nobody knows. @param {string} device */
  lastingOf(device) {
    return this.offers.find((one) => one.device === device)?.lasting ?? null;
  }

  /** All at p50, p90 or p99 of their latency. @param {number} percentile @returns {Candidate[]} */
  at(percentile) {
    const name = /** @type {"p50"} */ (`p${percentile}`);
    return this.offers.map(({ submodel, device, key, quality, costs }) => ({
      submodel,
      device,
      key,
      quality,
      latency_ms: costs.latency_ms[name],
      energy_mj: costs.energy_mj ?? Infinity,
      memory_mb: costs.memory_mb ?? Infinity,
    }));
  }
}

/** Compares by the first of these that differs. @param {...((one: any) => number)} of */
export const by = (...of) => (/** @type {any} */ a, /** @type {any} */ b) => {
  for (const value of of) {
    const [x, y] = [value(a), value(b)];
    if (x < y) return -1;
    if (x > y) return 1;
  }
  return 0;
};

/** Without those that another one equals or beats in every respect and beats in one. @param {Candidate[]} candidates */
export function pareto(candidates) {
  /** @type {number[][]} */
  const kept = [];
  const frontier = [];
  const sorted = [...candidates].sort(by((c) => c.latency_ms, (c) => c.energy_mj, (c) => c.memory_mb, (c) => -c.quality));
  for (const one of sorted) {
    const row = [one.latency_ms, one.energy_mj, one.memory_mb, -one.quality];
    const beaten = kept.some((k) => k.every((value, i) => value <= row[i]) && k.some((value, i) => value !== row[i]));
    if (beaten) continue;
    kept.push(row);
    frontier.push(one);
  }
  return frontier;
}

/** Ascending costs, and the best candidate that each affords. @param {Candidate[]} candidates
 * @param {"latency_ms"|"energy_mj"|"memory_mb"} cost @returns {{costs: number[], best: Candidate[]}} */
export function staircase(candidates, cost) {
  const [costs, best] = [/** @type {number[]} */ ([]), /** @type {Candidate[]} */ ([])];
  for (const one of [...candidates].sort(by((c) => c[cost], (c) => -c.quality))) {
    if (one[cost] === Infinity || (best.length && one.quality <= best[best.length - 1].quality)) continue;
    costs.push(one[cost]);
    best.push(one);
  }
  return { costs, best };
}

/** A cascade's accuracy on the split that the sub-models' qualities are of. @param {Cascade} one @param {Record<string, number|null>} qualities */
function qualityOf(one, qualities) {
  const [known, first] = [qualities[one.then] ?? null, qualities[one.first] ?? null];
  const [then, firstThere] = [one.then_accuracy ?? null, one.first_accuracy ?? null];
  if (known === null || then === null) return one.accuracy;
  let change = known - then;
  if (first !== null && firstThere !== null) change = one.escalation * change + (1 - one.escalation) * (first - firstThere);
  return Math.min(1, Math.max(0, one.accuracy + change));
}

/** What a cascade of two is expected to cost. @param {Measurement} first @param {Measurement} then @param {number} escalation @returns {Measurement} */
function expected(first, then, escalation) {
  const both = (/** @type {"energy_mj"|"memory_mb"} */ name, /** @type {number} */ share) => {
    const [a, b] = [first[name] ?? null, then[name] ?? null];
    return a === null || b === null ? null : a + share * b;
  };
  /** @type {Record<string, LatencyMs>} */
  const lengths = {};
  if (hasLengths(first) && hasLengths(then)) {
    const [a, b] = [new Curve(/** @type {any} */ (first.lengths)), new Curve(/** @type {any} */ (then.lengths))];
    const all = [...new Set([...a.lengths, ...b.lengths])].sort((x, y) => x - y);
    for (const length of all) lengths[length] = expectedLatency(a.latency(length), b.latency(length), escalation);
  }
  const latency_ms = expectedLatency(first.latency_ms, then.latency_ms, escalation);
  return { latency_ms, lengths, energy_mj: both("energy_mj", escalation), memory_mb: both("memory_mb", 1) };
}

/** At a percentile both sub-models' where more than the rest is passed on; at the median at least the mean.
 * @param {LatencyMs} a @param {LatencyMs} b @param {number} escalation @returns {LatencyMs} */
function expectedLatency(a, b, escalation) {
  const at = (/** @type {50|90|99} */ p) => a[`p${p}`] + (escalation > 1 - p / 100 ? b[`p${p}`] : 0);
  const p50 = Math.max(at(50), a.p50 + escalation * b.p50);
  const p90 = Math.max(p50, at(90));
  return { p50, p90, p99: Math.max(p90, at(99)), mean: a.mean + escalation * b.mean, n: 0 };
}
