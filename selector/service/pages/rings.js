// A new version of the bundle that is looked at: which devices have it, and what they told. Asked now and then, while it is seen.

import { ringsOf, ServiceError } from "./api.js";
import { byId, digits, element } from "./format.js";

const EVERY_MS = 10_000;
const RINGS = { canary: "its first devices", all: "all", stopped: "stopped" };

let timer;

/** Shows those of a bundle, and goes on doing so. */
export async function watchRings(bundle) {
  clearTimeout(timer);
  watchRings.bundle = bundle;
  if (document.visibilityState === "visible") await show(bundle);
  if (watchRings.bundle !== bundle) return; // another one was picked meanwhile
  clearTimeout(timer);
  timer = setTimeout(watchRings, EVERY_MS, bundle);
}

async function show(bundle) {
  let found;
  try {
    found = await ringsOf(bundle);
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    found = { canary: null };
  }
  if (watchRings.bundle !== bundle) return;
  byId("rings").hidden = found.canary === null;
  if (found.canary === null) return;
  const { canary, everyone, models, devices } = found;
  const others = everyone.bundle === canary.bundle ? "Devices that do not say who they are get it too." : `Devices that do not say who they are get version ${named(everyone)}.`;
  byId("rings-about").textContent = `${bundle}: version ${named(canary)} is tried. ${models.length ? others : "No device has asked for it yet: sortednet pull --device NAME --token TOKEN."}`;
  byId("rings-models").tBodies[0].replaceChildren(...models.map(modelRow));
  byId("rings-devices").tBodies[0].replaceChildren(...devices.map(deviceRow));
  byId("rings-tables").hidden = !models.length;
}

const named = ({ number, version }) => (number === null ? version : `${number} (${version})`);
const number = (text) => element("td", { text, class: "number" });
const percent = (value) => (value === null || value === undefined ? "–" : `${digits(100 * value, 2)} %`);
const times = (now, before) => (now && before ? `× ${digits(now / before)}` : "–");

function modelRow(one) {
  const ring = element("td", { text: RINGS[one.ring], class: "fits" }, element("small", { text: one.why }));
  const counts = [one.trying, one.accepted, one.taken_back].map((count) => number(String(count)));
  const figures = [one.slower === null ? "–" : `× ${digits(one.slower)}`, percent(one.missed), one.points === null ? "–" : digits(one.points)].map(number);
  return element("tr", one.ring === "stopped" ? { class: "missed" } : {}, element("th", { scope: "row", text: one.model }), ring, ...counts, ...figures);
}

function deviceRow({ device, model, state, reason, figures, told_at }) {
  const said = element("td", { text: state, class: "fits" }, ...(reason ? [element("small", { text: reason })] : []));
  const name = element("th", { scope: "row", text: device }, element("small", { text: model }));
  const missed = figures.missed === null ? "–" : `${percent(figures.missed)}, ${percent(figures.missed_before)} before`;
  const quality = figures.quality === null ? "–" : `${digits(figures.quality)}, ${digits(figures.quality_before)} before`;
  const told = element("td", {}, element("time", { datetime: told_at, text: new Date(told_at).toLocaleString() }));
  const attributes = state === "taken back" ? { class: "missed" } : {};
  return element("tr", attributes, name, said, number(String(figures.runs)), number(times(figures.p50_ms, figures.p50_ms_before)), number(missed), number(quality), told);
}
