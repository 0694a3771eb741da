// The decision for every run, and what is learnt from it. Pure: time comes in as an argument. `selector/adapt/controller.py`.

import { battery as checkedBattery, levelOf } from "./battery.js";
import { budget as checkedBudget, checkMetric, wantsTheBest } from "./budget.js";
import { keyOf } from "./candidates.js";
import { SlowDown } from "./feedback.js";
import { Curve, hasLengths } from "./lengths.js";
import { Quiet } from "./quiet.js";
import { excess, LENGTHS, nearestPercentile } from "./selector.js";
import { fixed, general } from "./words.js";

/** @typedef {import("./selector.js").Selection} Selection */
/** @typedef {import("./budget.js").Checked} Checked */
/** @typedef {import("./battery.js").Battery} Battery */
/** @typedef {ReadonlySet<string>|null} Among */

const NONE_FITS = 1e9; // times what the profile says
const SPARE = 1.12; // a larger sub-model than the present one is taken when it fits with so much to spare

/** Chooses by a selector, corrected by what earlier runs took. */
export class Controller {
  /** @param {import("./selector.js").Selector} selector @param {import("./candidates.js").Profile[]} profiles @param {{feedback?: boolean}} [more] */
  constructor(selector, profiles, { feedback = true } = {}) {
    this.selector = selector;
    this.feedback = feedback;
    /** @type {Map<string, SlowDown>} */
    this.slowDowns = new Map(profiles.map((profile) => [profile.device.name, new SlowDown(new Quiet(profile))]));
    /** @type {Map<string, number>} */
    this._medians = new Map();
    /** @type {Map<string, Curve>} */
    this._curves = new Map();
    for (const profile of profiles)
      for (const [name, one] of Object.entries(profile.submodels)) {
        const key = keyOf(name, profile.device.name);
        this._medians.set(key, one.latency_ms.p50);
        if (hasLengths(one)) this._curves.set(key, new Curve(/** @type {any} */ (one.lengths)));
      }
    this._tracked = [...this.slowDowns.values()];
    /** @type {Map<string, string[]>} */
    this._keysOf = new Map();
    for (const offer of selector.offered.offers) this._keysOf.set(offer.device, [...(this._keysOf.get(offer.device) ?? []), offer.key]);
    /** @type {Selection|null} */
    this._present = null;
    /** @type {Map<string, number>} */
    this._seenAt = new Map();
    /** @type {import("./battery.js").Level|null} the latest by a battery, for its hysteresis */
    this._held = null;
    /** @type {Map<number|null, {budget: Checked, reaches: number[], present: Selection|null, found: Selection}>} */
    this._latest = new Map();
  }

  /** The best for the budget at this moment, in seconds of a clock. Raises BudgetError as `Selector.select` does.
   * @param {import("./budget.js").Budget|Checked} given @param {number} now @param {Battery|null} [battery] @param {Among} [among] @returns {Selection} */
  choose(given, now, battery = null, among = null) {
    const budget = checkedBudget(given);
    checkMetric(budget, this.selector.metric);
    const level = levelOf(this.selector.policy, checkedBattery(battery), this._held);
    if (battery !== null) this._held = level;
    if (level === null) return this._corrected(budget, now, among);
    return this.selector.at(budget).saved(budget, level, battery, (one) => this._corrected(one, now, among));
  }

  /** A run of the selection has taken so long in this sub-model (default: the selected one; of a cascade its first part).
   * @param {Selection} selection @param {number} latencyMs @param {number} now @param {{ran?: string, length?: number|null}} [more] */
  observe(selection, latencyMs, now, { ran = selection.submodel, length = null } = {}) {
    const present = this._present;
    if (present === null || selection.submodel !== present.submodel || selection.device !== present.device) this._present = selection;
    const slowDown = this.slowDowns.get(selection.device);
    const key = keyOf(ran, selection.device);
    const curve = length === null ? undefined : this._curves.get(key);
    const expected = curve ? curve.at(/** @type {number} */ (length)) : this._medians.get(key);
    if (!slowDown || expected === undefined) return;
    slowDown.observe(selection.submodel, expected, latencyMs, now);
    const since = this._seenAt.get(selection.device) ?? now;
    for (const [device, other] of this.slowDowns) if (other !== slowDown) other.approach(slowDown, now - Math.max(since, this._seenAt.get(device) ?? since)); // for as long as neither has run
    this._seenAt.set(selection.device, now);
  }

  /** How much slower than its profile this device's level is now. @param {string} device */
  slowDown(device) {
    return Math.exp(this.slowDowns.get(device)?.level ?? 0);
  }

  /** @param {Checked} budget @param {number} now @param {Among} among @returns {Selection} */
  _corrected(budget, now, among) {
    if (budget.latency_ms === null || !this.feedback) return this._plain(budget, among);
    const reaches = this._reaches(budget, now);
    if (among !== null || this._tracked.some((one) => one.suspicious)) return this._chosen(budget, reaches, now, among);
    const latest = this._latest.get(budget.length);
    if (latest && latest.budget === budget && latest.present === this._present && latest.reaches.every((one, i) => one === reaches[i])) return latest.found;
    const found = this._chosen(budget, reaches, now, null);
    if (this._latest.size >= LENGTHS) this._latest.clear();
    this._latest.set(budget.length, { budget, reaches, present: this._present, found });
    return found;
  }

  /** By the profile alone; its own battery policy was seen to. @param {Checked} budget @param {Among} among @param {number} [slowdown] */
  _plain(budget, among, slowdown = 1) {
    return this.selector.at(budget)._select(budget, among, slowdown);
  }

  /** @param {Checked} budget @param {number[]} reaches @param {number} now @param {Among} among @returns {Selection} */
  _chosen(budget, reaches, now, among) {
    let wanted = this._best(budget, reaches, now, among);
    const present = this._present;
    if (present !== null && wanted.feasible && wantsTheBest(budget) && (wanted.quality ?? 0) > (present.quality ?? 0)) wanted = this._carefully(wanted, present, budget, reaches, now, among);
    const pace = this.slowDown(wanted.device);
    return Math.abs(pace - 1) > 0.05 ? { ...wanted, reason: `${wanted.reason}; runs take ${fixed(pace, 2)} times what the profile says` } : wanted;
  }

  /** One that is better than the present one only where it fits with something to spare.
   * @param {Selection} wanted @param {Selection} present @param {Checked} budget @param {number[]} reaches @param {number} now @param {Among} among */
  _carefully(wanted, present, budget, reaches, now, among) {
    if ((wanted.latency_ms ?? 0) * SPARE <= (budget.latency_ms ?? 0)) return wanted;
    const careful = this._best(budget, this._reaches(budget, now, SPARE), now, among);
    if (careful.feasible && (careful.quality ?? 0) > (present.quality ?? 0)) return careful;
    const key = keyOf(present.submodel, present.device);
    if (among !== null && !among.has(key)) return wanted;
    const staying = this._best(budget, reaches, now, new Set([key]));
    return staying.feasible ? staying : wanted;
  }

  /** For each profile the median that just keeps the deadline, shorter by the spare. @param {Checked} budget @param {number} now */
  _reaches(budget, now, spare = 1) {
    const limit = /** @type {number} */ (budget.latency_ms) / spare;
    return this._tracked.map((one) => one.reach(nearestPercentile(budget.percentile), limit, now));
  }

  /** @param {Checked} budget @param {number[]} reaches @param {number} now @param {Among} among @returns {Selection} */
  _best(budget, reaches, now, among) {
    if (reaches.length === 1) return this._bestOf(budget, among, [...this.slowDowns.keys()][0], reaches[0], now);
    /** @type {Selection[]} */
    const found = [];
    [...this.slowDowns.keys()].forEach((device, i) => {
      const keys = (this._keysOf.get(device) ?? []).filter((key) => among === null || among.has(key));
      if (keys.length) found.push(this._bestOf(budget, new Set(keys), device, reaches[i], now));
    });
    return found.reduce((a, b) => (isBefore(b, a, budget) ? b : a));
  }

  /** Of one profile; those that have lately been slower than the others are judged by themselves.
   * @param {Checked} budget @param {Among} among @param {string} device @param {number} reach @param {number} now @returns {Selection} */
  _bestOf(budget, among, device, reach, now) {
    const slowDown = /** @type {SlowDown} */ (this.slowDowns.get(device));
    const limit = /** @type {number} */ (budget.latency_ms);
    const percentile = nearestPercentile(budget.percentile);
    let left = among;
    let slowdown = reach > 0 ? Math.min(limit / slowDown.quiet.latency(percentile, reach), NONE_FITS) : NONE_FITS;
    if (Math.abs(slowdown - 1) <= 1e-9 * Math.max(Math.abs(slowdown), 1)) slowdown = 1;
    // In steady work runs take so many times what they take in the first minute, by which the selector's figures are then.
    const lasting = budget.sustained ? (this.selector.offered.lastingOf(device)?.at(percentile) ?? null) : null;
    if (lasting !== null) slowdown = Math.max(1, slowdown / lasting);
    /** @type {Selection|null} of those that would fit, were they not slower by themselves, the fastest */
    let missed = null;
    for (;;) {
      let found = this._plain(budget, left, slowdown);
      const expected = slowDown.quiet.median(percentile, (found.latency_ms ?? 0) / slowdown / (lasting ?? 1));
      let [taking, quiet] = [slowDown.latency(percentile, expected, now), slowDown.quiet.latency(percentile, expected)];
      if (lasting !== null) [taking, quiet] = [Math.max(taking, lasting * quiet), lasting * quiet]; // it may not be warm yet
      if (found.feasible) found = { ...found, latency_ms: Math.min(taking, limit) };
      else found = this._plain(budget, left, taking / quiet);
      if (!slowDown.suspicious) return found;
      const latency = (found.latency_ms ?? 0) * slowDown.offset(found.submodel, now);
      if (!found.feasible) return missed && (missed.latency_ms ?? 0) < latency ? missed : found;
      if (latency <= limit) return { ...found, latency_ms: latency };
      const reason = `nothing fits: the nearest sub-model has latency ${general(latency, 4)} ms, limit ${general(limit)} ms`;
      if (missed === null || latency < (missed.latency_ms ?? 0)) missed = { ...found, latency_ms: latency, feasible: false, reason };
      const gone = keyOf(found.submodel, found.device);
      left = new Set([...(left ?? this.selector.keys)].filter((key) => key !== gone));
    }
  }
}

/** Whether one of several devices' best comes before another. @param {Selection} a @param {Selection} b @param {Checked} budget */
function isBefore(a, b, budget) {
  const row = (/** @type {Selection} */ one) => {
    const [quality, latency] = [-(one.quality ?? 0), one.latency_ms ?? 0];
    if (!one.feasible) return [1, excess(one, budget), latency]; // the nearest
    const better = wantsTheBest(budget) ? [quality, latency] : budget.objective === "latency" ? [latency, quality] : [one.energy_mj ?? Infinity, latency];
    return [0, ...better];
  };
  const [x, y] = [row(a), row(b)];
  for (let i = 0; i < x.length; i++) if (x[i] !== y[i]) return x[i] < y[i];
  return false;
}
