// What the page asks the service. Documents of a bundle or device are asked once; queries each time.

/** Answered with a problem document (RFC 9457), or not at all. */
export class ServiceError extends Error {}

const kept = new Map();

export const bundleOf = (bundle) => once(`/v1/bundles/${encodeURIComponent(bundle)}`);

/**
 * A device's profile and frontiers, the bundle's cascades among the sub-models: `{profile, frontiers, cascades, problem}`;
 * `problem` says why there are none.
 */
export async function deviceOf(bundle, device) {
  const [first, second] = [encodeURIComponent(bundle), encodeURIComponent(device)];
  const { frontiers, cascades, problem } = await once(`/dashboard/frontiers/${first}/${second}`);
  if (problem) return { profile: null, frontiers, cascades, problem };
  const profile = await once(`/v1/bundles/${first}/profiles/${second}`);
  const submodels = { ...profile.submodels };
  for (const [id, { costs }] of Object.entries(cascades)) submodels[id] = costs;
  return { profile: { ...profile, submodels }, frontiers, cascades, problem };
}

/** What sub-models and cascades are, by name. */
export const entriesOf = (submodels, cascades) =>
  Object.fromEntries([...submodels, ...Object.values(cascades).map((one) => ({ ...one, precision: "cascade" }))].map((one) => [one.id, one]));

/** What a query says so that its answer may be one of these. */
export const offering = (cascades) => (Object.keys(cascades).length ? { cascades: true } : {});

/** The `select` document of a query. `signal` aborts a query that was overtaken. */
export const select = (query, signal) => post("/v1/select", query, signal);

/** Of several queries, in their order; what failed is a ServiceError in its place. */
export async function selectMany(queries, signal) {
  if (!queries.length) return [];
  const { selections } = await post("/v1/select", { queries }, signal);
  return selections.map((one) => ("submodel" in one ? one : new ServiceError(one.detail)));
}

export const runtime = (signal) => ask("/dashboard/runtime", { signal });

const post = (path, document, signal) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(document), signal });

function once(path) {
  if (!kept.has(path)) {
    const asked = ask(path);
    asked.catch(() => kept.delete(path));
    kept.set(path, asked);
  }
  return kept.get(path);
}

async function ask(path, options = {}) {
  const unlessAborted = (error) => {
    if (error.name === "AbortError") throw error;
    return null;
  };
  const answer = await fetch(path, options).catch(unlessAborted);
  if (!answer) throw new ServiceError("The service does not answer.");
  const document = await answer.json().catch(unlessAborted); // an abort may come between the headers and the body
  if (answer.ok && document !== null) return document;
  const fields = (document?.errors ?? []).map((one) => `${one.field}: ${one.message}`).join("; ");
  throw new ServiceError([document?.detail ?? `The service answered ${answer.status}.`, fields].filter(Boolean).join(": "));
}
