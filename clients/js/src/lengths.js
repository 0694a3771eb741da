// Latency at a length that was not measured: `device_profiles/lengths.py` says how and why.

/** @typedef {{p50: number, p90: number, p99: number, mean: number, n: number}} LatencyMs */
/** @typedef {"p50"|"p90"|"p99"|"mean"} Statistic */

const STATISTICS = /** @type {Statistic[]} */ (["p50", "p90", "p99", "mean"]);
const FORMS = [[0], [1], [0, 1], [2], [0, 2], [1, 2], [0, 1, 2]];
const STEPS_PER_DOUBLING = 8;

/** The length rounded up to the next of a series that grows by an eighth at most. @param {number} length @returns {number} */
export function bucket(length) {
  const bits = length > 1 ? 32 - Math.clz32(length - 1) : 0;
  const step = length > 1 ? Math.max(1, Math.floor(2 ** bits / (2 * STEPS_PER_DOUBLING))) : 1;
  return Math.ceil(length / step) * step;
}

/** One sub-model's latency over the length; never falls with it. */
export class Curve {
  /** @param {Record<string, LatencyMs>} measured by length, one or more */
  constructor(measured) {
    this.lengths = Object.keys(measured).map(Number).sort((a, b) => a - b);
    this.measured = measured;
    /** @type {Record<string, number[]>} */
    this.values = {};
    for (const name of STATISTICS) {
      let most = -Infinity;
      this.values[name] = this.lengths.map((length) => (most = Math.max(most, measured[length][name])));
    }
    this.weights = weightsOf(this.lengths, this.values.p50);
    const fits = this.lengths.map((length) => Math.log(this.fit(length)));
    /** @type {Record<string, number[]>} */
    this.factors = {};
    for (const name of STATISTICS) this.factors[name] = this.values[name].map((value, i) => Math.log(value) - fits[i]);
  }

  /** Milliseconds. @param {number} length @param {Statistic} [statistic] @returns {number} */
  at(length, statistic = "p50") {
    const [values, logs] = [this.values[statistic], this.factors[statistic]];
    let place = 0;
    while (place < values.length && this.lengths[place] < length) place++;
    if (place < values.length && this.lengths[place] === length) return values[place];
    const fit = this.fit(length);
    if (place === 0 || place === values.length) return Math.exp(logs[Math.min(place, values.length - 1)]) * fit;
    const [low, high] = [this.lengths[place - 1], this.lengths[place]];
    const share = Math.log(length / low) / Math.log(high / low);
    const found = Math.exp(logs[place - 1] + share * (logs[place] - logs[place - 1])) * fit;
    return Math.min(Math.max(found, values[place - 1]), values[place]);
  }

  /** Of what the longest takes in the mean. @param {number} length */
  share(length) {
    return this.at(length, "mean") / /** @type {number} */ (this.values.mean.at(-1));
  }

  /** All statistics. @param {number} length @returns {LatencyMs} */
  latency(length) {
    const p50 = this.at(length, "p50");
    const p90 = Math.max(p50, this.at(length, "p90"));
    const p99 = Math.max(p90, this.at(length, "p99"));
    return { p50, p90, p99, mean: this.at(length, "mean"), n: this.measured[length]?.n ?? 0 };
  }

  /** @param {number} length */
  fit(length) {
    const n = this.lengths.length === 1 ? Math.max(length, this.lengths[0]) : length;
    const [a, b, c] = this.weights;
    return a + n * (b + n * c);
  }
}

/** What a sub-model costs at that length of the input: its measurement, as it is where no lengths were measured.
 * @param {import("./candidates.js").Measurement} costs @param {number} length @param {Curve} [curve] */
export function atLength(costs, length, curve) {
  if (!hasLengths(costs)) return costs;
  const found = curve ?? new Curve(/** @type {any} */ (costs.lengths));
  const latency_ms = found.latency(length);
  const energy = costs.energy_mj ?? null;
  const energy_mj = energy !== null && length !== found.lengths.at(-1) ? energy * found.share(length) : energy;
  return { ...costs, latency_ms, energy_mj };
}

/** @param {import("./candidates.js").Measurement} costs */
export const hasLengths = (costs) => Object.keys(costs.lengths ?? {}).length > 0;

/** Of the powers 0, 1 and 2 of the length. @param {number[]} lengths @param {number[]} medians @returns {number[]} */
function weightsOf(lengths, medians) {
  if (medians.length === 1) return [0, medians[0] / lengths[0], 0];
  const longest = /** @type {number} */ (lengths.at(-1));
  const rows = lengths.map((n, i) => [0, 1, 2].map((k) => (n / longest) ** k / medians[i]));
  let [best, weights] = [Infinity, [0, 0, 0]];
  for (const form of FORMS) {
    const found = leastSquares(rows.map((row) => form.map((k) => row[k])));
    if (found === null || Math.min(...found) < 0) continue;
    const error = sum(rows.map((row) => (1 - sum(found.map((w, i) => w * row[form[i]]))) ** 2));
    if (error < best - 1e-9) {
      best = error;
      weights = [0, 0, 0];
      form.forEach((k, i) => (weights[k] = found[i] / longest ** k));
    }
  }
  return weights;
}

/** @param {number[]} values */
const sum = (values) => values.reduce((a, b) => a + b, 0);

/** By the normal equations; null where these are singular. @param {number[][]} rows @returns {number[]|null} */
function leastSquares(rows) {
  const size = rows[0].length;
  const places = [...Array(size).keys()];
  let matrix = places.map((i) => [...places.map((j) => sum(rows.map((row) => row[i] * row[j]))), sum(rows.map((row) => row[i]))]);
  const scale = places.map((i) => matrix[i][i] ** 0.5);
  matrix = matrix.map((row, i) => row.map((value, j) => value / scale[i] / (j < size ? scale[j] : 1)));
  for (const i of places) {
    let pivot = i;
    for (let row = i + 1; row < size; row++) if (Math.abs(matrix[row][i]) > Math.abs(matrix[pivot][i])) pivot = row;
    [matrix[i], matrix[pivot]] = [matrix[pivot], matrix[i]];
    if (Math.abs(matrix[i][i]) < 1e-12) return null;
    for (const other of places) {
      if (other === i) continue;
      const factor = matrix[other][i] / matrix[i][i];
      matrix[other] = matrix[other].map((a, j) => a - factor * matrix[i][j]);
    }
  }
  return places.map((i) => matrix[i][size] / matrix[i][i] / scale[i]);
}
