// What the page asks the service. Documents of a bundle or device are asked once; queries each time.

/** Answered with a problem document (RFC 9457), or not at all. */
export class ServiceError extends Error {}

const MOST_NAMES = 5000;
const MOST_FOUND = 50;
const kept = new Map();
const modelsOf = new Map();

export const bundleOf = (bundle) => once(`/v1/bundles/${encodeURIComponent(bundle)}`);

/**
 * Whose figures there are of a bundle: names of `{devices, models, more}`. The devices are those that sent a profile and those
 * whose profile came with the bundle; a model stands for all devices of it. `more`: there are others, which `search` finds.
 * Null where the service keeps no profiles.
 */
export async function measuredOf(bundle) {
  const path = `/v1/bundles/${encodeURIComponent(bundle)}`;
  try {
    const [devices, models] = await Promise.all([names(`${path}/profiles`, "profiles", "device"), names(`${path}/models`, "models", "model")]);
    const found = apart(devices.found, models.found);
    modelsOf.set(bundle, new Set(found.models));
    return { ...found, more: devices.more || models.more };
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    return null;
  }
}

const apart = (devices, models) => ({ devices, models: models.filter((one) => !devices.includes(one)) });

/** Devices and models whose names begin so, the first ones of each: `{devices, models}`. */
export async function search(bundle, beginning) {
  const one = async (list, name) => {
    const path = `/v1/bundles/${encodeURIComponent(bundle)}/${list}?limit=${MOST_FOUND}&after=${encodeURIComponent(justBefore(beginning))}`;
    return (await ask(path))[list].map((entry) => entry[name]).filter((found) => found.startsWith(beginning));
  };
  const found = apart(...(await Promise.all([one("profiles", "device"), one("models", "model")])));
  for (const model of found.models) modelsOf.get(bundle)?.add(model);
  return found;
}

const IN_NAMES = "-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"; // in their order

/** A name that comes before all that begin so, and after the others that do: lists go on after a name. */
function justBefore(beginning) {
  const [rest, last] = [beginning.slice(0, -1), IN_NAMES.indexOf(beginning.at(-1))];
  return last > (rest ? 0 : 2) ? rest + IN_NAMES[last - 1] + "z".repeat(20) : rest;
}

/** The names on all pages of a list, or on the first ones where there are very many: `{found, more}`. */
async function names(path, list, name) {
  const found = [];
  let after = "";
  while (after !== null && found.length < MOST_NAMES) {
    const page = await ask(`${path}?limit=1000${after && `&after=${encodeURIComponent(after)}`}`);
    found.push(...page[list].map((one) => one[name]));
    after = page.next;
  }
  return { found, more: after !== null };
}

/**
 * A device's or model's profile and frontiers, the bundle's cascades among the sub-models: `{profile, frontiers, cascades,
 * lengths, problem}`; `problem` says why there are none. With a length all is what inputs so long cost; `lengths` are those that
 * were measured. `sustained`: what it costs in steady work, where the profile says that.
 */
export async function deviceOf(bundle, device, length = "", sustained = false) {
  const [first, second] = [encodeURIComponent(bundle), encodeURIComponent(device)];
  const wanted = String(new URLSearchParams({ ...(length && { length }), ...(sustained && { sustained }) }));
  const asked = `/dashboard/frontiers/${first}/${second}${wanted && `?${wanted}`}`;
  const { frontiers, cascades, lengths, submodels: there, problem } = await once(asked);
  if (problem) return { profile: null, frontiers, cascades, lengths, problem };
  const isModel = modelsOf.get(bundle)?.has(device);
  const document = await once(`/v1/bundles/${first}/${isModel ? "models" : "profiles"}/${second}`);
  const profile = isModel ? document.profile : document;
  const submodels = { ...profile.submodels, ...there };
  for (const [id, { costs, split }] of Object.entries(cascades)) submodels[id] = { ...costs, source: { ...costs.source, quality: split } };
  return { profile: { ...profile, submodels }, frontiers, cascades, lengths, problem };
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

/** A new version of a bundle, and how it does: the document of `/v1/bundles/NAME/rings`. */
export const ringsOf = (bundle) => ask(`/v1/bundles/${encodeURIComponent(bundle)}/rings`);

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

/** Asks below the page's own address: a proxy may have put the service below a prefix. */
async function ask(path, options = {}) {
  const unlessAborted = (error) => {
    if (error.name === "AbortError") throw error;
    return null;
  };
  const answer = await fetch(path.slice(1), options).catch(unlessAborted);
  if (!answer) throw new ServiceError("The service does not answer.");
  const document = await answer.json().catch(unlessAborted); // an abort may come between the headers and the body
  if (answer.ok && document !== null) return document;
  const fields = (document?.errors ?? []).map((one) => `${one.field}: ${one.message}`).join("; ");
  throw new ServiceError([document?.detail ?? `The service answered ${answer.status}.`, fields].filter(Boolean).join(": "));
}
