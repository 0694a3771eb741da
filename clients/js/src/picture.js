// From pixels to an input, as Pillow and `exporter/bundle/preprocessing.py` do it: the same whole numbers, antialiased.

/**
 * @typedef {Object} ImageSpec `preprocessing` of an image bundle
 * @property {[number, number]} size height, width
 * @property {number|null} [resize] the shorter side before the crop
 * @property {"center"|"none"} [crop]
 * @property {"nearest"|"bilinear"|"bicubic"|"lanczos"} [interpolation]
 * @property {1|3} channels
 * @property {[number, number]} [value_range]
 * @property {number[]|null} [mean]
 * @property {number[]|null} [std]
 */

const PRECISION = 22; // bits of Pillow's fixed-point weights for 8-bit pixels
const sinc = (/** @type {number} */ x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
/** @type {Record<string, [number, (x: number) => number]>} support, and weight by distance (libImaging/Resample.c) */
const FILTERS = {
  bilinear: [1, (x) => (x < 1 ? 1 - x : 0)],
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0)],
  lanczos: [3, (x) => (x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/** An input's values, (1, C, H, W). `rgba`: of an upright picture, as a canvas gives them. @param {ArrayLike<number>} rgba @param {number} width
 * @param {number} height @param {ImageSpec} spec @returns {Float32Array} */
export function pixelsOf(rgba, width, height, spec) {
  const { channels, size } = spec;
  const planes = converted(rgba, width * height, channels);
  const box = boxOf([width, height], [size[1], size[0]], spec);
  const [low, high] = spec.value_range ?? [0, 1];
  const found = new Float32Array(channels * size[0] * size[1]);
  planes.forEach((plane, c) => {
    const resized = resize(plane, width, height, size[1], size[0], box, spec.interpolation ?? "bilinear");
    const f = Math.fround;
    for (let i = 0; i < resized.length; i++) {
      let value = f(resized[i] / 255);
      if (low !== 0 || high !== 1) value = f(f(value * f(high - low)) + f(low));
      if (spec.mean) value = f(value - f(spec.mean[c]));
      if (spec.std) value = f(value / f(spec.std[c]));
      found[c * resized.length + i] = value;
    }
  });
  return found;
}

/** Gray as ITU-R 601-2 in Pillow's whole numbers, or red, green and blue. @param {ArrayLike<number>} rgba @param {number} count @param {1|3} channels */
function converted(rgba, count, channels) {
  const planes = Array.from({ length: channels }, () => new Uint8Array(count));
  for (let i = 0; i < count; i++) {
    const [r, g, b] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    if (channels === 1) planes[0][i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    else [planes[0][i], planes[1][i], planes[2][i]] = [r, g, b];
  }
  return planes;
}

/** The part that is resized: left, top, right, bottom. @param {number[]} stored width, height @param {number[]} wanted @param {ImageSpec} spec */
function boxOf(stored, wanted, spec) {
  if (spec.crop === "none") return [0, 0, ...stored];
  const shrunk = Math.max(wanted[0] / stored[0], wanted[1] / stored[1]);
  const scale = spec.resize ? Math.max(shrunk, spec.resize / Math.min(...stored)) : shrunk;
  const kept = stored.map((s, i) => Math.min(s, wanted[i] / scale));
  const [left, top] = stored.map((s, i) => (s - kept[i]) / 2);
  return [left, top, left + kept[0], top + kept[1]].map(Math.fround); // Pillow's are of single precision
}

/** One channel. @param {Uint8Array} plane @param {number} width @param {number} height @param {number} w @param {number} h @param {number[]} box @param {string} interpolation */
export function resize(plane, width, height, w, h, box, interpolation) {
  const [left, top, right, bottom] = box;
  if (width === w && height === h && left === 0 && top === 0 && right === w && bottom === h) return plane;
  if (interpolation === "nearest") return nearest(plane, width, w, h, box);
  const across = needsPass(width, w, left, right) ? weightsOf(width, left, right, w, interpolation) : null;
  const down = needsPass(height, h, top, bottom) ? weightsOf(height, top, bottom, h, interpolation) : null;
  let [found, stride] = [plane, width];
  if (across) {
    found = new Uint8Array(w * height);
    for (let y = 0; y < height; y++) for (let x = 0; x < w; x++) found[y * w + x] = blended(plane, y * width, 1, across[x]);
    stride = w;
  }
  if (down) {
    const source = found;
    found = new Uint8Array(stride * h);
    for (let y = 0; y < h; y++) for (let x = 0; x < stride; x++) found[y * stride + x] = blended(source, x, stride, down[y]);
  }
  return found;
}

/** @param {number} stored @param {number} wanted @param {number} begin @param {number} end */
const needsPass = (stored, wanted, begin, end) => wanted !== stored || begin !== 0 || end !== wanted;

/** @param {Uint8Array} plane @param {number} from @param {number} step @param {{first: number, weights: number[]}} one */
function blended(plane, from, step, { first, weights }) {
  let sum = 1 << (PRECISION - 1);
  for (let i = 0; i < weights.length; i++) sum += plane[from + (first + i) * step] * weights[i];
  const value = Math.floor(sum / 2 ** PRECISION);
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/** For each place of the result which pixels count, and how much. @param {number} stored @param {number} begin @param {number} end @param {number} wanted @param {string} interpolation */
function weightsOf(stored, begin, end, wanted, interpolation) {
  const [reach, weight] = FILTERS[interpolation];
  const scale = Math.fround(end - begin) / wanted;
  const wide = Math.max(scale, 1);
  const support = reach * wide;
  return Array.from({ length: wanted }, (_, place) => {
    const center = begin + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(stored, Math.trunc(center + support + 0.5));
    const exact = [];
    for (let x = first; x < last; x++) exact.push(weight(Math.abs((x - center + 0.5) / wide)));
    const total = exact.reduce((a, b) => a + b, 0);
    const weights = exact.map((one) => Math.trunc((total ? one / total : one) * 2 ** PRECISION + (one < 0 ? -0.5 : 0.5)));
    return { first, weights };
  });
}

/** @param {Uint8Array} plane @param {number} width @param {number} w @param {number} h @param {number[]} box */
function nearest(plane, width, w, h, [left, top, right, bottom]) {
  const [dx, dy] = [Math.fround(right - left) / w, Math.fround(bottom - top) / h];
  const found = new Uint8Array(w * h);
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) found[y * w + x] = plane[Math.floor(top + (y + 0.5) * dy) * width + Math.floor(left + (x + 0.5) * dx)];
  return found;
}
