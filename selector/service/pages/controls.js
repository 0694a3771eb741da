// The budget's sliders and exact fields. One end of every slider means that there is no limit.

import { byId, choose, chosen, costOf, digits, element, metric } from "./format.js";

const STEPS = 120;
const BATTERY = "battery";
const FLOOR = "min_quality"; // the only limit from below: its slider has "no limit" at the left
export const LIMITS = ["latency_ms", "energy_mj", "memory_mb", FLOOR, BATTERY];

const scales = {};

/** Calls `changed` whenever the budget is another one. */
export function watchControls(changed) {
  for (const key of LIMITS) {
    const [range, exact] = inputs(key);
    range.addEventListener("input", () => {
      const value = scales[key].value(Number(range.value));
      exact.value = value ?? "";
      judge(key);
      describe(key, value);
      changed(key);
    });
    exact.addEventListener("input", () => {
      const value = limit(key);
      judge(key);
      range.value = scales[key].place(value);
      describe(key, value);
      changed(key);
    });
  }
  byId("discharging").addEventListener("change", () => changed(BATTERY));
}

/** The value that a field holds; null for none, or for one that is no limit. */
export function limit(key) {
  const [, exact] = inputs(key);
  const value = exact.valueAsNumber;
  if (Number.isNaN(value)) return null;
  if (key === BATTERY) return value >= 0 && value <= 100 ? value : null;
  return key === FLOOR ? (value >= 0 && value <= 1 ? value : null) : value > 0 ? value : null;
}

/** Says below the field why what stands in it is no limit, and that it does not count. */
function judge(key) {
  const [, exact] = inputs(key);
  const wrong = exact.validity.badInput || (exact.value !== "" && limit(key) === null);
  exact.setAttribute("aria-invalid", String(wrong));
  const hint = byId(`${key}-hint`);
  hint.dataset.usual ??= hint.textContent;
  hint.textContent = wrong ? `Not counted: ${complaint(key, exact)}` : hint.dataset.usual;
  hint.classList.toggle("wrong", wrong);
}

function complaint(key, { validity, valueAsNumber: value }) {
  if (validity.badInput) return "this is not a number";
  if (key === BATTERY) return `${value} is no charge; allowed are 0 to 100 %`;
  if (key !== FLOOR) return `${value} is no limit; allowed is what is above 0`;
  return `${value} is no ${metric()}; allowed is 0 to 1${value > 1 && value <= 100 ? `, such as ${value / 100}` : ""}`;
}

export function setLimit(key, value) {
  const [range, exact] = inputs(key);
  exact.value = value ?? "";
  judge(key);
  if (scales[key]) range.value = scales[key].place(limit(key));
  describe(key, limit(key));
}

/** The fields of a query that say what is wanted: `budget`, and `battery` where it is given. */
export function wanted() {
  const budget = {};
  for (const key of ["latency_ms", "energy_mj", "memory_mb", FLOOR]) if (limit(key) !== null) budget[key] = limit(key);
  if (chosen("percentile") !== "50") budget.percentile = Number(chosen("percentile"));
  if (chosen("objective") !== "quality") budget.objective = chosen("objective");
  if (lengthChosen()) budget.length = Number(lengthChosen());
  if (lastingChosen()) budget.sustained = true;
  const percent = limit(BATTERY);
  return percent === null ? { budget } : { budget, battery: { percent, discharging: byId("discharging").checked } };
}

/** Of the input, as text; empty for the longest, which counts where a query has no length. */
export const lengthChosen = () => byId("length").value;

/** Whether costs are those of steady work. */
export const lastingChosen = () => chosen("lasting") === "sustained";

/** Offers those, where the device's profile says what it holds then (`sustained`), and shows by how much that is more. */
export function offerLasting(sustained) {
  byId("pick-lasting").hidden = !sustained;
  if (!sustained) return choose("lasting", "first");
  const { submodel, minutes, first, after, settled_minutes: settled } = sustained;
  const end = settled === null ? "still drifting at the end" : `settled after ${digits(settled, 2)} min`;
  byId("lasting-about").textContent = `${submodel} without a pause for ${digits(minutes, 2)} min: p50 ${digits(first.p50)} ms in the first minute, ${digits(after.p50)} ms after, ${end}`;
}

/** Offers the lengths that a device has measured, ascending; says whether the one that was chosen is among them. */
export function offerLengths(lengths) {
  const before = lengthChosen();
  const [longest, ...shorter] = [...lengths].reverse();
  const option = (value, text = value) => element("option", { value, text });
  byId("length").replaceChildren(option("", longest ? `${longest}, the longest measured` : ""), ...shorter.map((one) => option(one)));
  const kept = before === "" || shorter.includes(Number(before));
  byId("length").value = kept ? before : "";
  byId("pick-length").hidden = lengths.length < 2;
  return kept;
}

/** The other way round, for an address that holds a query. */
export function restore(found) {
  for (const key of LIMITS) setLimit(key, found.get(key));
  if (found.has("min_accuracy")) setLimit(FLOOR, found.get("min_accuracy")); // an address of an earlier version
  choose("percentile", found.get("percentile") ?? "50");
  choose("objective", found.get("objective")?.replace("accuracy", "quality") ?? "quality");
  if (found.get("sustained") === "true") choose("lasting", "sustained");
  byId("discharging").checked = found.get("discharging") === "true";
  const length = found.get("length") ?? "";
  if (/^[1-9]\d{0,5}$/.test(length)) byId("length").append(element("option", { value: length, text: length, selected: "" }));
}

/** Spreads the sliders over what the device's sub-models cost. `device` is null where nothing was measured. */
export function spread(device, qualities) {
  const measured = device ? Object.entries(device.profile.submodels).filter(([name]) => qualities[name] !== null) : [];
  for (const key of ["latency_ms", "energy_mj", "memory_mb"]) {
    const cost = key === "latency_ms" ? `latency_ms.p${chosen("percentile")}` : key;
    const values = measured.map(([, costs]) => costOf(costs, cost)).filter((value) => value > 0);
    rule(key, values.length ? fromAbove(Math.min(...values), Math.max(...values)) : null, device ? "not known" : "no profile");
    rug(key, values.length ? device.frontiers[cost].map(([value]) => value) : []);
  }
  const known = measured.map(([name]) => qualities[name]);
  rule(FLOOR, known.length ? fromBelow(Math.min(...known), Math.max(...known)) : null, device ? "not known" : "no profile");
  rug(FLOOR, known.length ? device.frontiers["latency_ms.p50"].map(([, name]) => qualities[name]) : []);
  rule(BATTERY, known.length ? charge : null, device ? "not known" : "no profile");
}

/** At most: logarithmic, a little beyond both ends; the last step is no limit. */
function fromAbove(low, high) {
  const [start, ratio] = [low * 0.8, (high * 1.1) / (low * 0.8)];
  return {
    most: STEPS + 1,
    none: "no limit",
    value: (step) => (step > STEPS ? null : Number((start * ratio ** (step / STEPS)).toPrecision(3))),
    place: (value) => (value === null ? STEPS + 1 : bounded((STEPS * Math.log(value / start)) / Math.log(ratio))),
  };
}

/** At least: linear, the first step is no limit. */
function fromBelow(low, high) {
  const [start, end] = [Math.floor(low * 100) / 100, Math.min(1, Math.ceil(high * 200 + 1) / 200)];
  return {
    most: STEPS + 1,
    none: "any",
    value: (step) => (step < 1 ? null : Number((start + ((end - start) * (step - 1)) / STEPS).toFixed(4))),
    place: (value) => (value === null ? 0 : 1 + bounded((STEPS * (value - start)) / (end - start))),
  };
}

const charge = {
  most: 101,
  none: "not given",
  value: (step) => (step > 100 ? null : step),
  place: (value) => (value === null ? 101 : value),
};

const bounded = (step) => Math.max(0, Math.min(STEPS, Math.round(step)));

/** `without`: what the field says where there is no scale. */
function rule(key, scale, without = "not known") {
  const [range, exact] = inputs(key);
  range.disabled = exact.disabled = scale === null;
  exact.placeholder = scale === null ? without : scale.none;
  if (scale === null) return;
  scales[key] = scale;
  range.min = 0;
  range.max = scale.most;
  range.value = scale.place(limit(key));
  describe(key, limit(key));
}

/** Marks below a slider: where the choice changes. */
function rug(key, values) {
  const svg = document.querySelector(`[data-limit="${key}"] .rug`);
  const { most, place } = scales[key] ?? {};
  svg.replaceChildren(
    ...values.map((value) => {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      line.setAttribute("d", `M${(1000 * place(value)) / most} 0V8`);
      return line;
    }),
  );
}

function describe(key, value) {
  const [range] = inputs(key);
  const none = scales[key]?.none ?? "not known";
  const unit = document.querySelector(`[data-limit="${key}"] .unit`).textContent;
  range.setAttribute("aria-valuetext", value === null ? none : `${value} ${unit}`.trim());
  range.closest(".limit").classList.toggle("set", value !== null);
  if (key === BATTERY) byId("discharging").disabled = value === null;
}

const inputs = (key) => [byId(key), byId(`${key}-exact`)];
