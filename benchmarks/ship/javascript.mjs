// What `javascript.py` asks: `vectors` or `select`; prints figures as JSON.

import { readFileSync } from "node:fs";

import { budget, Candidates, Controller, keyOf, Selector } from "../../clients/js/src/index.js";

const read = (name) => JSON.parse(readFileSync(new URL(`../../tests/vectors/${name}`, import.meta.url), "utf-8"));
const { sets, vectors } = read("selection.json");
const feedback = read("feedback.json");
const [ROUNDS, BATCH] = [9, 20];

const selectorOf = ({ profiles, qualities, metric, cascades, policy }) => new Selector(Candidates.measured(profiles, qualities, { metric, cascades }), policy ? { policy } : {});

function same(found, wanted) {
  if (typeof wanted === "number") return typeof found === "number" && Math.abs(found - wanted) <= 1e-9 * Math.abs(wanted);
  if (wanted === null || typeof wanted !== "object") return found === wanted;
  return Object.keys(found).length === Object.keys(wanted).length && Object.entries(wanted).every(([key, value]) => same(found[key], value));
}

function asked(selector, { budget: given, battery, among, slowdown }) {
  const keys = among ? new Set(among.map(([submodel, device]) => keyOf(submodel, device))) : null;
  return () => selector.select(given, battery ?? null, { among: keys, slowdown: slowdown ?? 1 });
}

function told(ask) {
  try {
    return { selection: ask() };
  } catch (error) {
    return { error: error.message };
  }
}

const selectors = Object.fromEntries(Object.entries(sets).map(([name, set]) => [name, selectorOf(set)]));

function runTrace(trace, look) {
  const set = feedback.sets[trace.set];
  const controller = new Controller(selectorOf(set), set.profiles);
  const wanted = budget(trace.budget);
  const begun = performance.now();
  for (const step of trace.steps) {
    const found = controller.choose(wanted, step.now);
    look?.(found, step.selection);
    controller.observe(found, step.latency_ms, step.now, { ran: step.ran });
  }
  return performance.now() - begun;
}

function compare() {
  const differing = vectors.filter((one) => {
    const found = told(asked(selectors[one.set], one));
    return one.error ? found.error !== one.error : !same(found.selection, one.selection);
  }).length;
  let [steps, wrong] = [0, 0];
  for (const trace of feedback.traces) runTrace(trace, (found, wanted) => (steps++, (wrong += !same(found, wanted))));
  return { vectors: vectors.length, differing: differing, feedback_steps: steps, feedback_differing: wrong };
}

/** Microseconds of one call: of some batches the least, because others run on this machine too. */
function least(ask) {
  let found = Infinity;
  for (let round = 0; round < ROUNDS; round++) {
    const begun = performance.now();
    for (let i = 0; i < BATCH; i++) ask();
    found = Math.min(found, ((performance.now() - begun) * 1e3) / BATCH);
  }
  return found;
}

function time() {
  const asks = vectors.filter((one) => !one.error).map((one) => asked(selectors[one.set], one));
  for (let i = 0; i < 20; i++) for (const ask of asks) ask(); // for the compiler
  const select = asks.reduce((sum, ask) => sum + least(ask), 0) / asks.length;
  const chosen = feedback.traces.map((trace) => Math.min(...Array.from({ length: ROUNDS }, () => runTrace(trace))));
  const steps = feedback.traces.reduce((sum, trace) => sum + trace.steps.length, 0);
  return { js_select_us: select, js_choose_us: (chosen.reduce((a, b) => a + b, 0) * 1e3) / steps };
}

console.log(JSON.stringify(process.argv[2] === "vectors" ? compare() : time()));
