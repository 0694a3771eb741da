// Which sub-model of a bundle a budget gets on this device, and running it: selection, feedback, bundles over HTTP, ONNX Runtime.

export { battery, policy } from "./battery.js";
export { budget, BudgetError } from "./budget.js";
export { Bundle, BundleError, sha256 } from "./bundle.js";
export { Candidates, keyOf } from "./candidates.js";
export { Controller } from "./controller.js";
export { measure, profileOf, sealed } from "./measure.js";
export { pixelsOf } from "./picture.js";
export { InputError, Runtime } from "./runtime.js";
export { Selector } from "./selector.js";
