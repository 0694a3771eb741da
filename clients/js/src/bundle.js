// A bundle as it lies on a service or in a folder: its manifest, and files whose bytes are compared with it.

/** A bundle that is damaged, or that this client cannot run. */
export class BundleError extends Error {}

/** @typedef {(path: string) => Promise<Uint8Array>} Read the content of a file by its path in the bundle */
/** @typedef {{name: string, dtype: string, shape: (number|string)[]}} TensorSpec a size that is a name is free */
/** @typedef {{model: Uint8Array|string, externalData: {path: string, data: Uint8Array}[]}} Graph what a session is made of */

export class Bundle {
  /** @param {any} manifest `manifest.json` @param {Read} read @param {string} [folder] where it lies on this machine: then graphs are opened there */
  constructor(manifest, read, folder) {
    if (manifest?.format_version !== 2) throw new BundleError(`manifest: format_version = ${manifest?.format_version}; allowed is 2`);
    if (manifest.decoder) throw new BundleError("manifest: this bundle generates text, which this client does not do");
    this.manifest = manifest;
    this.folder = folder;
    this._read = read;
    /** @type {Map<string, Promise<Uint8Array>>} */
    this._kept = new Map();
    /** @type {Map<string, any>} */
    this.submodels = new Map(manifest.submodels.map((/** @type {any} */ one) => [one.id, one]));
  }

  /** A bundle of a service, or a part of it. `files`: the address that its files are below. @param {string} files @param {{manifest?: any, get?: typeof fetch}} [more] */
  static async from(files, { manifest, get = fetch } = {}) {
    const read = async (/** @type {string} */ path) => {
      const answer = await get(files + path.split("/").map(encodeURIComponent).join("/"));
      if (!answer.ok) throw new BundleError(`${path}: the service answered ${answer.status}`);
      return new Uint8Array(await answer.arrayBuffer());
    };
    const found = manifest ?? JSON.parse(new TextDecoder().decode(await read("manifest.json")));
    return new Bundle(found, read);
  }

  /** @returns {string} that the qualities are of */
  get metric() {
    return this.manifest.task.metric;
  }

  /** @returns {Record<string, number|null>} by sub-model */
  get qualities() {
    return Object.fromEntries([...this.submodels.values()].map((one) => [one.id, one.quality]));
  }

  /** @returns {TensorSpec[]} */
  get inputs() {
    return this.manifest.inputs;
  }

  /** How a file becomes the input, where the bundle says so. @returns {any} */
  get preprocessing() {
    return this.manifest.preprocessing?.[this.inputs[0].name] ?? null;
  }

  /** Bytes of the weights and of these sub-models' graphs. @param {string[]} ids */
  bytesOf(ids) {
    const paths = new Set(ids.flatMap((id) => [this.entry(id).graph, this.weightsOf(id)]));
    return [...paths].reduce((sum, path) => sum + this.manifest.files[path].bytes, 0);
  }

  /** @param {string} id */
  entry(id) {
    const found = this.submodels.get(id);
    if (!found) throw new BundleError(`sub-model '${id}' is not in this bundle`);
    return found;
  }

  /** The weights file that a sub-model's graph reads. @param {string} id @returns {string} */
  weightsOf(id) {
    const { precision } = this.entry(id);
    const { weights, int8_weights: int8, precision_weights: by } = this.manifest;
    return by?.[precision] ?? (precision === "int8" && int8 ? int8 : weights);
  }

  /** What a session of this sub-model is made of; the weights are read once for all. Raises BundleError for a wrong byte.
   * @param {string} id @returns {Promise<Graph>} */
  async graph(id) {
    const [graph, weights] = [this.entry(id).graph, this.weightsOf(id)];
    if (this.folder !== undefined) {
      await Promise.all([this.file(graph), this.checked(weights)]);
      return { model: `${this.folder}/${graph}`, externalData: [] };
    }
    const [model, data] = await Promise.all([this.file(graph), this.kept(weights)]);
    return { model, externalData: [{ path: /** @type {string} */ (weights.split("/").at(-1)), data }] };
  }

  /** A file whose bytes are what the manifest says. @param {string} path @returns {Promise<Uint8Array>} */
  async file(path) {
    const entry = this.manifest.files[path];
    if (!entry) throw new BundleError(`${path}: is not in this bundle`);
    const content = await this._read(path);
    if (content.length !== entry.bytes) throw new BundleError(`${path}: ${content.length} bytes; the manifest says ${entry.bytes}`);
    const digest = await sha256(content);
    if (digest !== entry.sha256) throw new BundleError(`${path}: was altered (its sha256 is not what the manifest says)`);
    return content;
  }

  /** The same, read once. @param {string} path */
  kept(path) {
    const found = this._kept.get(path) ?? this.file(path);
    this._kept.set(path, found);
    found.catch(() => this._kept.delete(path));
    return found;
  }

  /** Compared once, and not held in memory. @param {string} path */
  async checked(path) {
    await this.kept(path);
    this._kept.set(path, Promise.resolve(new Uint8Array()));
  }
}

/** SHA-256, hexadecimal. Pages that came over plain http have no `crypto.subtle`; it is then computed here. @param {Uint8Array} content @returns {Promise<string>} */
export async function sha256(content) {
  const found = globalThis.crypto?.subtle ? new Uint8Array(await crypto.subtle.digest("SHA-256", /** @type {BufferSource} */ (content))) : digestOf(content);
  return [...found].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** FIPS 180-4, section 6.2. @param {Uint8Array} content @returns {Uint8Array} */
export function digestOf(content) {
  const length = content.length;
  const padded = new Uint8Array(((length + 8) >> 6 << 6) + 64);
  padded.set(content);
  padded[length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(length / 2 ** 29));
  view.setUint32(padded.length - 4, (length << 3) >>> 0);
  const { k, h } = constants();
  const [state, w] = [Uint32Array.from(h), new Uint32Array(64)];
  for (let block = 0; block < padded.length; block += 64) {
    for (let i = 0; i < 16; i++) w[i] = view.getUint32(block + 4 * i);
    for (let i = 16; i < 64; i++) {
      const [a, b] = [w[i - 15], w[i - 2]];
      w[i] = w[i - 16] + w[i - 7] + (turned(a, 7) ^ turned(a, 18) ^ (a >>> 3)) + (turned(b, 17) ^ turned(b, 19) ^ (b >>> 10));
    }
    let [a, b, c, d, e, f, g, rest] = state;
    for (let i = 0; i < 64; i++) {
      const one = (rest + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i]) | 0;
      const two = ((turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [rest, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
    }
    [a, b, c, d, e, f, g, rest].forEach((value, i) => (state[i] += value));
  }
  const found = new DataView(new ArrayBuffer(32));
  state.forEach((value, i) => found.setUint32(4 * i, value));
  return new Uint8Array(found.buffer);
}

/** @param {number} x @param {number} n */
const turned = (x, n) => (x >>> n) | (x << (32 - n));

/** The first 32 bits of the fractions of the roots of the first primes: cube roots k, square roots h. */
function constants() {
  /** @type {number[]} */
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  return { k: primes.map((p) => fraction(p, 3)), h: primes.slice(0, 8).map((p) => fraction(p, 2)) };
}

/** Exactly, by whole numbers: a double's cube root has too few digits to be trusted with 32 of them. @param {number} prime @param {2|3} power */
function fraction(prime, power) {
  const scaled = BigInt(prime) << BigInt(32 * power);
  let [low, high] = [0n, 1n << 37n];
  while (high - low > 1n) {
    const middle = (low + high) >> 1n;
    if (middle ** BigInt(power) <= scaled) low = middle;
    else high = middle;
  }
  return Number(low & 0xffffffffn);
}
