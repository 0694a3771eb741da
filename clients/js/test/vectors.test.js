// What Python answered (tests/vectors), answered here.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { budget, BudgetError, Candidates, Controller, keyOf, policy, Selector } from "../src/index.js";

const read = (name) => JSON.parse(readFileSync(new URL(`../../../tests/vectors/${name}`, import.meta.url), "utf-8"));
const { sets, vectors, refused, refused_policies } = read("selection.json");
const feedback = read("feedback.json");

function selectorOf({ profiles, qualities, metric, cascades, policy }) {
  return new Selector(Candidates.measured(profiles, qualities, { metric, cascades }), policy ? { policy } : {});
}

/** Numbers may differ in the last digits: logarithms are not the same to the bit everywhere. */
function same(found, wanted, name) {
  assert.deepEqual(Object.keys(found).sort(), Object.keys(wanted).sort(), name);
  for (const [key, value] of Object.entries(wanted)) {
    if (typeof value === "number") assert.ok(Math.abs(found[key] - value) <= 1e-9 * Math.abs(value), `${name} ${key}: ${found[key]} is not ${value}`);
    else assert.deepEqual(found[key], value, `${name} ${key}`);
  }
}

test("there are enough of them", () => assert.ok(vectors.length >= 200, String(vectors.length)));

for (const [name, set] of Object.entries(sets)) {
  test(`selections of ${name}`, () => {
    const selector = selectorOf(set);
    for (const one of vectors.filter((vector) => vector.set === name)) {
      const among = one.among ? new Set(one.among.map(([submodel, device]) => keyOf(submodel, device))) : null;
      const ask = () => selector.select(one.budget, one.battery ?? null, { among, slowdown: one.slowdown ?? 1 });
      if (one.error) assert.throws(ask, (error) => error instanceof BudgetError && error.message === one.error, one.name);
      else same(ask(), one.selection, one.name);
    }
  });
}

test("budgets that are none are refused, and the field is named", () => {
  for (const one of refused)
    assert.throws(() => budget(one.budget), (error) => error instanceof BudgetError && error.field === one.field && error.message.includes(one.field), JSON.stringify(one));
});

test("battery policies that are none are refused, and what is wrong is named", () => {
  for (const one of refused_policies) assert.throws(() => policy(one.policy), (error) => error instanceof BudgetError && error.message.includes(one.named), JSON.stringify(one));
});

test("two profiles of one device name are refused", () => {
  const [profile] = sets["two-profiles"].profiles;
  assert.throws(() => Selector.of([profile, profile], { s: 0.8 }), (error) => error instanceof BudgetError && error.message.includes("one of each name"));
});

for (const trace of feedback.traces) {
  test(`feedback ${trace.name}`, () => {
    const set = feedback.sets[trace.set];
    const controller = new Controller(selectorOf(set), set.profiles);
    const asked = budget(trace.budget);
    trace.steps.forEach((step, place) => {
      const found = controller.choose(asked, step.now);
      same(found, step.selection, `${trace.name}, step ${place}`);
      controller.observe(found, step.latency_ms, step.now, { ran: step.ran });
    });
  });
}
