// Several devices of one bundle, or all bundles: their frontiers in one chart, and what each would choose.

import { bundleOf, deviceOf, entriesOf, offering, selectMany, ServiceError } from "./api.js";
import { qualityAxis, colours, costAxis, draw, empty, frontierLine, layoutOf, lineOf } from "./charts.js";
import { lastingChosen, lengthChosen } from "./controls.js";
import { byId, costOf, digits, element, share, unit } from "./format.js";

const AT_FIRST = 8; // devices that are shown unasked: a fleet may have thousands

let rows = []; // of the table and the chart: {bundle, device, label, metric, entries, frontiers, cascades, profile, selection}
let latest; // what was last asked to be compared
let running;

/** Which devices are shown at first: the present one and those that come first. */
export const firstDevices = (devices, present) => [...new Set([present, ...devices])].slice(0, AT_FIRST).sort();

/** Loads what is to be compared: each `{bundle, device, label, metric}`. Those without frontiers are left out. */
export async function compare(pairs) {
  latest = pairs;
  const found = await Promise.all(pairs.map((pair) => loaded(pair).catch(unlessRefused)));
  if (latest === pairs) rows = found.filter((row) => row?.profile);
}

async function loaded(pair) {
  const [{ submodels }, { profile, frontiers, cascades }] = await Promise.all([bundleOf(pair.bundle), deviceOf(pair.bundle, pair.device, lengthChosen(), lastingChosen())]);
  return { ...pair, profile, frontiers, cascades, entries: entriesOf(submodels, cascades) };
}

function unlessRefused(error) {
  if (!(error instanceof ServiceError)) throw error;
}

/** Asks for each row's choice within the budget that `wanted` holds, and shows chart and table. */
export async function showCompared(wanted, cost) {
  running?.abort();
  running = new AbortController();
  const queries = rows.map(({ bundle, device, cascades }) => ({ bundle, device, ...wanted, ...offering(cascades) }));
  try {
    const answers = await selectMany(queries, running.signal);
    rows.forEach((row, i) => (row.selection = answers[i]));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ServiceError)) throw error;
    rows.forEach((row) => (row.selection = error));
  }
  table();
  await chart(cost);
}

/** The chart by itself, for another axis or other colours. */
export async function chart(cost) {
  const shown = rows.filter((row) => row.frontiers[cost]?.length);
  if (!shown.length) return empty("compare-chart", rows.length ? "This cost is not known on any of them." : "There is nothing to compare yet.");
  const ink = colours();
  const x = costAxis(cost, shown.flatMap((row) => row.frontiers[cost].map(([value]) => value)));
  const y = qualityAxis(shown.flatMap((row) => row.frontiers[cost].map(([, id]) => row.entries[id].quality)), measure());
  const traces = shown.flatMap((row) => {
    const line = lineOf(ink, rows.indexOf(row));
    const steps = row.frontiers[cost];
    const text = steps.map(([value, id]) => `<b>${row.label}</b><br>${id}<br>${row.metric} ${share(row.entries[id].quality)}<br>${digits(value)} ${unit(cost)}`);
    const traced = [
      frontierLine(steps, row.entries, x, line, { name: row.label, text: [...text, ""], mode: "lines+markers", hovertemplate: "%{text}<extra></extra>", legendgroup: row.label, marker: { size: [...steps.map(() => 5), 0], color: line.color, line: { width: 0 } } }),
    ];
    const costs = row.selection instanceof ServiceError ? null : row.profile.submodels[row.selection?.submodel];
    const place = costs && costOf(costs, cost);
    if (place) {
      traced.push({
        x: [place],
        y: [row.selection.quality],
        mode: "markers",
        marker: { symbol: row.selection.feasible ? "circle-open" : "x-thin-open", size: 15, color: line.color, line: { width: 2.5 } },
        hoverinfo: "skip",
        legendgroup: row.label,
        showlegend: false,
      });
    }
    return traced;
  });
  return draw("compare-chart", traces, layoutOf(ink, { uirevision: cost, xaxis: x, yaxis: y, showlegend: true }));
}

/** Of the column of qualities, and of the axis: the metric, where all rows have the same. */
const measure = () => (new Set(rows.map((row) => row.metric)).size === 1 ? rows[0].metric : "quality");
const headings = () => ["", "chosen", "fits", measure(), "latency, ms", "energy, mJ", "memory, MB"];

function table() {
  byId("compare-table").hidden = !rows.length;
  const [head, body] = [byId("compare-table").tHead, byId("compare-table").tBodies[0]];
  head.replaceChildren(element("tr", {}, ...headings().map((text, i) => element(i ? "th" : "td", { text, ...(i && { scope: "col" }), ...(i > 2 && { class: "number" }) }))));
  body.replaceChildren(
    ...rows.map((row, n) => {
      const { selection: one, profile } = row;
      const key = element("span", { class: `key series-${(n % 6) + 1} dash-${Math.floor(n / 6) % 4}`, "aria-hidden": "true" });
      const lasting = lastingChosen() ? `, ${profile.sustained ? "steady work" : "only the first minute known"}` : "";
      const about = element("small", { text: `${profile.device.cpu}, ${profile.device.threads} thread${profile.device.threads > 1 ? "s" : ""}${lasting}` });
      const name = element("th", { scope: "row" }, key, row.label, about);
      if (one instanceof ServiceError) return element("tr", {}, name, element("td", { colspan: 6, text: one.message }));
      const figures = [share(one.quality), digits(one.latency_ms), digits(one.energy_mj), digits(one.memory_mb)];
      return element(
        "tr",
        { title: one.reason, ...(!one.feasible && { class: "missed" }) },
        name,
        element("td", { text: one.submodel }),
        element("td", { text: one.feasible ? "yes" : "no, nearest", class: "fits" }),
        ...figures.map((text) => element("td", { text, class: "number" })),
      );
    }),
  );
}
