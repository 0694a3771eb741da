// What was chosen, in figures and in words, and the query as code.

import { byId, capital, chosen, digits, metric, share } from "./format.js";

const LIMIT_OF = { quality: "min_quality", latency_ms: "latency_ms", energy_mj: "energy_mj", memory_mb: "memory_mb" };

/** Shows a `select` document. `sources` says of each of its figures whether it was measured. */
export function showChoice(selection, query, precision, sources) {
  const panel = byId("choice");
  panel.dataset.state = selection.feasible ? "fits" : "misses";
  panel.setAttribute("aria-busy", "false");
  byId("submodel").textContent = selection.submodel;
  byId("verdict").textContent = selection.feasible ? precision : "Nothing fits; this is the nearest";
  byId("reason").textContent = sentence(selection.reason);
  for (const [key, name] of Object.entries(LIMIT_OF)) figure(key, selection[key], query.budget[name], sources?.[key] ?? "test split");
  const figures = `${metric()} ${share(selection.quality)}, latency ${digits(selection.latency_ms)} milliseconds`;
  byId("said").textContent = `${selection.feasible ? "" : "Nothing fits. Nearest: "}${selection.submodel}, ${figures}`;
}

/** Says in the choice's place why there is none. `quality`: the best that is known of any sub-model, all the same. */
export function showProblem(message, quality) {
  const panel = byId("choice");
  panel.dataset.state = "none";
  panel.setAttribute("aria-busy", "false");
  byId("submodel").textContent = "No choice";
  byId("verdict").textContent = "";
  byId("reason").textContent = byId("said").textContent = message;
  for (const key of Object.keys(LIMIT_OF)) figure(key, null);
  if (quality === undefined) return;
  figure("quality", quality, undefined, "of the sub-models, test split");
  document.querySelector('[data-figure="quality"] b').prepend("≤ ");
}

function figure(key, value, limit, source) {
  const box = document.querySelector(`[data-figure="${key}"]`);
  box.querySelector("b").textContent = key === "quality" ? share(value) : digits(value);
  box.querySelector(".source").textContent = value === null || value === undefined ? "not known" : source;
  const known = limit !== undefined && value !== null && value !== undefined;
  box.querySelector(".share").classList.toggle("set", known);
  box.querySelector(".share i").style.width = known ? `${Math.min(100, (100 * value) / limit)}%` : "0";
  box.classList.toggle("missed", known && (key === "quality" ? value < limit : value > limit));
}

const sentence = (text) => `${capital(text)}.`;

/** Shows the query in the language that is chosen; above it, as a comment, what it needs before it has an answer. */
export function showCode(query, needs) {
  byId("code").textContent = (needs ? `# ${needs}\n` : "") + (chosen("language") === "curl" ? curl : python)(query);
}

function curl(query) {
  const body = JSON.stringify(query).replaceAll("'", "'\\''");
  return `curl -s ${new URL("v1/select", document.baseURI)} \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
}

function python(query) {
  return [
    "import json",
    "from urllib.request import Request, urlopen",
    "",
    `query = ${literal(query)}`,
    `request = Request(${JSON.stringify(new URL("v1/select", document.baseURI))}, json.dumps(query).encode(), {"Content-Type": "application/json"})`,
    "selection = json.load(urlopen(request))",
    'print(selection["submodel"], selection["reason"])',
  ].join("\n");
}

/** A Python literal of what JSON can hold here: objects, text, numbers and booleans. */
function literal(value) {
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one)}`).join(", ")}}`;
}

/** Copies the code; where the browser keeps the clipboard from pages without TLS, marks it and copies as of old. */
export async function copyCode() {
  const [button, code] = [byId("copy"), byId("code")];
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  byId("said").textContent = "Query copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
