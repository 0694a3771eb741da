// The page: what is looked at, and when what is asked and drawn anew.

import { bundleOf, deviceOf, entriesOf, measuredOf, offering, search, select, ServiceError } from "./api.js";
import { drawFrontier, empty, loadPlotly } from "./charts.js";
import { copyCode, showChoice, showCode, showProblem } from "./choice.js";
import { chart as compareChart, compare, firstDevices, showCompared } from "./compare.js";
import { lastingChosen, lengthChosen, LIMITS, offerLasting, offerLengths, restore, setLimit, spread, wanted, watchControls } from "./controls.js";
import { byId, choose, chosen, costOf, digits, element, metric, nameMetric, onChoice, settled, share } from "./format.js";
import { watchRuntime } from "./live.js";
import { watchRings } from "./rings.js";

const ASK_AFTER_MS = 60; // a slider that moves asks once it rests
const COMPARE_AFTER_MS = 250;

const config = JSON.parse(byId("config").textContent);
const view = { bundle: null, name: null, submodels: [], entries: {}, devices: [], device: null, cost: "latency_ms.p50", query: { budget: {} }, selection: null };
let shownDevices = [];
let running;

const query = () => ({
  bundle: view.bundle,
  ...(view.name !== null && { device: view.name }),
  ...wanted(),
  ...offering(view.device?.cascades ?? {}),
});
const draw = () => view.device && drawFrontier(view);

/** Looks at a bundle, and at one of its devices: the named one, or the service's default. */
async function openBundle(name, device = config.bundles[name]?.device) {
  view.bundle = name;
  nameMetric(config.bundles[name].metric);
  watchRings(name);
  byId("device").disabled = true; // its options are another bundle's until this one is here
  const [document, measured] = await Promise.all([bundleOf(name), measuredOf(name)]);
  if (view.bundle !== name) return; // another one was picked meanwhile
  view.submodels = document.submodels;
  const { devices, models, more } = measured ?? { devices: document.devices, models: [], more: false };
  byId("find-device").hidden = !more;
  offer(devices, models);
  if (more && device && !view.devices.includes(device)) {
    const others = await search(name, device); // an address may name one that is not listed
    if (view.bundle !== name) return;
    if ([...others.devices, ...others.models].includes(device)) offer([...devices, ...others.devices], [...models, ...others.models]);
  }
  byId("device").disabled = !view.devices.length;
  const found = [device, config.bundles[name].device, ...view.devices].find((one) => view.devices.includes(one)) ?? null;
  shownDevices = firstDevices(view.devices, found).filter(Boolean);
  await openDevice(found);
  if (device && found !== device && view.bundle === name) byId("device-about").textContent = `${device} is not known here; shown is ${found ?? "none"}`;
  await loadCompared();
}

/** What may be chosen as the device. */
function offer(devices, models) {
  view.devices = [...devices, ...models];
  byId("device").replaceChildren(...options(devices), ...(models.length ? [element("optgroup", { label: "median of a device model" }, ...options(models))] : []));
}

/** Where there are more devices than can be listed: those whose names begin with what is typed. */
async function findDevices() {
  const { bundle } = view;
  const beginning = byId("find").value.trim();
  if (!beginning) return;
  const { devices, models } = await search(bundle, beginning);
  if (view.bundle !== bundle || byId("find").value.trim() !== beginning) return;
  byId("found").textContent = devices.length + models.length ? `${devices.length + models.length} found, listed under Device` : "no name begins so";
  if (!devices.length && !models.length) return;
  offer(devices, models);
  await openDevice(view.devices[0]);
}

const options = (names) => names.map((one) => element("option", { value: one, text: one }));

async function openDevice(name) {
  busy();
  view.name = name;
  view.device = view.selection = null;
  view.entries = entriesOf(view.submodels, {});
  byId("pick-length").hidden = byId("pick-lasting").hidden = true;
  if (name === null) return nothing("No device has measured this bundle yet. Measure one with: sortednet profile BUNDLE", "Answered once a device has measured the bundle: sortednet profile BUNDLE");
  byId("device").value = name;
  const { bundle } = view;
  const [length, lasting] = [lengthChosen(), lastingChosen()];
  let found = await deviceOf(bundle, name, length, lasting);
  if (view.bundle !== bundle || view.name !== name || lengthChosen() !== length || lastingChosen() !== lasting) return undefined;
  if (!offerLengths(found.lengths)) found = await deviceOf(bundle, name, "", lasting); // another device's, or of an address
  if (view.bundle !== bundle || view.name !== name) return undefined;
  offerLasting(found.profile?.sustained);
  if (found.problem) return nothing(found.problem);
  view.device = found;
  view.needs = undefined;
  view.entries = entriesOf(view.submodels, found.cascades);
  const { cpu, threads, execution_provider: provider, label } = found.profile.device;
  byId("device-about").textContent = label || `${cpu}, ${threads} thread${threads > 1 ? "s" : ""}, ${provider}`;
  spread(found, qualities());
  frontierTable();
  await ask();
}

const qualities = () => Object.fromEntries(Object.entries(view.entries).map(([id, { quality }]) => [id, quality]));

/** The empty state: no profile, no quality, or a profile of another bundle. `needs`: what the query lacks. */
function nothing(message, needs = message) {
  byId("device-about").textContent = "no figures";
  spread(null, {});
  const known = Object.values(qualities()).filter((one) => one !== null);
  showProblem(message, known.length ? Math.max(...known) : undefined);
  view.needs = needs;
  showCode(query(), needs);
  byId("frontier-about").textContent = "\u00a0";
  byId("frontier-table").replaceChildren();
  return empty("frontier-chart", message);
}

/** Asks which sub-model fits; a question that was overtaken is aborted. */
async function ask() {
  running?.abort();
  if (!view.device) return;
  running = new AbortController();
  view.query = query();
  remember();
  showCode(view.query);
  busy();
  try {
    view.selection = await select(view.query, running.signal);
    const { source } = view.device.profile.submodels[view.selection.submodel] ?? {};
    showChoice(view.selection, view.query, view.entries[view.selection.submodel]?.precision ?? "cascade", source);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ServiceError)) throw error;
    view.selection = null;
    showProblem(error.message);
  }
  frontierAbout();
  await draw();
}

/** Until the next answer is shown. */
const busy = () => byId("choice").setAttribute("aria-busy", "true");

const askSoon = settled(ask, ASK_AFTER_MS);
const findSoon = settled(() => findDevices().catch(failed), COMPARE_AFTER_MS);
const compareSoon = settled(() => showCompared(wanted(), view.cost), COMPARE_AFTER_MS);

function changed() {
  if (view.device) busy();
  askSoon();
  compareSoon();
}

/** On the horizontal axis, where nothing else was chosen: the latency that the budget limits. */
const usualCost = () => `latency_ms.p${chosen("percentile")}`;

/** The address holds the query, so that it can be sent to a colleague. */
function remember() {
  const { budget, battery } = view.query;
  const entries = { bundle: view.bundle, device: view.name, ...budget, ...(battery && { battery: battery.percent, discharging: battery.discharging }) };
  if (view.cost !== usualCost()) entries.cost = view.cost;
  history.replaceState(null, "", `?${new URLSearchParams(entries)}${location.hash}`);
}

function frontierAbout() {
  const { profile, frontiers, cascades } = view.device;
  const all = Object.entries(profile.submodels).flatMap(([id, one]) => (id in cascades ? [] : [one]));
  const measured = all.filter((one) => one.source.latency_ms === "measured").length;
  const error = profile.prediction?.latency_ms;
  const rest = measured < all.length ? `, the others predicted${error ? `, off by ${digits(100 * error.median, 2)} % in the median` : ""}` : "";
  const pairs = Object.keys(cascades).length;
  const lengths = view.device.lengths;
  const work = lastingChosen() ? " in steady work" : "";
  const at = lengths.length ? ` Costs are of inputs of ${lengthChosen() || lengths.at(-1)}${work}.` : work && ` Costs are those${work}.`;
  const besides = pairs ? `; ${pairs} cascade${pairs > 1 ? "s" : ""} at the cost that is expected` : "";
  byId("frontier-about").textContent = `${all.length} sub-models, latency of ${measured} measured${rest}${besides}. ${frontiers[view.cost].length} are on this frontier.${at}`;
}

function frontierTable() {
  const { profile, frontiers } = view.device;
  const heads = ["from, " + (view.cost.startsWith("latency") ? "ms" : view.cost === "energy_mj" ? "mJ" : "MB"), "sub-model", metric(), "p50, ms", "p90, ms", "p99, ms", "energy, mJ", "memory, MB", "precision", "latency is"];
  const number = (text) => element("td", { text, class: "number" });
  byId("frontier-table").replaceChildren(
    element("thead", {}, element("tr", {}, ...heads.map((text, i) => element("th", { text, scope: "col", ...(i !== 1 && i < 8 && { class: "number" }) })))),
    element("tbody", {}, ...frontiers[view.cost].map(([limit, id]) => {
      const costs = profile.submodels[id];
      const figures = ["latency_ms.p50", "latency_ms.p90", "latency_ms.p99", "energy_mj", "memory_mb"].map((cost) => number(digits(costOf(costs, cost))));
      return element("tr", {}, number(digits(limit)), element("th", { text: id, scope: "row" }), number(share(view.entries[id].quality)), ...figures, element("td", { text: view.entries[id].precision }), element("td", { text: costs.source.latency_ms }));
    })),
  );
}

async function loadCompared() {
  const bundles = chosen("compared") === "bundles";
  const others = view.devices.filter((one) => !shownDevices.includes(one));
  byId("add-device").hidden = bundles || !others.length;
  byId("others").replaceChildren(...others.slice(0, 1000).map((value) => element("option", { value })));
  await compare(
    bundles
      ? Object.entries(config.bundles).filter(([, one]) => one.device).map(([bundle, { device, metric: named }]) => ({ bundle, device, metric: named, label: `${bundle} on ${device}` }))
      : shownDevices.map((device) => ({ bundle: view.bundle, device, metric: metric(), label: device })),
  );
  await showCompared(wanted(), view.cost);
}

function showCost(cost) {
  view.cost = cost;
  if (!view.device) return;
  remember();
  frontierAbout();
  frontierTable();
  draw();
  compareChart(cost);
}

/** The axis and the sliders follow the percentile. */
function percentileChosen(percentile) {
  if (view.cost.startsWith("latency") && view.cost !== `latency_ms.p${percentile}`) {
    choose("cost", `latency_ms.p${percentile}`);
    showCost(`latency_ms.p${percentile}`);
  }
  if (view.device) spread(view.device, qualities());
  changed();
}

function wire() {
  watchControls(changed);
  onChoice("objective", changed);
  onChoice("percentile", percentileChosen);
  onChoice("cost", showCost);
  onChoice("language", () => showCode(query(), view.needs));
  onChoice("compared", () => loadCompared().catch(failed));
  onChoice("theme", (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // storage is blocked: it holds until the page is left
    }
    recolour();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  byId("bundle").addEventListener("change", (event) => openBundle(event.target.value).catch(failed));
  byId("device").addEventListener("change", (event) => openDevice(event.target.value).catch(failed));
  byId("length").addEventListener("change", () => openDevice(view.name).then(loadCompared).catch(failed));
  onChoice("lasting", () => openDevice(view.name).then(loadCompared).catch(failed));
  byId("budget").addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", () => {
    for (const key of LIMITS) setLimit(key, null);
    restore(new URLSearchParams());
    percentileChosen("50");
  });
  byId("find").addEventListener("input", findSoon);
  byId("another").addEventListener("input", () => byId("another").setCustomValidity(""));
  byId("copy").addEventListener("click", copyCode);
  byId("add-device").addEventListener("submit", (event) => {
    event.preventDefault();
    const known = view.devices.includes(byId("another").value);
    byId("another").setCustomValidity(known ? "" : "There is no device of this name");
    if (!known) return byId("another").reportValidity();
    shownDevices = [...new Set([...shownDevices, byId("another").value])].sort();
    byId("another").value = "";
    loadCompared().catch(failed);
  });
}

function recolour() {
  draw();
  compareChart(view.cost);
}

function failed(error) {
  showProblem(error.message);
  if (!(error instanceof ServiceError)) throw error;
}

async function begin() {
  const asked = new URLSearchParams(location.search);
  const bundle = Object.hasOwn(config.bundles, asked.get("bundle")) ? asked.get("bundle") : Object.keys(config.bundles)[0];
  choose("theme", document.documentElement.dataset.theme ?? "auto");
  restore(asked);
  choose("cost", asked.get("cost") ?? usualCost());
  view.cost = chosen("cost");
  wire();
  byId("bundle").value = bundle;
  watchRuntime(config, () => view.bundle);
  requestAnimationFrame(() => setTimeout(() => loadPlotly(config.charts), 0)); // once the page has been painted
  await openBundle(bundle, asked.get("device") ?? undefined);
}

begin().catch(failed);
