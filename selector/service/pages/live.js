// This host's runtime while it answers predictions. Asked every second, only while it is looked at.

import { bundleOf, runtime, ServiceError } from "./api.js";
import { colours, draw, layoutOf } from "./charts.js";
import { byId, digits, element } from "./format.js";

const EVERY_MS = 1000;
const SHOWN = 300; // the latest runs

let timer;
let inView = false;

/** Begins. `config` is the page's; `bundle()` says which one is looked at. */
export function watchRuntime(config, bundle) {
  if (!config.runtime) return;
  const visible = () => inView && document.visibilityState === "visible";
  const tick = async () => {
    if (!visible()) return;
    await show(bundle());
    clearTimeout(timer);
    timer = setTimeout(tick, EVERY_MS);
  };
  const look = () => {
    clearTimeout(timer);
    if (visible()) tick();
  };
  new IntersectionObserver(([seen]) => {
    inView = seen.isIntersecting;
    look();
  }).observe(byId("live"));
  document.addEventListener("visibilitychange", look);
}

async function show(bundle) {
  let found;
  try {
    found = (await runtime()).bundles ?? {};
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    byId("live-state").textContent = error.message;
    return;
  }
  const name = found[bundle]?.history?.length ? bundle : Object.keys(found).find((one) => found[one].history?.length);
  byId("live-none").hidden = name !== undefined;
  byId("live-view").hidden = name === undefined;
  if (name === undefined) return;
  const history = found[name].history.slice(-SHOWN).map((run) => ({ ...run, at: moment(run.at) }));
  const what = history[0].tokens_per_second ? "text" : "run";
  byId("live-state").textContent = `${name}: the latest ${history.length} ${what}${history.length === 1 ? "" : "s"}`;
  figures(history, found[name].sensors ?? {});
  const { submodels, cascades } = await bundleOf(name);
  const macs = Object.fromEntries(submodels.map((one) => [one.id, one.macs]));
  for (const { id, first, then, escalation } of cascades) macs[id] = macs[first] + escalation * macs[then];
  await chart(history, macs, name);
}

const moment = (at) => (typeof at === "number" ? new Date(at * 1000) : new Date(at));

function figures(history, sensors) {
  const last = history.at(-1);
  const judged = history.filter((run) => run.met !== null && run.met !== undefined);
  const met = judged.filter((run) => run.met).length;
  const all = [
    ["chosen", last.submodel, last.device ?? ""],
    ["deadlines met", judged.length ? `${digits((100 * met) / judged.length)} %` : "–", judged.length ? `${met} of ${judged.length}` : "no deadline given"],
    ...(last.tokens_per_second ? [["tokens per second", digits(last.tokens_per_second), "of the latest text, after its first token"]] : []),
    [last.tokens_per_second ? "latency per token" : "latency", `${digits(last.latency_ms)} ms`, last.limit_ms ? `limit ${digits(last.limit_ms)} ms` : "no limit"],
    ["slow-down", last.slow_down ? `× ${digits(last.slow_down)}` : "–", "over the profile"],
    ["battery", last.battery_percent === null || last.battery_percent === undefined ? "–" : `${digits(last.battery_percent)} %`, last.battery_percent == null ? "none, or not known" : ""],
    ...Object.entries(sensors).map(([name, value]) => [name.replaceAll("_", " "), typeof value === "number" ? digits(value) : String(value ?? "–"), "sensor"]),
  ];
  byId("live-figures").replaceChildren(
    ...all.map(([name, value, more]) => element("div", {}, element("dt", { text: name }), element("dd", {}, element("b", { text: value })), element("p", { class: "source", text: more || "\u00a0" }))),
  );
}

/** Three charts over one time axis: the chosen size, latency against its limit, slow-down and battery. */
function chart(history, macs, name) {
  const ink = colours();
  const x = history.map((run) => run.at);
  const sizes = history.map((run) => (macs[run.submodel] ?? NaN) / 1e6);
  const missed = history.filter((run) => run.met === false);
  const hover = { hovertemplate: "%{y:.3~g}<extra>%{fullData.name}</extra>" };
  const traces = [
    { x, y: sizes, text: history.map((run) => run.submodel), name: "chosen size", line: { color: ink.accent, width: 2, shape: "hv" }, hovertemplate: "%{text}<br>%{y:.3~g} M MACs<extra></extra>" },
    { x, y: history.map((run) => run.latency_ms), name: "latency", yaxis: "y2", mode: "markers", marker: { size: 4, color: ink.accent }, ...hover },
    { x: missed.map((run) => run.at), y: missed.map((run) => run.latency_ms), name: "missed", yaxis: "y2", mode: "markers", marker: { size: 8, symbol: "x", color: ink.bad }, ...hover },
    { x, y: history.map((run) => run.limit_ms ?? null), name: "limit", yaxis: "y2", line: { color: ink.warn, width: 1.5, dash: "dot", shape: "hv" }, ...hover },
    { x, y: history.map((run) => run.slow_down ?? null), name: "slow-down", yaxis: "y3", line: { color: ink.series[2], width: 2 }, ...hover },
  ];
  if (history.some((run) => typeof run.battery_percent === "number"))
    traces.push({ x, y: history.map((run) => run.battery_percent), name: "battery", yaxis: "y4", line: { color: ink.series[3], width: 2, dash: "dash" }, ...hover });
  const base = layoutOf(ink);
  const axis = (domain, text, more = {}) => ({ ...base.yaxis, domain, title: { text, standoff: 6 }, rangemode: "tozero", nticks: 4, ...more });
  return draw("live-chart", traces.map((trace) => ({ mode: "lines", ...trace })), {
    ...base,
    uirevision: name,
    showlegend: true,
    hovermode: "x",
    margin: { ...base.margin, r: 44 },
    xaxis: { ...base.xaxis, type: "date", anchor: "y3" },
    yaxis: axis([0.7, 1], "M MACs"),
    yaxis2: axis([0.35, 0.64], "ms"),
    yaxis3: axis([0, 0.29], "slow-down"),
    yaxis4: { ...axis([0, 0.29], "battery, %"), overlaying: "y3", side: "right", range: [0, 100], tickvals: [0, 50, 100], showgrid: false },
  });
}
