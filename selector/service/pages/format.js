// Numbers as text, and small helpers for elements.

export const UNITS = { latency_ms: "ms", energy_mj: "mJ", memory_mb: "MB" };
export const COSTS = {
  "latency_ms.p50": "Latency, p50",
  "latency_ms.p90": "Latency, p90",
  "latency_ms.p99": "Latency, p99",
  energy_mj: "Energy",
  memory_mb: "Memory",
};

/** A number with so many significant digits; a dash where it is not known. */
export function digits(value, count = 3) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 10 ** count ? String(Math.round(value)) : value.toPrecision(count);
}

export const share = (value) => (value === null || value === undefined ? "–" : value.toFixed(4));

let metricName = "accuracy";
/** What quality is called in the bundle that is looked at: "accuracy", "mean IoU". */
export const metric = () => metricName;
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Another bundle is looked at: wherever its metric is named, it is named so from now on. */
export function nameMetric(name) {
  metricName = name;
  for (const place of document.querySelectorAll("[data-metric]")) place.textContent = place.dataset.metric === "capital" ? capital(name) : name;
  for (const place of document.querySelectorAll("[data-metric-label]")) place.setAttribute("aria-label", `${capital(name)}${place.dataset.metricLabel}`);
}

export const unit = (cost) => UNITS[cost.split(".")[0]];

/** What a profile says of one sub-model at a cost such as `latency_ms.p90`; null where it is not known. */
export function costOf(measurement, cost) {
  const [name, percentile] = cost.split(".");
  const value = measurement[name];
  return value === null || value === undefined ? null : percentile ? value[percentile] : value;
}

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; `text` sets its text. */
export function element(tag, { text, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

/** Calls `what` once, so many milliseconds after the last call. */
export function settled(what, milliseconds) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => what(...values), milliseconds);
  };
}

/** Which radio button of a group is on, and what to do when another one is. */
export const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
export function choose(name, value) {
  const found = document.querySelector(`input[name="${name}"][value="${CSS.escape(value)}"]`);
  if (found) found.checked = true;
}
export function onChoice(name, what) {
  for (const input of document.querySelectorAll(`input[name="${name}"]`)) input.addEventListener("change", () => what(input.value));
}
