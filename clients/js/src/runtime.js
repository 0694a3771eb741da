// Runs the best sub-model for a budget, and learns from what each run took. ONNX Runtime is handed in: onnxruntime-web or -node.

import { budget as checkedBudget, changed } from "./budget.js";
import { BundleError } from "./bundle.js";
import { Candidates } from "./candidates.js";
import { Controller } from "./controller.js";
import { bucket } from "./lengths.js";
import { Selector } from "./selector.js";

/** @typedef {import("./bundle.js").Bundle} Bundle */
/** @typedef {import("./selector.js").Selection} Selection */
/** @typedef {Record<string, {type: string, dims: readonly number[], data: any}>} Tensors by name; what `ort.Tensor` makes */
/** @typedef {{outputs: Tensors, selection: Selection, submodel: string, latencyMs: number}} Result `submodel`: which gave the outputs; `latencyMs`: of the whole batch */

const DTYPES = /** @type {Record<string, string>} */ ({ float32: "float32", int64: "int64", int32: "int32", float16: "float16", uint8: "uint8", bool: "bool", float64: "float64" });

/** An input of the wrong name, type or shape. */
export class InputError extends Error {}

export class Runtime {
  /**
   * Raises BudgetError where no profile knows a sub-model of known quality.
   * @param {Bundle} bundle
   * @param {any} ort the module `onnxruntime-web` or `onnxruntime-node`
   * @param {import("./candidates.js").Profile[]} profiles that were measured on this device
   * @param {{session?: object, cascades?: import("./candidates.js").Cascade[], policy?: import("./battery.js").BatteryPolicy,
   *   open?: number, clock?: () => number, feedback?: boolean}} [more] `session`: options of every session, such as
   *   {executionProviders: ["wasm"]}; `open`: sessions that are kept
   */
  constructor(bundle, ort, profiles, { session = {}, cascades = [], policy, open = 3, clock = () => performance.now(), feedback = true } = {}) {
    const known = profiles.map((one) => ({ ...one, submodels: Object.fromEntries(Object.entries(one.submodels).filter(([id]) => bundle.submodels.has(id))) }));
    this.bundle = bundle;
    this.selector = new Selector(Candidates.measured(known, bundle.qualities, { metric: bundle.metric, cascades }), policy ? { policy } : {});
    this.controller = new Controller(this.selector, known, { feedback });
    this.sessions = new Sessions(bundle, ort, session, open);
    this._clock = clock;
    /** @type {WeakSet<object>} sessions that have run */
    this._ran = new WeakSet();
    /** @type {Promise<unknown>} one run at a time: two that share the threads would be taken for a slow device */
    this._before = Promise.resolve();
  }

  /** Checks the inputs, chooses, runs; of a batch the budget is each example's. Raises InputError, BudgetError, BundleError, and what ONNX Runtime raises.
   * @param {Tensors} feed @param {import("./budget.js").Budget} [budget] @param {import("./battery.js").Battery|null} [battery] @returns {Promise<Result>} */
  run(feed, budget = {}, battery = null) {
    const mine = this._before.then(() => this._run(feed, budget, battery));
    this._before = mine.catch(() => {});
    return mine;
  }

  /** @param {Tensors} feed @param {import("./budget.js").Budget} budget @param {import("./battery.js").Battery|null} battery @returns {Promise<Result>} */
  async _run(feed, budget, battery) {
    const length = checkFeed(this.bundle.inputs, feed);
    const asked = length === null ? budget : this._ofLength(checkedBudget(budget), length);
    const selection = this.controller.choose(asked, this._clock() / 1e3, battery);
    const [first, then] = selection.stages.length ? selection.stages : [selection.submodel];
    const { outputs, latencyMs, session } = await this._timed(first, feed);
    if (this._ran.has(session)) this.controller.observe(selection, latencyMs / examplesIn(this.bundle.inputs, feed), this._clock() / 1e3, { ran: first, length });
    this._ran.add(session); // its first run also sets its memory up, which says nothing of the device
    if (then === undefined || isSure(outputs[this.bundle.manifest.outputs[0].name], selection.threshold ?? 0)) return { outputs, selection, submodel: first, latencyMs };
    const second = await this._timed(then, feed);
    return { outputs: second.outputs, selection, submodel: then, latencyMs: latencyMs + second.latencyMs };
  }

  /** @param {string} id @param {Tensors} feed */
  async _timed(id, feed) {
    const session = await this.sessions.get(id);
    const begun = this._clock();
    const outputs = await session.run(feed);
    return { outputs, latencyMs: this._clock() - begun, session };
  }

  /** The same object for the same checked budget and length again, so that a choice can be the same as before.
   * @param {import("./budget.js").Checked} budget @param {number} length */
  _ofLength(budget, length) {
    const end = bucket(length);
    if (this._latest?.of !== budget || this._latest.budget.length !== end) this._latest = { of: budget, budget: changed(budget, { length: end }) };
    return this._latest.budget;
  }

  /** @type {{of: object, budget: import("./budget.js").Checked}|undefined} */
  _latest;

  async close() {
    await this.sessions.close();
  }
}

/** Open sessions, the latest used ones. */
export class Sessions {
  /** @param {Bundle} bundle @param {any} ort @param {object} options @param {number} most */
  constructor(bundle, ort, options, most) {
    if (!ort?.InferenceSession) throw new BundleError("ort: is no ONNX Runtime; allowed are the modules onnxruntime-web and onnxruntime-node");
    Object.assign(this, { bundle, ort, options, most });
    this.bundle = bundle;
    this.ort = ort;
    this.options = options;
    this.most = most;
    /** @type {Map<string, Promise<any>>} */
    this._open = new Map();
  }

  /** @param {string} id @returns {Promise<any>} */
  async get(id) {
    const found = this._open.get(id) ?? this._made(id);
    this._open.delete(id);
    this._open.set(id, found); // the latest
    found.catch(() => this._open.delete(id));
    const session = await found;
    while (this._open.size > this.most) {
      const [oldest, closing] = /** @type {[string, Promise<any>]} */ (this._open.entries().next().value);
      this._open.delete(oldest);
      await (await closing).release?.();
    }
    return session;
  }

  /** @param {string} id */
  async _made(id) {
    const { model, externalData } = await this.bundle.graph(id);
    return this.ort.InferenceSession.create(model, { ...this.options, ...(externalData.length && { externalData }) });
  }

  async close() {
    const all = [...this._open.values()];
    this._open.clear();
    for (const one of all) await (await one).release?.();
  }
}

/** How long the input is, null where it has one size. Raises InputError naming the input, what it is and what it must be.
 * @param {import("./bundle.js").TensorSpec[]} specs @param {Tensors} feed @returns {number|null} */
export function checkFeed(specs, feed) {
  const [given, wanted] = [Object.keys(feed), specs.map((one) => one.name)];
  if (given.length !== wanted.length || wanted.some((name) => !(name in feed)))
    throw new InputError(`input: ${given.map((one) => `'${one}'`).join(", ") || "nothing"} given; allowed is ${wanted.map((one) => `'${one}'`).join(", ")}`);
  /** @type {Map<string, number>} */
  const sizes = new Map();
  for (const { name, dtype, shape } of specs) {
    const { type, dims, data } = feed[name];
    if (type !== (DTYPES[dtype] ?? dtype)) throw new InputError(`input '${name}': dtype ${type}; allowed is ${dtype}`);
    const fits = dims.length === shape.length && shape.every((size, i) => dims[i] >= 1 && dims[i] === (typeof size === "number" ? size : (sizes.get(size) ?? dims[i])));
    if (!fits) throw new InputError(`input '${name}': shape (${dims.join(", ")}); allowed is (${shape.join(", ")})`);
    shape.forEach((size, i) => typeof size === "string" && sizes.set(size, dims[i]));
    if (type.startsWith("float") && type !== "float16" && !data.every(Number.isFinite)) throw new InputError(`input '${name}': holds NaN or infinite values; allowed are finite numbers`);
  }
  const batch = specs[0].shape[0];
  const free = [...sizes.keys()].filter((size) => size !== batch);
  return free.length === 1 ? /** @type {number} */ (sizes.get(free[0])) : null;
}

/** The size of the batch: of the first input's first axis, where that is free. @param {import("./bundle.js").TensorSpec[]} specs @param {Tensors} feed */
export const examplesIn = ([first], feed) => (typeof first.shape[0] === "string" ? feed[first.name].dims[0] : 1);

/** Whether every example's margin, its largest softmax probability less its second largest, reaches the threshold.
 * @param {{dims: readonly number[], data: ArrayLike<number>}} logits @param {number} threshold */
export function isSure({ dims, data }, threshold) {
  const classes = /** @type {number} */ (dims.at(-1));
  for (let start = 0; start < data.length; start += classes) {
    const values = Array.from({ length: classes }, (_, i) => data[start + i]).sort((a, b) => b - a);
    const total = values.reduce((sum, value) => sum + Math.exp(value - values[0]), 0);
    if (!((1 - Math.exp(values[1] - values[0])) / total >= threshold)) return false;
  }
  return true;
}
