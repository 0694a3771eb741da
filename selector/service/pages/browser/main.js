// The page of browsers: measures a bundle's sizes here, shows the frontier beside the others, runs, sends the profile.

import { bundleOf, deviceOf, entriesOf, measuredOf, ServiceError } from "../api.js";
import { colours, costAxis, draw, empty, frontierLine, layoutOf, lineOf, loadPlotly, qualityAxis } from "../charts.js";
import { Bundle } from "../client/bundle.js";
import { exampleFeed, measure, profileOf } from "../client/measure.js";
import { Runtime } from "../client/runtime.js";
import { Selector } from "../client/selector.js";
import { byId, chosen, digits, element, metric, nameMetric, share } from "../format.js";
import { abilities, describe, nameOf } from "./abilities.js";
import { camera, largest, opened, tensorOf } from "./pictures.js";

const OTHERS = 6; // devices that are shown beside this one
const LENGTH = 128; // of an input whose length is free, where the bundle names no longest one
const COST = "latency_ms.p50";
const MINE = "this browser";

const config = JSON.parse(byId("config").textContent);
const view = { can: null, name: null, document: null, bundle: null, ort: null, submodels: null, profile: null, runtime: null, others: [], look: null };

const say = (text, wrong = false) => {
  byId("state").textContent = text;
  byId("state").classList.toggle("wrong", wrong);
};

/** Of all sizes so many, evenly, the smallest and the largest among them; only those whose quality is known. */
function wanted() {
  const all = view.document.submodels.filter((one) => one.quality !== null).sort((a, b) => a.macs - b.macs);
  const count = Math.max(1, Math.min(Number(byId("count").value) || 1, all.length));
  return [...new Set(Array.from({ length: count }, (_, i) => all[count === 1 ? all.length - 1 : Math.round((i * (all.length - 1)) / (count - 1))]))];
}

async function openBundle(name) {
  Object.assign(view, { name, bundle: null, submodels: null, profile: null, others: [] });
  for (const id of ["measured", "running", "sending"]) byId(id).hidden = true;
  stopCamera?.();
  await view.runtime?.close();
  view.runtime = null;
  nameMetric(config.bundles[name].metric);
  view.document = await bundleOf(name);
  if (view.name !== name) return;
  const { decoder, submodels } = view.document;
  const known = submodels.filter((one) => one.quality !== null).length;
  const why = decoder ? "This bundle generates text, which is not done in a browser yet." : !known ? `No ${metric()} is known of any size: export with test data.` : !view.can.runs ? "This browser cannot run it; above it says why." : !config.ort ? "Above it says what is missing." : null;
  byId("measure").disabled = why !== null;
  byId("count").max = Math.max(1, Math.min(12, known));
  say(why ?? "\u00a0");
  await showOthers(name);
}

/** The frontiers of devices that have measured this bundle. */
async function showOthers(name) {
  const measured = await measuredOf(name);
  const names = measured ? [...measured.devices, ...measured.models] : view.document.devices;
  const found = await Promise.all(names.slice(0, OTHERS).map((device) => deviceOf(name, device).catch(() => null)));
  if (view.name !== name) return;
  view.others = names.slice(0, OTHERS).flatMap((label, i) => (found[i]?.frontiers[COST]?.length ? [{ label, steps: found[i].frontiers[COST], entries: entriesOf(view.document.submodels, found[i].cascades) }] : []));
  await chart();
}

/** This device's own as far as it has been measured. */
function mine() {
  if (!view.submodels || !Object.keys(view.submodels).length) return [];
  const selector = Selector.of({ device: { name: MINE }, submodels: view.submodels }, view.bundle.qualities, { metric: view.bundle.metric });
  const { costs, best } = selector.affordedBy("latency_ms");
  return [{ label: MINE, steps: costs.map((cost, i) => [cost, best[i].submodel]), entries: entriesOf(view.document.submodels, {}) }];
}

async function chart() {
  const rows = [...mine(), ...view.others];
  if (!rows.length) return empty("frontier-chart", "No device has measured this bundle yet: this browser may be the first.");
  const ink = colours();
  const x = costAxis(COST, rows.flatMap(({ steps }) => steps.map(([cost]) => cost)));
  const y = qualityAxis(rows.flatMap(({ steps, entries }) => steps.map(([, id]) => entries[id].quality)));
  const first = rows[0].label === MINE ? 0 : 1; // this browser has the first colour, measured or not
  const traces = rows.map(({ label, steps, entries }, i) => {
    const line = { ...lineOf(ink, i + first), width: label === MINE ? 3.5 : 1.8 };
    const text = steps.map(([cost, id]) => `<b>${label}</b><br>${id}<br>${metric()} ${share(entries[id].quality)}<br>${digits(cost)} ms`);
    return frontierLine(steps, entries, x, line, { name: label, text: [...text, ""], mode: "lines+markers", hovertemplate: "%{text}<extra></extra>", marker: { size: [...steps.map(() => (label === MINE ? 8 : 5)), 0], color: line.color } });
  });
  return draw("frontier-chart", traces, layoutOf(ink, { uirevision: view.name, xaxis: x, yaxis: y, showlegend: true }));
}

/** ONNX Runtime, once for each way to compute: its threads cannot be changed later. */
const loaded = new Map();
function onnxruntime(provider) {
  if (!loaded.has(provider)) {
    const { folder, processor, webgpu } = config.ort;
    const base = new URL(folder, document.baseURI).href;
    const loading = import(base + (provider === "webgpu" ? webgpu : processor)).then(({ default: whole, ...named }) => {
      const ort = named.InferenceSession ? named : whole;
      ort.env.wasm.wasmPaths = base;
      ort.env.wasm.numThreads = Number(byId("threads").value);
      return ort;
    });
    loading.catch(() => loaded.delete(provider));
    loaded.set(provider, loading);
    if (provider === "wasm") byId("threads").disabled = true;
  }
  return loaded.get(provider);
}

/** A part of the bundle with these sizes alone: their graphs, and what they read of the weights. */
async function fetched(ids) {
  const answer = await fetch(`v1/bundles/${encodeURIComponent(view.name)}/subsets`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ submodels: ids }) });
  const found = await answer.json();
  if (!answer.ok) throw new ServiceError(found.detail);
  return Bundle.from(found.files.slice(1), { manifest: found.manifest });
}

async function measureHere() {
  const provider = chosen("provider");
  const ids = wanted().map((one) => one.id);
  byId("measure").disabled = true;
  byId("progress").hidden = false;
  byId("progress").value = 0;
  try {
    view.ort = await onnxruntime(provider);
    view.session = { executionProviders: [provider], graphOptimizationLevel: "all" };
    view.bundle = await fetched(ids);
    say(`fetching ${(view.bundle.bytesOf(ids) / 1e6).toPrecision(3)} MB for ${ids.length} sizes`);
    const free = view.bundle.inputs.some(({ shape }) => shape.slice(1).some((size) => typeof size === "string"));
    const length = free ? Math.min(...Object.values(view.bundle.manifest.preprocessing ?? {}).map((one) => one.max_tokens ?? LENGTH), LENGTH) : 0;
    const told = async (done, all, submodels) => {
      view.submodels = { ...submodels };
      byId("progress").value = done / all;
      say(`measured ${Object.keys(submodels).length} of ${ids.length} sizes, round ${Math.ceil(done / ids.length)} of ${all / ids.length}`);
      await chart();
      await new Promise((done) => setTimeout(done)); // the page is painted between two measurements
    };
    view.submodels = await measure(view.bundle, view.ort, ids, { session: view.session, length, told });
    const info = describe(provider === "wasm" ? (view.ort.env.wasm.numThreads ?? 1) : 1, provider, view.ort.env.versions?.web ?? view.ort.env.versions?.common ?? "", view.can.all[2].says);
    view.profile = await profileOf(view.document.fingerprint, nameOf(info), info, view.submodels, length);
    view.runtime = new Runtime(view.bundle, view.ort, [view.profile], { session: view.session });
    showMeasured();
    say(`measured ${ids.length} sizes, ${info.threads} thread${info.threads > 1 ? "s" : ""}, ${provider === "wasm" ? "processor" : "WebGPU"}`);
  } catch (error) {
    say(`Not measured: ${error.message}`, true);
  }
  byId("measure").disabled = false;
  byId("progress").hidden = true;
}

function showMeasured() {
  const rows = Object.entries(view.submodels).map(([id, { latency_ms: took, load_ms: open }]) =>
    element("tr", {}, element("th", { scope: "row", text: id }), ...[share(view.bundle.qualities[id]), digits(took.p50), digits(took.p90), digits(took.p99), digits(open)].map((text) => element("td", { class: "number", text }))),
  );
  byId("table").tBodies[0].replaceChildren(...rows);
  const isImage = view.bundle.preprocessing?.kind === "image";
  for (const id of ["picture", "picture-label", "camera", "camera-why", "shown"]) byId(id).hidden = !isImage;
  byId("again").hidden = isImage;
  byId("camera").disabled = !view.can.camera;
  byId("camera-why").textContent = view.can.camera ? "" : `Camera: ${view.can.all[3].says}`;
  for (const id of ["measured", "running"]) byId(id).hidden = false;
  byId("sending").hidden = !config.store;
  byId("name").value = view.profile.device.name;
  showLimit();
}

/** Logarithmic, from half of the fastest median to twice the slowest. */
function limit() {
  const medians = Object.values(view.submodels).map((one) => one.latency_ms.p50);
  const [low, high] = [Math.min(...medians) / 2, Math.max(...medians) * 2];
  return Number((low * (high / low) ** (byId("limit").value / 1000)).toPrecision(3));
}
let budget = null;
function showLimit() {
  budget = Object.freeze({ latency_ms: limit() }); // the same object until it changes: a choice can then be the same as before
  byId("limit-shown").textContent = `${budget.latency_ms} ms`;
  if (view.look && !stopCamera) run(view.look).catch(failed);
}

async function run(feed) {
  view.look = feed;
  const { outputs, selection, submodel, latencyMs } = await view.runtime.run(feed, budget);
  byId("submodel").textContent = submodel;
  byId("reason").textContent = `${digits(latencyMs)} ms now; ${selection.reason}`;
  const { kind, labels } = view.document.task;
  const [name] = view.document.outputs.map((one) => one.name);
  const items = kind === "classification" ? largest(outputs[name], labels).map(([label, p]) => `${label} ${(100 * p).toFixed(0)} %`) : Object.entries(outputs).map(([key, { dims }]) => `${key}: ${dims.join(" × ")}`);
  byId("labels").replaceChildren(...items.map((text) => element("li", { text })));
}

const failed = (error) => (byId("reason").textContent = error.message);
const feedOf = (source, width, height) => ({ [view.bundle.inputs[0].name]: tensorOf(view.ort, source, width, height, view.bundle.preprocessing) });

async function runPicture() {
  const [file] = byId("picture").files;
  if (!file) return;
  stopCamera?.();
  const bitmap = await opened(file);
  await run(feedOf(bitmap, bitmap.width, bitmap.height));
}

let stopCamera = null;
async function runCamera() {
  if (stopCamera) return stopCamera();
  const { video, stop } = await camera();
  byId("camera").textContent = "Stop the camera";
  stopCamera = () => {
    stop();
    stopCamera = null;
    byId("camera").textContent = "Use the camera";
  };
  while (stopCamera) {
    await run(feedOf(video, video.videoWidth, video.videoHeight)).catch((error) => [failed(error), stopCamera?.()]);
    await new Promise(requestAnimationFrame);
  }
}

async function send() {
  const name = byId("name").value;
  const { sha256: _, ...rest } = view.profile;
  const document = await profileOf(rest.bundle, name, rest.device, rest.submodels, rest.length);
  const answer = await fetch(`v1/bundles/${encodeURIComponent(view.name)}/profiles/${encodeURIComponent(name)}`, {
    method: "PUT",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${byId("token").value}` },
    body: JSON.stringify(document),
  });
  const found = await answer.json();
  const fields = (found.errors ?? []).map((one) => `${one.field}: ${one.message}`).join("; ");
  byId("sent").textContent = answer.ok ? `kept as version ${found.version} of ${name}` : [found.detail, fields].filter(Boolean).join(": ");
  byId("sent").classList.toggle("wrong", !answer.ok);
}

function save() {
  const address = URL.createObjectURL(new Blob([JSON.stringify(view.profile, null, 1)], { type: "application/json" }));
  element("a", { href: address, download: `${view.profile.device.name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

async function begin() {
  loadPlotly(config.charts);
  view.can = await abilities();
  byId("abilities").replaceChildren(...view.can.all.flatMap(({ name, can, says }) => [element("dt", { text: name }), element("dd", { text: says, class: can ? "yes" : "no" })]));
  byId("threads").max = view.can.threads;
  byId("threads").value = Math.min(view.can.threads, Math.max(1, Math.ceil(view.can.threads / 2)), 4);
  byId("threads").disabled = view.can.threads === 1;
  document.querySelector("input[name=provider][value=webgpu]").disabled = !(view.can.webgpu && config.ort?.webgpu);
  const on = (id, event, what) => byId(id).addEventListener(event, what);
  on("bundle", "change", () => openBundle(byId("bundle").value).catch((error) => say(error.message, true)));
  on("measuring", "submit", (event) => [event.preventDefault(), measureHere()]);
  on("limit", "input", showLimit);
  on("picture", "change", () => runPicture().catch(failed));
  on("camera", "click", () => runCamera().catch(failed));
  on("again", "click", () => run(exampleFeed(view.bundle, view.ort, view.profile.length ?? 0)).catch(failed));
  on("sending", "submit", (event) => [event.preventDefault(), send().catch((error) => (byId("sent").textContent = error.message))]);
  on("save", "click", save);
  const named = new URLSearchParams(location.search).get("bundle");
  if (named in config.bundles) byId("bundle").value = named;
  await openBundle(byId("bundle").value);
}

begin().catch((error) => say(error.message, true));
