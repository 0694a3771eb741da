// What one inference may cost, and what is wanted within that.

import { general } from "./words.js";

/** A budget that is no budget, or that nothing here can be compared with. */
export class BudgetError extends Error {
  /** @param {string} message @param {string} [field] the field that is wrong, where it is one */
  constructor(message, field) {
    super(message);
    this.name = "BudgetError";
    this.field = field;
  }
}

/**
 * @typedef {Object} Budget
 * All fields are optional. Quality is what the bundle's metric says, 0 to 1; `min_accuracy` and the objective `accuracy` are the
 * same where the metric is accuracy, and refused elsewhere.
 * @property {number} [latency_ms]
 * @property {number} [energy_mj]
 * @property {number} [memory_mb]
 * @property {number} [min_quality] a share, not per cent
 * @property {number} [min_accuracy]
 * @property {number} [percentile] of the latencies, above 0 and up to 99: the next of p50, p90 and p99 is taken; default 50
 * @property {"quality"|"accuracy"|"energy"|"latency"} [objective] default quality
 * @property {number} [length] of the input, such as a text's tokens; no limit
 * @property {boolean} [sustained] the work lasts longer than a minute: by what holds then, where the profile says it; no limit
 */

/**
 * @typedef {Object} Checked what `budget` returns: every field, null where it is not given
 * @property {number|null} latency_ms
 * @property {number|null} energy_mj
 * @property {number|null} memory_mb
 * @property {number|null} min_quality
 * @property {number|null} min_accuracy
 * @property {number} percentile
 * @property {string} objective
 * @property {number|null} length
 * @property {boolean} sustained
 */

const OF_TOKENS = ["token_ms", "first_token_ms", "prompt_tokens", "context"];
const POSITIVE = ["latency_ms", "energy_mj", "memory_mb"];
const SHARES = ["min_quality", "min_accuracy"];
export const OBJECTIVES = ["quality", "accuracy", "energy", "latency"];
const MAX_LENGTH = 2 ** 20;
const KNOWN = [...POSITIVE, ...SHARES, "percentile", "objective", "length", "sustained"];
const checked = new WeakSet();

/** @param {unknown} value */
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/**
 * The budget, checked once and frozen; one that was checked is returned as it is, so that a choice can be the same as before
 * without being made. Raises BudgetError naming the field, the value and what is allowed.
 * @param {Budget|Checked} [given] @returns {Checked}
 */
export function budget(given = {}) {
  if (checked.has(given)) return /** @type {Checked} */ (given);
  if (typeof given !== "object" || given === null || Array.isArray(given)) throw new BudgetError(`budget = ${shown(given)}: allowed is an object such as {latency_ms: 5}`);
  /** @type {any} */
  const found = { percentile: 50, objective: "quality", sustained: false };
  for (const name of KNOWN) found[name] ??= null;
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null) continue;
    refuseWrong(name, value);
    found[name] = value;
  }
  if (found.min_quality !== null && found.min_accuracy !== null) throw new BudgetError("min_quality and min_accuracy given; allowed is one of the two", "min_quality");
  checked.add(found);
  return Object.freeze(found);
}

/** @param {string} name @param {any} value */
function refuseWrong(name, value) {
  const wrong = (/** @type {string} */ allowed) => new BudgetError(`budget: ${name} = ${shown(value)}: allowed is ${allowed}`, name);
  if (OF_TOKENS.includes(name)) throw wrong("this field where text is generated, which this client does not do");
  if (name === "plan") throw wrong("a plan in Python's Runtime, which keeps a battery's account");
  if (!KNOWN.includes(name)) throw wrong(`one of ${KNOWN.join(", ")} as a field`);
  if (POSITIVE.includes(name) && !(isNumber(value) && value > 0)) throw wrong("a finite number above 0");
  if (SHARES.includes(name) && !(isNumber(value) && value >= 0 && value <= 1)) throw wrong("a share from 0 to 1");
  if (name === "percentile" && !(isNumber(value) && value > 0 && value <= 99)) throw wrong("a number above 0 and up to 99");
  if (name === "objective" && !OBJECTIVES.includes(/** @type {string} */ (value))) throw wrong(OBJECTIVES.join(", "));
  if (name === "sustained" && typeof value !== "boolean") throw wrong("true or false");
  if (name === "length" && !(Number.isInteger(value) && value >= 1 && value <= MAX_LENGTH)) throw wrong(`a whole number from 1 to ${MAX_LENGTH}`);
}

/** The same with other fields. @param {Checked} from @param {Partial<Checked>} fields @returns {Checked} */
export function changed(from, fields) {
  const found = Object.freeze({ ...from, ...fields });
  checked.add(found);
  return found;
}

/** The least quality that is wanted, by either name. @param {Checked} one */
export const floorOf = (one) => (one.min_quality === null ? one.min_accuracy : one.min_quality);

/** Whether the objective is the quality, by either name. @param {Checked} one */
export const wantsTheBest = (one) => one.objective === "quality" || one.objective === "accuracy";

/** Raises BudgetError where the budget speaks of accuracy and the metric is another. @param {Checked} one @param {string} metric */
export function checkMetric(one, metric) {
  if (metric === "accuracy") return;
  if (one.min_accuracy !== null) throw new BudgetError(`min_accuracy = ${general(one.min_accuracy)}: the metric here is ${metric}; allowed is min_quality`, "min_accuracy");
  if (one.objective === "accuracy")
    throw new BudgetError(`objective = 'accuracy': the metric here is ${metric}; allowed are quality, energy and latency`, "objective");
}

/** @param {unknown} value */
export const shown = (value) => (typeof value === "string" ? `'${value}'` : typeof value === "object" ? JSON.stringify(value) : String(value));
