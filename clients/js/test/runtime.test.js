// Bundles, sessions and feedback. ONNX Runtime itself where `onnxruntime-node` is installed and SORTEDNET_BUNDLE names a bundle.

import assert from "node:assert/strict";
import { test } from "node:test";

import { battery, BudgetError, Bundle, BundleError, InputError, measure, profileOf, Runtime, sha256 } from "../src/index.js";
import { digestOf } from "../src/bundle.js";
import { openFolder } from "../src/node.js";

const hex = (bytes) => Buffer.from(bytes).toString("hex");
const encoded = (text) => new TextEncoder().encode(text);

/** A bundle of two sizes in memory, whose files are a word each. */
async function made(altered = {}) {
  const contents = { "models/weights.bin": encoded("weights"), "models/s.onnx": encoded("small"), "models/l.onnx": encoded("large") };
  const files = {};
  for (const [path, content] of Object.entries(contents)) files[path] = { sha256: await sha256(content), bytes: content.length };
  const submodels = [["s", 0.7], ["l", 0.9]].map(([id, quality]) => ({ id, quality, graph: `models/${id}.onnx`, precision: "fp32" }));
  const spec = { name: "x", dtype: "float32", shape: ["batch", 4] };
  const manifest = { format_version: 2, task: { metric: "accuracy" }, inputs: [spec], outputs: [{ ...spec, name: "logits" }], weights: "models/weights.bin", submodels, files };
  const read = [];
  const bundle = new Bundle(manifest, async (path) => (read.push(path), altered[path] ?? contents[path]));
  return { bundle, read, manifest };
}

/** ONNX Runtime as far as it is used: a run of a size takes so many ticks of `clock`. */
function pretended(takes) {
  const clock = Object.assign(() => clock.now, { now: 0 });
  const opened = [];
  const InferenceSession = {
    async create(model) {
      const word = new TextDecoder().decode(model);
      opened.push(word);
      return { run: async () => ((clock.now += takes[word]), { logits: { dims: [1, 2], data: [0, 1], from: word } }), release: async () => opened.push(`-${word}`) };
    },
  };
  class Tensor {
    constructor(type, data, dims) {
      Object.assign(this, { type, data, dims });
    }
  }
  return { ort: { InferenceSession, Tensor }, clock, opened };
}

const latency = (ms) => ({ latency_ms: { p50: ms, p90: 1.1 * ms, p99: 1.2 * ms, mean: ms, n: 50 } });
const profile = { device: { name: "here" }, submodels: { s: latency(2), l: latency(10) } };
const feed = (ort) => ({ x: new ort.Tensor("float32", new Float32Array(4), [1, 4]) });

test("a device that becomes slow gets the smaller size, and the larger one when it has recovered", async () => {
  const { bundle } = await made();
  const takes = { small: 2, large: 10 };
  const { ort, clock } = pretended(takes);
  const runtime = new Runtime(bundle, ort, [profile], { clock });
  const budget = { latency_ms: 20 };
  const ran = async (times) => {
    const all = [];
    for (let i = 0; i < times; i++) all.push((await runtime.run(feed(ort), budget)).submodel);
    return all;
  };
  assert.deepEqual(new Set(await ran(5)), new Set(["l"]));
  Object.assign(takes, { small: 8, large: 40 });
  assert.equal((await ran(6)).at(-1), "s");
  Object.assign(takes, { small: 2, large: 10 });
  assert.equal((await ran(40)).at(-1), "l");
});

test("a batch takes as long as its examples, and the first run of a session says nothing of the device", async () => {
  const { bundle } = await made();
  const takes = { small: 2, large: 10 };
  const { ort, clock } = pretended(takes);
  const runtime = new Runtime(bundle, ort, [profile], { clock });
  const batch = { x: new ort.Tensor("float32", new Float32Array(32), [8, 4]) };
  for (const slow of [30, 8, 8, 8, 8]) {
    Object.assign(takes, { small: 2 * slow, large: 10 * slow });
    assert.equal((await runtime.run(batch, { latency_ms: 12 })).latencyMs, 10 * slow);
    clock.now += 10;
  }
  assert.equal(runtime.controller.slowDown("here"), 1);
});

test("a budget and a battery that are changed in place count as they are", async () => {
  for (const shape of [["batch", 4], ["batch", "length"]]) {
    const { bundle } = await made();
    bundle.inputs[0].shape = shape;
    const { ort, clock } = pretended({ small: 2, large: 10 });
    const runtime = new Runtime(bundle, ort, [profile], { clock, policy: { low_percent: 20, keep_quality: 0.5 } });
    const [budget, battery] = [{ latency_ms: 20 }, { percent: 80, discharging: true }];
    const ran = async () => (await runtime.run(feed(ort), budget, battery)).submodel;
    assert.equal(await ran(), "l");
    budget.latency_ms = 5;
    assert.equal(await ran(), "s");
    budget.latency_ms = 20;
    assert.equal(await ran(), "l");
    battery.percent = 10;
    assert.equal(await ran(), "s");
  }
});

test("a battery that is none is refused", () => {
  for (const wrong of [{ percent: 101 }, { percent: "15" }, { percent: 15, charging: false }, { percent: 15, discharging: 1 }, 15]) assert.throws(() => battery(wrong), BudgetError, JSON.stringify(wrong));
});

test("weights are read once for all sizes, and sessions beyond those that are kept are closed", async () => {
  const { bundle, read } = await made();
  const { ort, clock, opened } = pretended({ small: 2, large: 10 });
  const runtime = new Runtime(bundle, ort, [profile], { clock, open: 1 });
  await runtime.run(feed(ort), { latency_ms: 3 });
  await runtime.run(feed(ort), { latency_ms: 1e3 });
  assert.deepEqual(read.filter((path) => path.endsWith("weights.bin")).length, 1);
  assert.deepEqual(opened, ["small", "large", "-small"]);
  await runtime.close();
  assert.equal(opened.at(-1), "-large");
});

test("a wrong byte is noticed before a graph is opened", async () => {
  for (const [path, wrong] of [["models/s.onnx", "smalL"], ["models/weights.bin", "weighty"], ["models/s.onnx", "smaller"]]) {
    const { bundle } = await made({ [path]: encoded(wrong) });
    const { ort, clock, opened } = pretended({ small: 2, large: 10 });
    const runtime = new Runtime(bundle, ort, [profile], { clock });
    await assert.rejects(runtime.run(feed(ort), { latency_ms: 3 }), (error) => error instanceof BundleError && error.message.startsWith(path));
    assert.deepEqual(opened, []);
  }
});

test("inputs of the wrong name, type, shape or value are refused, and the next run goes on", async () => {
  const { bundle } = await made();
  const { ort, clock } = pretended({ small: 2, large: 10 });
  const runtime = new Runtime(bundle, ort, [profile], { clock });
  const { Tensor } = ort;
  const values = new Float32Array(4);
  for (const [wrong, said] of [
    [{}, "nothing given"],
    [{ y: new Tensor("float32", values, [1, 4]) }, "'y' given"],
    [{ x: new Tensor("int32", new Int32Array(4), [1, 4]) }, "dtype int32"],
    [{ x: new Tensor("float32", values, [4]) }, "shape (4)"],
    [{ x: new Tensor("float32", values.slice(1), [1, 3]) }, "shape (1, 3)"],
    [{ x: new Tensor("float32", values.map(() => NaN), [1, 4]) }, "NaN"],
  ])
    await assert.rejects(runtime.run(wrong), (error) => error instanceof InputError && error.message.includes(said), said);
  assert.equal((await runtime.run(feed(ort), { latency_ms: 1e3 })).submodel, "l");
});

test("a cascade asks the larger size only where the smaller one is not sure", async () => {
  const { bundle } = await made();
  const { ort, clock } = pretended({ small: 2, large: 10 });
  const cascade = { id: "s+l", first: "s", then: "l", escalation: 0.1, accuracy: 0.95 };
  for (const [threshold, wanted] of [[0.2, "s"], [0.9, "l"]]) { // the margin of the logits 0 and 1 is 0.46
    const runtime = new Runtime(bundle, ort, [profile], { clock, cascades: [{ ...cascade, threshold }] });
    const { submodel, selection, latencyMs } = await runtime.run(feed(ort), { latency_ms: 1e3 });
    assert.deepEqual([selection.submodel, submodel, latencyMs], ["s+l", wanted, wanted === "s" ? 2 : 12]);
  }
});

test("what is measured is a profile with its seal", async () => {
  const { bundle } = await made();
  const { ort, clock } = pretended({ small: 2, large: 10 });
  const told = [];
  const found = await measure(bundle, ort, ["s", "l"], { clock, rounds: 2, runs: 5, told: (done, all) => told.push([done, all]) });
  assert.deepEqual([found.s.latency_ms.p50, found.l.latency_ms.p99, found.l.latency_ms.n], [2, 10, 10]);
  assert.deepEqual(told.at(-1), [4, 4]);
  const sealed = await profileOf("0".repeat(64), "here", { cpu: "x", cores: 1, threads: 1, ram_mb: 1, os: "x", onnxruntime: "1", execution_provider: "x" }, found);
  assert.match(sealed.sha256, /^[0-9a-f]{64}$/);
});

test("without crypto.subtle, as over plain http, hashes are the same", async () => {
  for (const length of [0, 1, 55, 56, 63, 64, 65, 1000]) {
    const content = Uint8Array.from({ length }, (_, i) => (i * 37) & 255);
    assert.equal(hex(digestOf(content)), await sha256(content), String(length));
  }
});

test("bundles that this client cannot run are refused", async () => {
  const { manifest } = await made();
  for (const wrong of [{ ...manifest, format_version: 3 }, { ...manifest, decoder: {} }, null]) assert.throws(() => new Bundle(wrong, async () => new Uint8Array()), BundleError);
});

const ort = await import(process.env.SORTEDNET_ONNXRUNTIME_NODE ?? "onnxruntime-node").then((found) => found.default ?? found, () => null);
const path = process.env.SORTEDNET_BUNDLE;
test("ONNX Runtime runs a bundle in a folder, and in memory, alike", { skip: !(ort && path) && "needs onnxruntime-node and SORTEDNET_BUNDLE" }, async () => {
  const inFolder = await openFolder(path);
  const inMemory = new Bundle(inFolder.manifest, inFolder._read);
  const ids = [...inFolder.submodels.keys()].slice(0, 2);
  const answers = [];
  for (const bundle of [inFolder, inMemory]) {
    const found = await measure(bundle, ort, ids, { rounds: 1, runs: 3 });
    const runtime = new Runtime(bundle, ort, [{ device: { name: "here" }, submodels: found }]);
    const [spec] = bundle.inputs;
    const dims = spec.shape.map((size) => (typeof size === "number" ? size : 1));
    const input = new ort.Tensor("float32", Float32Array.from({ length: dims.reduce((a, b) => a * b) }, (_, i) => (i % 7) / 7), dims);
    const { outputs, submodel } = await runtime.run({ [spec.name]: input }, {});
    answers.push([submodel, [...Object.values(outputs)[0].data]]);
    await runtime.close();
  }
  assert.deepEqual(answers[0], answers[1]);
});
