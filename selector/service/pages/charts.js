// The charts. Plotly comes from this service too, and is loaded after the page has been painted.

import { COSTS, byId, capital, costOf, digits, element, metric, share, unit } from "./format.js";

const KINDS = [
  ["fp32", "measured", "circle"],
  ["fp32", "predicted", "circle-open"],
  ["fp32", "declared", "circle-dot"],
  ["int8", "measured", "diamond"],
  ["int8", "predicted", "diamond-open"],
  ["int8", "declared", "diamond-dot"],
  ["cascade", "predicted", "star-open"],
];
const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset" };
const LINES = ["solid", "dash", "dot", "dashdot"];

let loaded, notLoaded;
const loading = new Promise((done, failed) => ([loaded, notLoaded] = [done, failed]));
loading.catch(() => {}); // whoever draws is told

/** Loads Plotly itself; what is drawn before waits for it. */
export function loadPlotly(address) {
  const script = element("script", { src: address });
  script.addEventListener("load", () => loaded(window.Plotly));
  script.addEventListener("error", () => notLoaded(new Error("The charting library was not loaded.")));
  document.head.append(script);
}

/** Draws or redraws a chart in the element of that id. */
export async function draw(id, traces, layout) {
  const Plotly = await loading;
  const box = byId(id);
  box.querySelector(":scope > .waiting, :scope > .empty")?.remove();
  await Plotly.react(box, traces, layout, CONFIG);
}

/** Says in a chart's place why there is none. */
export async function empty(id, message) {
  const box = byId(id);
  if (box.data) (await loading).purge(box);
  box.replaceChildren(element("p", { class: "empty", text: message }));
}

/** The page's colours as they are now, light or dark. */
export function colours() {
  const probe = element("i", { hidden: "" });
  document.body.append(probe);
  const found = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const names = ["ink", "quiet", "line", "surface", "accent", "accent-soft", "int8", "warn", "warn-soft", "good", "bad"];
  const all = Object.fromEntries(names.map((name) => [name, found(name)]));
  all.series = [1, 2, 3, 4, 5, 6].map((i) => found(`series-${i}`));
  probe.remove();
  return all;
}

/** The colour and dash of the nth of several lines. */
export const lineOf = (ink, n) => ({ color: ink.series[n % 6], dash: LINES[Math.floor(n / 6) % 4], width: 2, shape: "hv" });

export function layoutOf(ink, more = {}) {
  const narrow = innerWidth <= 600;
  const axis = { gridcolor: ink.line, linecolor: ink.line, zeroline: false, ticks: "outside", tickcolor: ink.line, automargin: false };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink.quiet },
    margin: { l: narrow ? 62 : 66, r: narrow ? 4 : 12, t: 34, b: 46 },
    hoverlabel: { bgcolor: ink.surface, bordercolor: ink.line, font: { color: ink.ink, size: 12 }, align: "left" },
    legend: { orientation: "h", xref: "container", yref: "container", x: 0.01, y: 1, xanchor: "left", yanchor: "top", font: { size: narrow ? 11 : 12 }, itemwidth: 30, bgcolor: "rgba(0,0,0,0)" },
    dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false,
    hovermode: "closest",
    ...more,
    xaxis: { ...axis, ...more.xaxis },
    yaxis: { ...axis, ...more.yaxis },
  };
}

/** An axis of costs that shows all of these values; logarithmic where they span more than a factor of 6. */
export function costAxis(cost, values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const title = { text: `${COSTS[cost]} (${unit(cost)})`, standoff: 8 };
  if (high / low <= 6) return { title, type: "linear", range: [Math.max(0, low - 0.08 * (high - low || low)), high + 0.1 * (high - low || high)] };
  const pad = 0.06 * Math.log10(high / low);
  return { title, type: "log", ...logTicks(low, high), range: [Math.log10(low) - pad, Math.log10(high) + 1.5 * pad] };
}

/** 1, 2 and 5 of every power of ten that is in reach; Plotly's own labels leave the power out. */
function logTicks(low, high) {
  const tickvals = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const digit of high / low > 1000 ? [1] : [1, 2, 5]) tickvals.push(Number(`${digit}e${power}`));
  return { tickvals, ticktext: tickvals.map(String) };
}

export function qualityAxis(values, name = metric()) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = 0.06 * (high - low) || 0.01;
  return { title: { text: capital(name), standoff: 6 }, nticks: 7, tickformat: high - low > 0.06 ? ".2f" : ".3f", range: [low - 2 * pad /* for the name of the least */, high + 2 * pad] };
}

/**
 * Every sub-model and cascade of a device, its frontier, the limits of the budget and the choice.
 * `view`: {entries by id, device: {profile, frontiers}, cost, query, selection or null}.
 */
export function drawFrontier(view) {
  const ink = colours();
  const { entries, device, cost } = view;
  const points = Object.entries(device.profile.submodels)
    .map(([id, costs]) => ({ id, costs, entry: entries[id], x: costOf(costs, cost), y: entries[id].quality }))
    .filter((point) => point.x !== null && point.y !== null);
  if (!points.length) return empty("frontier-chart", `The ${COSTS[cost].toLowerCase()} is not known on this device.`);
  const steps = device.frontiers[cost];
  const edge = new Set(steps.map(([, id]) => id));
  points.sort((a, b) => edge.has(b.id) - edge.has(a.id)); // the legend shows the first of a kind: one of those that count
  const x = costAxis(cost, points.map((point) => point.x));
  const y = qualityAxis(points.map((point) => point.y));
  const traces = [frontierLine(steps, entries, x, { color: ink.quiet, width: 1.5, shape: "hv" }, { name: "frontier", hoverinfo: "skip" })];
  for (const [precision, source, symbol] of KINDS) {
    const found = points.filter((p) => p.entry.precision === precision && p.costs.source[cost.split(".")[0]] === source);
    if (found.length) traces.push(cloud(found, edge, `${precision} ${source}`, symbol, precision === "int8" ? ink.int8 : ink.accent));
  }
  const { selection } = view;
  const there = selection && points.find((point) => point.id === selection.submodel);
  traces.push(choiceMark(there, x, selection?.feasible ? ink.ink : ink.warn));
  return draw("frontier-chart", traces, layoutOf(ink, {
    shapes: limitShapes(view, ink),
    uirevision: `${device.profile.device.name} ${device.profile.bundle} ${cost} ${view.query.budget.length ?? ""} ${view.query.budget.sustained ?? ""}`,
    xaxis: x,
    yaxis: y,
  }));
}

/** A frontier as a staircase that goes on to the right edge of the axis. */
export function frontierLine(steps, entries, axis, line, more) {
  const edge = axis.type === "log" ? 10 ** axis.range[1] : axis.range[1];
  const values = steps.map(([, id]) => entries[id].quality);
  return { x: [...steps.map(([value]) => value), edge], y: [...values, values.at(-1)], mode: "lines", line, ...more };
}

function cloud(points, edge, name, symbol, colour) {
  // Colours of their own: of opacities the legend would show the mean, a colour that is nowhere in the chart.
  const shades = points.map((point) => (edge.has(point.id) ? colour : colour.replace("rgb(", "rgba(").replace(")", ", 0.5)")));
  return {
    name,
    mode: "markers",
    x: points.map((point) => point.x),
    y: points.map((point) => point.y),
    text: points.map(about),
    hovertemplate: "%{text}<extra></extra>",
    marker: { symbol, opacity: 1, color: shades, size: points.map((p) => (edge.has(p.id) ? 9 : 6)), line: { width: 1.5, color: shades } },
  };
}

export function about({ id, costs, entry }) {
  const { latency_ms: latency, source } = costs;
  const said = (name, text) => `${text} ${source[name] === "measured" ? "" : source[name] ?? ""}`;
  return [
    `<b>${id}</b>  ${entry.precision}`,
    `${metric()} ${share(entry.quality)}`,
    said("latency_ms", `latency p50 ${digits(latency.p50)}, p90 ${digits(latency.p90)}, p99 ${digits(latency.p99)} ms`),
    said("energy_mj", `energy ${digits(costs.energy_mj)} mJ`),
    said("memory_mb", `memory ${digits(costs.memory_mb)} MB`),
    entry.then
      ? `${entry.first}, and in ${(100 * entry.escalation).toFixed(0)} % ${entry.then}`
      : `${(entry.params / 1e3).toFixed(1)} k parameters, ${(entry.macs / 1e6).toFixed(2)} M MACs`,
  ].join("<br>");
}

function choiceMark(point, axis, colour) {
  const [low, high] = axis.range;
  const place = point && ((axis.type === "log" ? Math.log10(point.x) : point.x) - low) / (high - low);
  const room = byId("frontier-chart").clientWidth - 80;
  const width = (name) => 9 * Math.max(...name.split("<br>").map((line) => line.length)) + 12;
  let name = point ? point.id : "";
  if (Math.max(place, 1 - place) * room < width(name)) name = name.replaceAll("+", "<br>+"); // a cascade's
  const atLeft = point && place * room < width(name);
  return {
    x: point ? [point.x] : [],
    y: point ? [point.y] : [],
    text: point ? [`<b>${name}</b>`] : [],
    mode: "markers+text",
    textposition: atLeft ? "bottom right" : "top left" /* beyond the frontier there is nothing */,
    textfont: { size: 13, color: colour },
    marker: { symbol: "circle-open", size: 19, color: colour, line: { width: 2.5 } },
    hoverinfo: "skip",
    cliponaxis: false,
    showlegend: false,
  };
}

/** What the budget excludes of the plane that is shown, shaded. */
function limitShapes({ cost, query: { budget } }, ink) {
  const shapes = [];
  const shade = { type: "rect", layer: "below", line: { width: 0 }, fillcolor: ink["warn-soft"] };
  const line = { type: "line", line: { color: ink.warn, width: 1.5, dash: "dot" } };
  const [name, percentile] = cost.split(".");
  const limit = budget[name];
  if (limit !== undefined && (!percentile || percentile === `p${budget.percentile ?? 50}`)) {
    const tall = { yref: "paper", y0: 0, y1: 1 };
    shapes.push({ ...shade, ...tall, x0: limit, x1: limit * 1e4 }, { ...line, ...tall, x0: limit, x1: limit });
  }
  const floor = budget.min_quality;
  if (floor !== undefined) {
    const wide = { xref: "paper", x0: 0, x1: 1 };
    shapes.push({ ...shade, ...wide, y0: -1, y1: floor }, { ...line, ...wide, y0: floor, y1: floor });
  }
  return shapes;
}
