// How much slower than its profile a device runs now, learnt from every run. `selector/adapt/feedback.py` says why so.

import { median, Quiet } from "./quiet.js";
import { PERCENTILES } from "./selector.js";

const RECENT = 9; // runs whose median is the level
const WINDOW = 20; // latest errors
const LONG = 200;
const IDLE_SECONDS = 0.25; // after such a gap the next run is slower by itself
const FARTHEST = 1e6;
const LEAST_STEP = Math.log(1.12);
const GRAIN = 0.01;
const PROBE_SECONDS = [20, 640];
const AFTER_SWITCH = 3; // runs whose surprise is put down to the sub-model
const WARY = 4; // runs after a surprise in which it is not yet taken for a single one
const FALL = 0.0006; // by which the margin falls with every run that stayed below
const MOST = 2; // of the margin

/** How much more than the others one sub-model is slowed down; forgotten with time. @typedef {{value: number, since: number, run: number, seconds: number}} Offset */

/** Of one profile, whose latencies on a quiet day `quiet` knows. Times are in seconds of any clock. */
export class SlowDown {
  /** @param {Quiet} quiet */
  constructor(quiet) {
    this.quiet = quiet;
    this.level = 0;
    this.spread = Math.max(0.02, quiet.spread);
    this._excesses = new Excesses(quiet);
    this._surpriseAt = -WARY;
    this._tails = new Map(PERCENTILES.map((p) => [p, new Tail(p)]));
    /** @type {Set<Tail>} those that somebody has asked for */
    this._asked = new Set();
    /** @type {number[]} */
    this._recent = [];
    this._idle = 0;
    /** @type {{submodel: string, error: number}|null} the latest run, if it was a surprise */
    this._suspect = null;
    /** @type {Map<string, Offset>} */
    this._offsets = new Map();
    /** @type {string|null} */
    this._latest = null;
    this._runsOfLatest = 0;
    this._seenAt = -Infinity;
    this._runs = 0;
    this._seen = 0; // changes with every excess that is remembered
  }

  /** A run of this sub-model took so long; `expectedMs` is the profile's median. What is no time is left out.
   * @param {string} submodel @param {number} expectedMs @param {number} latencyMs @param {number} now */
  observe(submodel, expectedMs, latencyMs, now) {
    if (!(Number.isFinite(latencyMs) && latencyMs > 0 && expectedMs > 0)) return;
    if (submodel !== this._latest) [this._latest, this._runsOfLatest] = [submodel, 0];
    this._runs++;
    this._runsOfLatest++;
    let value = Math.log(Math.min(Math.max(latencyMs / expectedMs, 1 / FARTHEST), FARTHEST)) - this._offset(submodel, now);
    if (this.isIdle(now)) {
      if (this._recent.length) {
        const surprise = value - this._idle - this.level;
        this._idle = Math.max(0, this._idle + 0.2 * Math.min(Math.max(surprise, -0.5), 0.5));
      }
      value -= this._idle;
    }
    this._seenAt = now;
    this._take(submodel, expectedMs, value, now);
  }

  /** What a run whose median in the profile is `expectedMs` stays below at this percentile. @param {number} percentile @param {number} expectedMs @param {number} now */
  latency(percentile, expectedMs, now) {
    const tail = this._tail(percentile);
    const base = expectedMs * Math.exp(this._level(now));
    return Math.max(base, this._beyond(tail, base) * Math.exp(tail.integral));
  }

  /** Of a sub-model that just keeps the limit at this percentile, the median in the profile (ms); 0 where none does.
   * @param {number} percentile @param {number} limitMs @param {number} now */
  reach(percentile, limitMs, now) {
    const tail = this._tail(percentile);
    const wary = this._runs < this._surpriseAt + WARY;
    if (tail.reached.limit !== limitMs || tail.reached.seen !== this._seen)
      tail.reached = { limit: limitMs, seen: this._seen, base: this._excesses.reach(tail, limitMs * Math.exp(-tail.integral), wary) };
    const [base, quiet] = [tail.reached.base, this.quiet.median(percentile, limitMs)];
    if (!(base > 0 && base <= quiet)) return 0;
    const steps = Math.floor((Math.log(base / quiet) - this._level(now)) / GRAIN);
    return quiet * Math.exp(GRAIN * steps);
  }

  /** What this sub-model is slowed down by more than others, as a factor from 1. @param {string} submodel @param {number} now */
  offset(submodel, now) {
    return this._offsets.has(submodel) ? Math.exp(this._offset(submodel, now)) : 1;
  }

  get suspicious() {
    return this._offsets.size > 0;
  }

  /** @param {number} now */
  isIdle(now) {
    const gap = now - this._seenAt;
    return !(gap >= 0 && gap < IDLE_SECONDS);
  }

  /** Neither ran for so long: the world is as the other profile of this device finds it. @param {SlowDown} other @param {number} seconds */
  approach(other, seconds, horizon = 5) {
    this.level += (other.level - this.level) * (1 - Math.exp(-Math.max(0, seconds) / horizon));
  }

  /** @param {number} percentile @returns {Tail} */
  _tail(percentile) {
    const tail = /** @type {Tail} */ (this._tails.get(percentile));
    this._asked.add(tail);
    return tail;
  }

  /** @param {number} now */
  _level(now) {
    return this._idle && this.isIdle(now) ? this.level + this._idle : this.level;
  }

  /** @param {Tail} tail @param {number} base */
  _beyond(tail, base) {
    return this._excesses.latency(tail, base, this._runs < this._surpriseAt + WARY);
  }

  /** @param {string} submodel @param {number} now */
  _offset(submodel, now) {
    const found = this._offsets.get(submodel);
    return found ? found.value * Math.exp(-Math.max(0, now - found.since) / found.seconds) : 0;
  }

  /** @param {string} submodel @param {number} expectedMs @param {number} value @param {number} now */
  _take(submodel, expectedMs, value, now) {
    const known = this._recent.length > 0;
    const error = known ? value - this.level : 0;
    const surprise = known && Math.abs(error) > Math.max(LEAST_STEP, 3 * this.spread);
    this.spread += 0.1 * (Math.min(Math.abs(error), 1) - this.spread);
    if (known) this._remember(expectedMs * Math.exp(this.level), error, surprise);
    const before = this._suspect;
    this._suspect = surprise ? { submodel, error } : null;
    if (!surprise) {
      this._recent.push(value);
      if (this._recent.length > RECENT) this._recent.shift();
      this.level = median(this._recent);
    } else if (before !== null && before.error > 0 === error > 0) {
      const least = Math.abs(before.error) <= Math.abs(error) ? before.error : error;
      this._step(submodel, least, before.submodel === submodel, now);
    }
  }

  /** Two runs one after the other were off the same way: that is no outlier. @param {string} submodel @param {number} error @param {boolean} same @param {number} now */
  _step(submodel, error, same, now) {
    this._suspect = null;
    this.spread /= 2;
    if (error > 0 && same && this._runsOfLatest <= AFTER_SWITCH) {
      const before = this._offsets.get(submodel);
      const wronged = [...this._offsets].filter(([name, one]) => name !== submodel && this._runs - one.run < 20 && 2 * one.value > error);
      if (!wronged.length) {
        const seconds = before ? Math.min(2 * before.seconds, PROBE_SECONDS[1]) : PROBE_SECONDS[0];
        this._offsets.set(submodel, { value: this._offset(submodel, now) + error, since: now, run: this._runs, seconds });
        return;
      }
      for (const [name] of wronged) this._offsets.delete(name); // two sub-models in a row: it was the world after all
    }
    this.level += error;
    this._recent = [this.level];
    this._excesses.lowerLatest(error);
    this._seen++;
  }

  /** @param {number} baseMs @param {number} error @param {boolean} surprise */
  _remember(baseMs, error, surprise) {
    if (surprise && error > 0) this._surpriseAt = this._runs;
    const latencyMs = baseMs * Math.exp(error);
    for (const tail of this._asked) tail.judge(latencyMs > this._beyond(tail, baseMs) * Math.exp(tail.integral));
    this._excesses.add(baseMs, latencyMs);
    this._seen++;
  }
}

/** What the latest runs took beyond the level, and what that says of runs of another length. */
class Excesses {
  /** @param {Quiet} quiet */
  constructor(quiet) {
    this.quiet = quiet;
    this._base = new Float64Array(LONG).fill(1); // ms, in the order of time
    this._excess = new Float64Array(LONG);
    this._values = new Float64Array(LONG);
  }

  /** @param {number} base @param {number} latency */
  add(base, latency) {
    for (const [array, value] of /** @type {[Float64Array, number][]} */ ([[this._base, base], [this._excess, latency - base]])) {
      array.copyWithin(0, 1);
      array[LONG - 1] = value;
    }
  }

  /** The level of both of the latest was higher by so much (a logarithm). @param {number} step */
  lowerLatest(step) {
    for (let i = LONG - 2; i < LONG; i++) {
      const latency = this._base[i] + this._excess[i];
      this._base[i] *= Math.exp(step);
      this._excess[i] = latency - this._base[i];
    }
  }

  /** What a run that takes `base` by the level stays below at the tail's percentile, ms. @param {Tail} tail @param {number} base @param {boolean} wary */
  latency(tail, base, wary) {
    const [runs, excesses] = [this._base, this._excess];
    for (let i = 0; i < LONG; i++) {
      const longer = base > runs[i] && excesses[i] > 0;
      this._values[i] = excesses[i] * (longer ? this.quiet.growth(runs[i], base) : base / runs[i]);
    }
    return Math.max(base + this._counting(tail, wary), this.quiet.latency(tail.percentile, base));
  }

  /** The longest run by the level (ms) that stays below the limit at the tail's percentile. @param {Tail} tail @param {number} limit @param {boolean} wary */
  reach(tail, limit, wary) {
    const [runs, excesses] = [this._base, this._excess];
    for (let i = 0; i < LONG; i++) {
      const inProportion = limit / Math.max(1 + excesses[i] / runs[i], 1e-12);
      const longer = inProportion > runs[i] && excesses[i] > 0;
      this._values[i] = -(longer ? Math.max(this.quiet.longest(runs[i], excesses[i], limit), runs[i]) : inProportion);
    }
    return Math.min(-this._counting(tail, wary), this.quiet.median(tail.percentile, limit));
  }

  /** Of what counts, the largest that the percentile does not leave out. @param {Tail} tail @param {boolean} wary */
  _counting(tail, wary) {
    const latest = this._values.slice(LONG - WINDOW).sort()[tail.placeInWindow];
    return wary ? latest : Math.min(latest, this._values.slice().sort()[tail.placeInLong]);
  }
}

/** What is asked for at one percentile, and the margin that rises with every run that took longer than was predicted. */
class Tail {
  /** @param {number} percentile */
  constructor(percentile) {
    this.percentile = percentile;
    const place = (/** @type {number} */ size) => size - 1 - Math.floor((size * (100 - percentile)) / 100);
    this.placeInWindow = place(WINDOW);
    this.placeInLong = place(LONG);
    this.integral = 0; // a logarithm
    this.reached = { limit: Infinity, seen: -1, base: Infinity };
    this._rise = (FALL * percentile) / (100 - percentile);
  }

  /** @param {boolean} exceeded */
  judge(exceeded) {
    this.integral = Math.min(Math.max(0, this.integral + (exceeded ? this._rise : -FALL)), MOST);
  }
}
