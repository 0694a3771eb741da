// A picture or the camera becomes an input.

import { pixelsOf } from "../client/picture.js";
import { byId } from "../format.js";

const MOST = 1024; // the longer side of what is looked at: photos have millions of pixels, networks take some hundred

/** Draws what is looked at, upright; an input's tensor by the bundle's preprocessing. */
export function tensorOf(ort, source, width, height, spec) {
  const scale = Math.min(1, MOST / Math.max(width, height));
  const canvas = byId("shown");
  [canvas.width, canvas.height] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return new ort.Tensor("float32", pixelsOf(data, canvas.width, canvas.height, spec), [1, spec.channels, ...spec.size]);
}

/** The picture in a file, turned as its camera was held. Raises Error where it is none. */
export async function opened(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name}: is no picture that this browser can read`);
  }
}

/** The camera, facing away where there are two: `{video, stop}`. Raises Error in words. */
export async function camera() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
    const video = document.createElement("video");
    Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
    await video.play();
    return { video, stop: () => stream.getTracks().forEach((track) => track.stop()) };
  } catch (error) {
    const why = { NotAllowedError: "it was not allowed", NotFoundError: "there is none", NotReadableError: "another program uses it" };
    throw new Error(`No camera: ${why[error.name] ?? error.message}. Pick a picture instead.`);
  }
}

/** The softmax of the logits, the largest three: `[[label, share], …]`. */
export function largest({ data, dims }, labels) {
  const classes = dims.at(-1);
  const values = Array.from({ length: classes }, (_, i) => data[i]);
  const top = Math.max(...values);
  const total = values.reduce((sum, value) => sum + Math.exp(value - top), 0);
  return values
    .map((value, i) => [labels?.[i] ?? `class ${i}`, Math.exp(value - top) / total])
    .sort((a, b) => b[1] - a[1])
    .slice(0, 3);
}
