// What this browser can do, and why it cannot do the rest.

// A function that adds vectors: valid where WebAssembly has SIMD.
const SIMD = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]);
const INSECURE = "this page came over plain http: a secure context is needed, https (sortednet serve --tls-cert --tls-key) or localhost";

const valid = (bytes) => {
  try {
    return WebAssembly.validate(bytes);
  } catch {
    return false; // there is no WebAssembly
  }
};

/** Each `{name, can, says}`; `threads` is how many there may be. `runs`: whether ONNX Runtime runs here at all. */
export async function abilities() {
  const here = typeof WebAssembly === "object";
  const simd = here && valid(SIMD);
  const shared = globalThis.crossOriginIsolated === true && typeof SharedArrayBuffer === "function";
  const threads = shared ? Math.max(1, navigator.hardwareConcurrency ?? 1) : 1;
  const gpu = await adapter();
  const camera = isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia);
  return {
    runs: simd,
    threads,
    webgpu: gpu.can,
    camera,
    all: [
      { name: "WebAssembly", can: simd, says: simd ? "with SIMD" : here ? "without SIMD, which ONNX Runtime needs: update this browser, or allow optimized WebAssembly" : "none: this browser, or a mode of it (such as lockdown), does not run it" },
      { name: "Threads", can: shared, says: shared ? `up to ${threads}` : `one: ${isSecureContext ? "this browser gives the page no SharedArrayBuffer (a proxy may take off the headers COOP and COEP)" : INSECURE}` },
      { name: "WebGPU", can: gpu.can, says: gpu.says },
      { name: "Camera", can: camera, says: camera ? "may be asked for" : isSecureContext ? "none in this browser: pick a picture" : `pick a picture: ${INSECURE}` },
    ],
  };
}

async function adapter() {
  if (!navigator.gpu) return { can: false, says: isSecureContext ? "not in this browser" : INSECURE };
  try {
    const found = await navigator.gpu.requestAdapter();
    if (!found) return { can: false, says: "no adapter is offered" };
    const { vendor, architecture } = found.info ?? {};
    return { can: true, says: [vendor, architecture].filter(Boolean).join(" ") || "there is one" };
  } catch (error) {
    return { can: false, says: `no adapter is offered (${error.message})` };
  }
}

/** What a profile says of the device, as far as a browser tells. */
export function describe(threads, provider, version, gpu) {
  const brands = navigator.userAgentData?.brands?.filter(({ brand }) => !/not.?a.?brand/i.test(brand)) ?? [];
  const [, named] = navigator.userAgent.match(/((?:Firefox|Chrome|Version)\/\d+)/) ?? [];
  const browser = brands.length ? `${brands.at(-1).brand} ${brands.at(-1).version}` : (named ?? "a browser").replace("/", " ");
  const system = navigator.userAgentData?.platform || navigator.platform || "unknown";
  const logical = navigator.hardwareConcurrency ?? 1;
  return {
    cpu: `${system}, ${browser}`,
    cores: logical,
    threads,
    ram_mb: Math.round((navigator.deviceMemory ?? 1) * 1024),
    os: system,
    onnxruntime: `web ${version}`,
    execution_provider: provider === "webgpu" ? "WebGpuExecutionProvider" : "WasmExecutionProvider",
    label: `in a browser, which tells ${logical} logical cores and at least ${navigator.deviceMemory ?? 1} GB${provider === "webgpu" ? `; WebGPU: ${gpu}` : ""}`,
  };
}

/** A name as profiles have them. */
export const nameOf = ({ cpu, execution_provider: provider, threads }) =>
  `browser-${cpu}-${provider.startsWith("WebGpu") ? "webgpu" : `${threads}t`}`.toLowerCase().replace(/[^a-z0-9.]+/g, "-").slice(0, 128);
