// A state of charge, and what changes when it runs low.

import { BudgetError, changed, floorOf, OBJECTIVES } from "./budget.js";
import { general } from "./words.js";

/** @typedef {{percent: number, discharging?: boolean}} Battery `discharging` false: plugged in, or not known */
/** @typedef {{below_percent: number, until_percent?: number|null, objective?: string, keep_quality?: number, keep_accuracy?: number,
 *   energy_share?: number|null, latency_share?: number|null}} PowerLevel */
/** @typedef {{levels?: PowerLevel[], charging?: "unlimited"|"hold", low_power?: boolean}} BatteryPolicy */
/** @typedef {import("./budget.js").Checked} Checked */

/** Below 20 % and discharging: the least energy that keeps 97 % of the best quality, until 25 %. */
export const DEFAULT_POLICY = policy({ levels: [{ below_percent: 20, until_percent: 25 }] });

/** A policy, checked, with what was left out. @param {BatteryPolicy} given */
export function policy(given) {
  const levels = (given.levels ?? [{ below_percent: 20, until_percent: 25 }]).map((one) => {
    const level = { objective: "energy", energy_share: null, latency_share: null, ...one, keep_quality: one.keep_quality ?? one.keep_accuracy ?? 0.97 };
    const until = one.until_percent ?? one.below_percent;
    if (!(one.below_percent > 0 && one.below_percent <= 100)) throw new BudgetError(`below_percent = ${one.below_percent}: allowed is above 0 and up to 100`, "below_percent");
    if (!(until >= one.below_percent && until <= 100)) throw new BudgetError(`until_percent = ${until}: allowed is below_percent = ${one.below_percent} or more`, "until_percent");
    if (!OBJECTIVES.includes(level.objective)) throw new BudgetError(`objective = '${level.objective}': allowed is ${OBJECTIVES.join(", ")}`, "objective");
    return Object.freeze({ ...level, ends_at: until });
  });
  return Object.freeze({ charging: "unlimited", low_power: false, ...given, levels });
}
/** @typedef {ReturnType<typeof policy>} Policy */
/** @typedef {Policy["levels"][number]} Level */

/** Raises BudgetError where it is none. @param {unknown} given @returns {Battery|null} */
export function battery(given) {
  if (given === null || given === undefined) return null;
  const { percent } = /** @type {Battery} */ (given);
  if (!(typeof percent === "number" && percent >= 0 && percent <= 100)) throw new BudgetError(`battery = ${JSON.stringify(given)}: allowed are 0 to 100 per cent, such as {percent: 15, discharging: true}`, "battery");
  return /** @type {Battery} */ (given);
}

/** The level that counts now, or null. `held`: the one that counted before, which ends only at its `until_percent`.
 * @param {Policy} of @param {Battery|null} now @param {Level|null} [held] @param {boolean} [lowPower] @returns {Level|null} */
export function levelOf(of, now, held = null, lowPower = of.low_power) {
  const least = (/** @type {Level[]} */ levels) => levels.reduce((/** @type {Level|null} */ a, b) => (a && a.below_percent <= b.below_percent ? a : b), null);
  if (lowPower) return least(of.levels);
  if (now === null || (of.charging === "unlimited" && !now.discharging)) return null;
  const { percent } = now;
  return least(of.levels.filter((one) => percent < one.below_percent || (held !== null && one.below_percent >= held.below_percent && percent < one.ends_at)));
}

/** The budgets to try in turn at a level: narrowed by it; without the quality that it would keep; as it is. `ranked`: the candidates,
 * the best first; caps are shares of what that takes, of the energy of the best whose energy is known.
 * @param {Checked} budget @param {Level} level @param {import("./candidates.js").Candidate[]} ranked @param {number} bestQuality */
export function narrowed(budget, level, ranked, bestQuality) {
  const energy = ranked.find((one) => one.energy_mj < Infinity)?.energy_mj ?? null;
  const caps = capsOf(budget, level, ranked[0].latency_ms, energy);
  const given = floorOf(budget);
  let objective = level.objective === "energy" && energy === null ? "latency" : level.objective;
  if (objective === "accuracy") objective = "quality";
  const tries = [changed(budget, { ...caps, objective, min_quality: given ?? level.keep_quality * bestQuality, min_accuracy: null })];
  const capped = Object.keys(caps).length > 0;
  if (capped && given === null) tries.push(changed(budget, caps));
  if (capped || given === null) tries.push(budget);
  return tries;
}

/** As limits that are at least as tight as the budget's. @param {Checked} budget @param {Level} level @param {number} latencyMs @param {number|null} energyMj */
function capsOf(budget, level, latencyMs, energyMj) {
  /** @type {{latency_ms?: number, energy_mj?: number}} */
  const caps = {};
  if (level.latency_share !== null) caps.latency_ms = Math.min(level.latency_share * latencyMs, budget.latency_ms ?? Infinity);
  if (level.energy_share === null) return caps;
  if (energyMj !== null) caps.energy_mj = Math.min(level.energy_share * energyMj, budget.energy_mj ?? Infinity);
  else caps.latency_ms = Math.min(level.energy_share * latencyMs, caps.latency_ms ?? budget.latency_ms ?? Infinity);
  return caps;
}

/** What `choose` finds for the first of the tries that can be kept, or for the last; and why anything was saved.
 * @template {{feasible: boolean, reason: string}} S
 * @param {Checked[]} tries @param {Checked} budget @param {Level} level @param {Battery|null} now @param {(one: Checked) => S} choose @returns {S} */
export function firstFeasible(tries, budget, level, now, choose) {
  let [found, one] = [/** @type {S|null} */ (null), budget];
  for (one of tries) if ((found = choose(one)).feasible) break;
  const selection = /** @type {S} */ (found);
  if (one === budget) return selection;
  if (now === null || now.percent >= level.ends_at) return { ...selection, reason: `low-power mode: ${selection.reason}` };
  return { ...selection, reason: `battery at ${general(now.percent)} %${now.discharging ? " and discharging" : ""}: ${selection.reason}` };
}
