// Numbers as Python writes them, and names of metrics: a reason reads the same in both languages.

/** `x` with `digits` significant ones in exponential form; a tie goes to the even digit, as in Python, not upwards.
 * @param {number} x @param {number} digits @returns {{digits: string, exponent: number}} */
function significant(x, digits) {
  const [mantissa, exponent] = x.toExponential(digits - 1).split("e");
  let found = mantissa.replace(".", "");
  const shortest = x.toExponential().split("e")[0]; // of a tie it ends with a 5 just beyond
  if (shortest.length === digits + 2 && shortest.endsWith("5") && Number(found.at(-1)) % 2) {
    const exact = x.toExponential(digits + 20).split("e")[0].replace(".", "");
    if (/^50*$/.test(exact.slice(digits)) && exact.slice(0, digits) !== found) found = found.slice(0, -1) + (Number(found.at(-1)) - 1);
  }
  return { digits: found, exponent: Number(exponent) };
}

/** Python's `f"{x:.{count}g}"`. @param {number} x @param {number} [count] @returns {string} */
export function general(x, count = 6) {
  if (Number.isNaN(x)) return "nan";
  if (x === Infinity || x === -Infinity) return x > 0 ? "inf" : "-inf";
  if (x === 0) return Object.is(x, -0) ? "-0" : "0";
  const sign = x < 0 ? "-" : "";
  const { digits, exponent } = significant(Math.abs(x), count);
  if (exponent < -4 || exponent >= count) {
    const rest = digits.slice(1).replace(/0+$/, "");
    const power = String(Math.abs(exponent)).padStart(2, "0");
    return `${sign}${digits[0]}${rest && `.${rest}`}e${exponent < 0 ? "-" : "+"}${power}`;
  }
  const whole = exponent < 0 ? "0" : digits.slice(0, exponent + 1);
  const fraction = (exponent < 0 ? "0".repeat(-exponent - 1) + digits : digits.slice(exponent + 1)).replace(/0+$/, "");
  return sign + whole + (fraction && `.${fraction}`);
}

/** Python's `f"{x:.2f}"` and `f"{x:.0f}"`: a tie goes to the even digit.
 * @param {number} x @param {number} places @returns {string} */
export function fixed(x, places) {
  const found = x.toFixed(places);
  const exact = x.toFixed(Math.min(100, places + 25));
  const tail = exact.slice(exact.length - 25);
  if (!/^50*$/.test(tail) || Number(found.at(-1)) % 2 === 0) return found;
  return exact.slice(0, exact.length - 25).replace(/\.$/, ""); // the digit before is even
}

/** @type {Record<string, string>} */
const NAMES = {
  mean_iou: "mean IoU",
  r2: "R²",
  f1: "F1",
  map: "mAP",
  entity_f1: "entity F1",
  token_accuracy: "token accuracy",
  token_probability: "token probability",
};

/** Such as "mean IoU" for `mean_iou`. @param {string} metric @returns {string} */
export const metricName = (metric) => NAMES[metric] ?? metric.replaceAll("_", " ");
