// Which sub-model of a bundle a budget gets on this device, and running it: selection, feedback, bundles over HTTP, ONNX Runtime.

export { battery, policy } from "./battery.js";
export { budget, BudgetError } from "./budget.js";
export { Candidates, keyOf } from "./candidates.js";
export { Controller } from "./controller.js";
export { Selector } from "./selector.js";
