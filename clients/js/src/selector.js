// Budget to sub-model. Pure: what can be sorted is sorted once, a query is a bisection.

import { battery as checkedBattery, DEFAULT_POLICY, firstFeasible, levelOf, narrowed, policy as checkedPolicy } from "./battery.js";
import { BudgetError, budget as checkedBudget, checkMetric, floorOf, wantsTheBest } from "./budget.js";
import { by, Candidates, pareto, staircase } from "./candidates.js";
import { bucket } from "./lengths.js";
import { general, metricName } from "./words.js";

/** @typedef {import("./budget.js").Budget} Budget */
/** @typedef {import("./budget.js").Checked} Checked */
/** @typedef {import("./battery.js").Battery} Battery */
/** @typedef {import("./battery.js").Level} Level */
/** @typedef {import("./candidates.js").Candidate} Candidate */
/** @typedef {import("./candidates.js").Profile} Profile */
/**
 * @typedef {Object} Selection which sub-model to run, what it is expected to cost on this device, and why
 * @property {string} submodel or a cascade's name; then `stages` are the sub-models that it asks
 * @property {boolean} feasible false when nothing fits: the sub-model is then the nearest one
 * @property {number|null} quality
 * @property {string} metric
 * @property {number|null} latency_ms at the budget's percentile
 * @property {number|null} energy_mj
 * @property {number|null} memory_mb
 * @property {string} reason
 * @property {string} device the profile that it was chosen by
 * @property {string[]} stages
 * @property {number|null} threshold the second stage is asked where the first's margin is below it
 */

export const PERCENTILES = [50, 90, 99];
const LIMITS = /** @type {const} */ (["latency_ms", "energy_mj", "memory_mb"]);
const NAMES = { latency_ms: "latency", energy_mj: "energy", memory_mb: "memory" };
const UNITS = { latency_ms: "ms", energy_mj: "mJ", memory_mb: "MB" };
const HOW = { latency_ms: "", energy_mj: " (to be had by: sortednet profile --watts WATTS)", memory_mb: "" };
export const LENGTHS = 32; // whose candidates are kept

/** The first of those that a profile holds which is not below. @param {number} asked */
export const nearestPercentile = (asked) => (asked <= 50 ? 50 : asked <= 90 ? 90 : 99);

/** Picks among candidates. What another one beats on measured cost and quality is dropped when it is built. */
export class Selector {
  /** Raises BudgetError when of nothing that was measured the quality is known.
   * @param {Candidates} candidates @param {{policy?: import("./battery.js").BatteryPolicy, at?: string|null, lasts?: boolean}} [more] */
  constructor(candidates, { policy = DEFAULT_POLICY, at = null, lasts = false } = {}) {
    if (!candidates.offers.length) throw new BudgetError(`no ${metricName(candidates.metric)} is known for any measured sub-model: export with test data`);
    this.policy = checkedPolicy(policy);
    this.offered = candidates;
    this.metric = candidates.metric;
    this.keys = candidates.offers.map((offer) => offer.key);
    this._at = at ?? "whatever the length, because inputs of one only were measured";
    this._isThere = at !== null;
    this._lasts = lasts;
    /** @type {Selector|null} */
    this._inSteadyWork = null;
    this._bestQuality = Math.max(...candidates.offers.map((offer) => offer.quality));
    this._cascades = new Map(candidates.offers.filter((offer) => offer.stages.length).map((offer) => [offer.submodel, offer]));
    this._frontiers = new Map(PERCENTILES.map((p) => [p, new Frontier(candidates.at(p))]));
    /** @type {Map<number, Selector>} */
    this._atLengths = new Map();
    /** @type {{budget: Checked, level: Level, tries: Checked[]}|null} */
    this._saving = null;
  }

  /** For the sub-models of these profiles, by qualities of the name.
   * @param {Profile|Profile[]} profiles @param {Record<string, number|null>} qualities
   * @param {{metric?: string, cascades?: import("./candidates.js").Cascade[], policy?: import("./battery.js").BatteryPolicy}} [more] */
  static of(profiles, qualities, { metric, cascades, policy } = {}) {
    return new Selector(Candidates.measured(Array.isArray(profiles) ? profiles : [profiles], qualities, { metric, cascades }), { policy });
  }

  /** The one for inputs of that length, rounded up by an eighth at most; itself where the profile knows no lengths. @param {number|null} length @returns {Selector} */
  atLength(length) {
    if (length === null || this._isThere || !this.offered.hasLengths) return this;
    const end = bucket(length);
    let found = this._atLengths.get(end);
    if (!found) {
      if (this._atLengths.size >= LENGTHS) this._atLengths.delete(/** @type {number} */ (this._atLengths.keys().next().value));
      found = new Selector(this.offered.atLength(end), { policy: this.policy, at: `for inputs of up to ${end}`, lasts: this._lasts });
      this._atLengths.set(end, found);
    }
    return found;
  }

  /** The one for work that lasts longer than a minute; itself where no profile says what holds then. @returns {Selector} */
  get sustained() {
    if (this._lasts || this._isThere || !this.offered.hasLasting) return this;
    this._inSteadyWork ??= new Selector(this.offered.sustained(), { policy: this.policy, lasts: true });
    return this._inSteadyWork;
  }

  /** The one for inputs and work as long as the budget says. @param {Checked} budget @returns {Selector} */
  at(budget) {
    return (budget.sustained ? this.sustained : this).atLength(budget.length);
  }

  /** For a cost: ascending costs and the best that each affords.
   * @param {"latency_ms"|"energy_mj"|"memory_mb"} cost @param {number} [percentile] */
  affordedBy(cost, percentile = 50) {
    return /** @type {Frontier} */ (this._frontiers.get(percentile)).byCost[cost];
  }

  /**
   * The best sub-model within the budget, of `among` (keys) where that is given; `feasible: false` with the nearest when nothing
   * fits. All latencies are taken `slowdown` times. Raises BudgetError naming the field.
   * @param {Budget|Checked} [given] @param {Battery|null} [battery] @param {{among?: ReadonlySet<string>|null, slowdown?: number}} [more]
   * @returns {Selection}
   */
  select(given = {}, battery = null, { among = null, slowdown = 1 } = {}) {
    const budget = checkedBudget(given);
    const there = this.at(budget);
    if (there !== this) return there.select(budget, battery, { among, slowdown });
    checkMetric(budget, this.metric);
    const now = checkedBattery(battery);
    if (now !== null || this.policy.low_power) {
      const level = levelOf(this.policy, now);
      if (level !== null) return this.saved(budget, level, now, (one) => this._select(one, among, slowdown));
    }
    return this._select(budget, among, slowdown);
  }

  /** What `choose` finds at a level of the battery policy, and why anything was saved.
   * @param {Checked} budget @param {Level} level @param {Battery|null} now @param {(one: Checked) => Selection} choose */
  saved(budget, level, now, choose) {
    if (this._saving?.budget !== budget || this._saving.level !== level) {
      const ranked = /** @type {Frontier} */ (this._frontiers.get(nearestPercentile(budget.percentile))).order.quality;
      this._saving = { budget, level, tries: narrowed(budget, level, ranked, this._bestQuality) };
    }
    return firstFeasible(this._saving.tries, budget, level, now, choose);
  }

  /** @param {Checked} budget @param {ReadonlySet<string>|null} among @param {number} slowdown @returns {Selection} */
  _select(budget, among, slowdown) {
    const frontier = /** @type {Frontier} */ (this._frontiers.get(nearestPercentile(budget.percentile)));
    const floor = floorOf(budget);
    const latency = budget.latency_ms === null ? Infinity : budget.latency_ms / slowdown;
    const [energy, memory] = [budget.energy_mj ?? Infinity, budget.memory_mb ?? Infinity];
    const limits = LIMITS.filter((name) => budget[name] !== null);
    let found;
    if (among === null && floor === null && wantsTheBest(budget) && limits.length === 1) {
      const { costs, best } = frontier.byCost[limits[0]];
      found = best[bisectRight(costs, { latency_ms: latency, energy_mj: energy, memory_mb: memory }[limits[0]]) - 1];
    } else found = frontier.first(budget.objective, latency, energy, memory, floor ?? 0, among);
    if (!found) return this._nearest(budget, frontier, among, slowdown);
    const slow = slowed(found, slowdown);
    return this._selection(slow, true, this._told(reason(slow, budget, this.metric), budget));
  }

  /** With what the figures are of, where the budget says what they should be of. @param {string} why @param {Checked} budget */
  _told(why, budget) {
    const said = budget.length === null ? why : `${why}, ${this._at}`;
    if (this._lasts) return `${said}, in steady work`;
    return budget.sustained ? `${said}, in the first minute: nothing longer was measured (sortednet profile --sustain)` : said;
  }

  /** The sub-model that misses the budget by least, summed over the limits relative to each.
   * @param {Checked} budget @param {Frontier} frontier @param {ReadonlySet<string>|null} among @param {number} slowdown */
  _nearest(budget, frontier, among, slowdown) {
    let allowed = frontier.byLatency;
    if (among !== null) {
      const within = allowed.filter((one) => among.has(one.key));
      if (within.length) allowed = within;
    }
    const alone = budget.energy_mj === null && budget.memory_mb === null && floorOf(budget) === null;
    let nearest = slowed(allowed[0], slowdown); // the fastest
    if (budget.latency_ms === null || !alone) {
      let least = [Infinity, Infinity];
      for (const one of allowed.map((candidate) => slowed(candidate, slowdown))) {
        const row = [excess(one, budget), one.latency_ms];
        if (row[0] < least[0] || (row[0] === least[0] && row[1] < least[1])) [nearest, least] = [one, row];
      }
    }
    const missed = this._told(misses(nearest, budget, this.metric), budget);
    return this._selection(nearest, false, `nothing fits: the nearest sub-model has ${missed}`);
  }

  /** @param {Candidate} one @param {boolean} feasible @param {string} why @returns {Selection} */
  _selection(one, feasible, why) {
    const cascade = this._cascades.get(one.submodel);
    return {
      submodel: one.submodel,
      feasible,
      quality: one.quality,
      metric: this.metric,
      latency_ms: one.latency_ms,
      energy_mj: one.energy_mj === Infinity ? null : one.energy_mj,
      memory_mb: one.memory_mb === Infinity ? null : one.memory_mb,
      reason: cascade ? `${why}; ${cascade.words}` : why,
      device: one.device,
      stages: cascade?.stages ?? [],
      threshold: cascade?.threshold ?? null,
    };
  }
}

/** The candidates at one latency percentile, pruned and sorted once for every kind of query. */
class Frontier {
  /** @param {Candidate[]} candidates */
  constructor(candidates) {
    const devices = [...new Set(candidates.map((one) => one.device))];
    const kept = devices.flatMap((device) => pareto(candidates.filter((one) => one.device === device)));
    this.byLatency = [...kept].sort(by((c) => c.latency_ms, (c) => -c.quality));
    this.byCost = { latency_ms: staircase(kept, "latency_ms"), energy_mj: staircase(kept, "energy_mj"), memory_mb: staircase(kept, "memory_mb") };
    const best = [...kept].sort(by((c) => -c.quality, (c) => c.latency_ms));
    /** @type {Record<string, Candidate[]>} */
    this.order = {
      quality: best,
      accuracy: best,
      latency: this.byLatency,
      energy: [...kept].sort(by((c) => c.energy_mj, (c) => (c.energy_mj === Infinity ? c.latency_ms : 0), (c) => -c.quality)),
    };
  }

  /** The best for the objective that keeps all limits.
   * @param {string} objective @param {number} latency @param {number} energy @param {number} memory @param {number} floor @param {ReadonlySet<string>|null} among */
  first(objective, latency, energy, memory, floor, among) {
    for (const one of this.order[objective])
      if (one.latency_ms <= latency && one.memory_mb <= memory && one.energy_mj <= energy && one.quality >= floor && (among === null || among.has(one.key)))
        return one;
    return undefined;
  }
}

/** @param {number[]} sorted @param {number} limit */
function bisectRight(sorted, limit) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (limit < sorted[middle]) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** @param {Candidate} one @param {number} slowdown @returns {Candidate} */
const slowed = (one, slowdown) => (slowdown === 1 ? one : { ...one, latency_ms: one.latency_ms * slowdown });

/** Why it was chosen. @param {Candidate} one @param {Checked} budget @param {string} metric */
function reason(one, budget, metric) {
  const parts = [];
  for (const name of LIMITS)
    if (budget[name] !== null) parts.push(`${NAMES[name]} ${general(one[name], 4)} of ${general(/** @type {number} */ (budget[name]))} ${UNITS[name]}`);
  const floor = floorOf(budget);
  if (floor !== null) parts.push(`${metricName(metric)} ${general(one.quality, 4)}, at least ${general(floor, 4)}`);
  const best = metric === "accuracy" ? "most accurate" : `highest ${metricName(metric)}`;
  let wanted = wantsTheBest(budget) ? best : `least ${budget.objective}`;
  if (budget.objective === "energy" && one.energy_mj === Infinity) wanted = "least latency (energy is not known on this device: sortednet profile --watts WATTS)";
  return parts.length ? `${wanted} with ${parts.join(", ")}` : `${wanted} of all`;
}

/** By how much it misses the budget. @param {Candidate|Selection} one @param {Checked} budget */
export function excess(one, budget) {
  let over = 0;
  for (const name of LIMITS) {
    const limit = budget[name];
    if (limit !== null) over += Math.min(Math.max(0, (one[name] ?? Infinity) / limit - 1), 1e9);
  }
  const floor = floorOf(budget);
  return floor ? over + Math.max(0, 1 - (one.quality ?? 0) / floor) : over;
}

/** Which limits it misses, and by what. @param {Candidate} one @param {Checked} budget @param {string} metric */
function misses(one, budget, metric) {
  const missed = [];
  for (const name of LIMITS) {
    const limit = budget[name];
    if (limit === null || one[name] <= limit) continue;
    const figure = one[name] === Infinity ? `unknown${HOW[name]}` : `${general(one[name], 4)} ${UNITS[name]}`;
    missed.push(`${NAMES[name]} ${figure}, limit ${general(limit)} ${UNITS[name]}`);
  }
  const floor = floorOf(budget);
  if (floor !== null && one.quality < floor) missed.push(`${metricName(metric)} ${general(one.quality, 4)}, wanted ${general(floor, 4)}`);
  return missed.join("; ");
}
