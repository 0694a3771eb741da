// A state of charge, and what changes when it runs low.

import { BudgetError, changed, floorOf, OBJECTIVES, shown } from "./budget.js";
import { general } from "./words.js";

/** @typedef {{percent: number, discharging?: boolean}} Battery `discharging` false: plugged in, or not known */
/** @typedef {{below_percent: number, until_percent?: number|null, objective?: string, keep_quality?: number, keep_accuracy?: number,
 *   energy_share?: number|null, latency_share?: number|null}} PowerLevel */
/** @typedef {{levels?: PowerLevel[], charging?: "unlimited"|"hold", low_power?: boolean, low_percent?: number, keep_quality?: number,
 *   keep_accuracy?: number}} BatteryPolicy */
/** @typedef {import("./budget.js").Checked} Checked */

const LEVEL = ["below_percent", "until_percent", "objective", "keep_quality", "keep_accuracy", "energy_share", "latency_share"];
const POLICY = ["levels", "charging", "low_power"];
const SHORT = ["low_percent", "keep_quality", "keep_accuracy"];
const checked = new WeakSet();

/** @param {unknown} value @param {number} least @param {number} most */
const isWithin = (value, least, most) => typeof value === "number" && value >= least && value <= most;

/** @param {unknown} given @param {string} what @param {string[]} known @param {string} [where] */
function refuseUnknown(given, what, known, where = "") {
  if (typeof given !== "object" || given === null || Array.isArray(given)) throw wrong(what, given, `an object with ${known.join(", ")}`);
  for (const [name, value] of Object.entries(given)) if (value !== undefined && !known.includes(name)) throw wrong(where + name, value, `one of ${known.join(", ")} as a field`);
}

/** @param {string} field @param {unknown} value @param {string} allowed */
const wrong = (field, value, allowed) => new BudgetError(`${field} = ${shown(value)}: allowed is ${allowed}`, field);

/** A policy, checked, with what was left out. `low_percent`, `keep_quality` and `keep_accuracy` are short for one level. Raises BudgetError
 * naming the field, the value and what is allowed.
 * @param {BatteryPolicy} given */
export function policy(given) {
  if (checked.has(given)) return /** @type {Policy} */ (given);
  refuseUnknown(given, "policy", [...POLICY, ...SHORT]);
  const { charging = "unlimited", low_power = false, low_percent = 20, keep_quality, keep_accuracy } = given;
  const short = SHORT.filter((name) => /** @type {any} */ (given)[name] !== undefined);
  if (short.length && given.levels !== undefined) throw new BudgetError(`${short.join(" and ")}: short for one level, does not go with levels`, short[0]);
  if (charging !== "unlimited" && charging !== "hold") throw wrong("charging", charging, "unlimited, hold");
  if (typeof low_power !== "boolean") throw wrong("low_power", low_power, "true or false");
  if (given.levels !== undefined && !Array.isArray(given.levels)) throw wrong("levels", given.levels, "a list of levels");
  const whole = [{ below_percent: 20, until_percent: 25 }];
  const levels = (short.length ? [{ below_percent: low_percent, keep_quality, keep_accuracy }] : (given.levels ?? whole)).map((one, i) => level(one, short.length ? "" : `levels.${i}.`));
  const begins = levels.map((one) => one.below_percent);
  if (new Set(begins).size < begins.length) throw new BudgetError(`levels: below_percent = ${begins.map((one) => general(one)).join(", ")}; allowed is each value once`, "levels");
  if (low_power && !levels.length) throw wrong("low_power", true, "true with at least one level");
  const found = Object.freeze({ charging, low_power, levels });
  checked.add(found);
  return found;
}

/** @param {PowerLevel} given @param {string} where */
function level(given, where) {
  refuseUnknown(given, where.slice(0, -1) || "policy", LEVEL, where);
  const { below_percent, until_percent = null, objective = "energy", keep_quality, keep_accuracy = 0.97, energy_share = null, latency_share = null } = given;
  if (!(isWithin(below_percent, 0, 100) && below_percent > 0)) throw wrong(where ? `${where}below_percent` : "low_percent", below_percent, "above 0 and up to 100");
  const ends_at = until_percent ?? below_percent;
  if (!isWithin(ends_at, below_percent, 100)) throw wrong(`${where}until_percent`, until_percent, `below_percent = ${general(below_percent)} or more, up to 100`);
  if (!OBJECTIVES.includes(objective)) throw wrong(`${where}objective`, objective, OBJECTIVES.join(", "));
  if (keep_quality !== undefined && given.keep_accuracy !== undefined) throw new BudgetError(`${where}keep_quality and ${where}keep_accuracy given; allowed is one of the two`, `${where}keep_quality`);
  const keeps = keep_quality === undefined ? keep_accuracy : keep_quality;
  if (!isWithin(keeps, 0, 1)) throw wrong(`${where}keep_${keep_quality === undefined ? "accuracy" : "quality"}`, keeps, "a share from 0 to 1");
  for (const [name, share] of Object.entries({ energy_share, latency_share })) if (share !== null && !(isWithin(share, 0, 1) && share > 0)) throw wrong(where + name, share, "a share above 0, up to 1");
  return Object.freeze({ below_percent, until_percent, objective, keep_quality: keeps, energy_share, latency_share, ends_at });
}
/** @typedef {Readonly<{charging: "unlimited"|"hold", low_power: boolean, levels: Level[]}>} Policy */
/** @typedef {ReturnType<typeof level>} Level */

/** Below 20 % and discharging: the least energy that keeps 97 % of the best quality, until 25 %. */
export const DEFAULT_POLICY = policy({});

/** Raises BudgetError where it is none. @param {unknown} given @returns {Battery|null} */
export function battery(given) {
  if (given === null || given === undefined) return null;
  const { percent, discharging = false } = /** @type {Battery} */ (given);
  const known = typeof given === "object" && Object.keys(given).every((name) => ["percent", "discharging"].includes(name));
  if (!(known && isWithin(percent, 0, 100) && typeof discharging === "boolean"))
    throw new BudgetError(`battery = ${shown(given)}: allowed are 0 to 100 per cent, such as {percent: 15, discharging: true}`, "battery");
  return { percent, discharging };
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
