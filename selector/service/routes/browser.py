"""`/browser`: a browser as a device. The page measures a bundle's sizes where it is opened, and runs them there.

Only this page, and the workers that it starts, may compile WebAssembly, use a camera, and share memory between threads, for
which a browser demands that nothing of another origin is in it (COEP). What it computes with comes from `--onnxruntime-web`.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, current_app, request

from selector.choose.metrics import metric_name
from selector.service.files.onnxruntime_web import PROCESSOR, WEBGPU, OnnxRuntimeWeb
from selector.service.routes.page import FOR_GOOD, assets_address, charts_address, template
from selector.service.state import state
from selector.service.web.bodies import compressed, conditional
from selector.service.web.openapi import not_in_the_api
from selector.service.web.problems import Problem

blueprint = Blueprint("browser", __name__)

ALONE = {"Cross-Origin-Embedder-Policy": "require-corp"}
"""With COOP, which every answer has: threads of WebAssembly may share memory. A worker's script has to say it too."""
SCRIPTS = "script-src 'self' 'wasm-unsafe-eval'"
PAGE_POLICY = "; ".join(
    [
        "default-src 'none'",
        SCRIPTS,
        "worker-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Plotly sets style attributes on its SVG
        "img-src 'self' data: blob:",  # the favicon, the picture that was picked
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
WORKER_POLICY = f"default-src 'none'; {SCRIPTS}; worker-src 'self'; connect-src 'self'; frame-ancestors 'none'"
CAMERA = "camera=(self), geolocation=(), microphone=()"


@blueprint.get("/browser")
@not_in_the_api
def page() -> Response:
    """The HTML; without ONNX Runtime's files it says how to get them."""
    ort, bundles = _ort(), list(state().bundles.values())
    config: dict[str, Any] = {
        "charts": charts_address(),
        "ort": None,
        "store": state().has_store,
        "bundles": {bundle.name: {"metric": metric_name(bundle.metric)} for bundle in bundles},
    }
    if ort is not None:
        folder = f"assets/onnxruntime-web-{ort.version}/"
        config["ort"] = {"folder": folder, "processor": PROCESSOR, "webgpu": WEBGPU if ort.has_webgpu else None}
    html = template("browser/index.html").render(bundles=bundles, assets=assets_address(), config=config, ort=ort is not None)
    response = Response(html, mimetype="text/html")
    response.headers.update(ALONE)
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    response.headers["Permissions-Policy"] = CAMERA
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    return conditional(compressed(response))


@blueprint.get("/assets/onnxruntime-web-<version>/<name>")
@not_in_the_api
def asset(version: str, name: str) -> Response:
    """One of ONNX Runtime's files. Raises Problem 404."""
    ort = _ort()
    packed = request.accept_encodings["gzip"] > 0
    found = ort.file(name, packed=packed) if ort is not None and version == ort.version else None
    if found is None:
        raise Problem(404, f"{name!r} of onnxruntime-web {version!r} is not served; load the page again")
    response = Response(found.content)
    response.headers["Content-Type"] = found.media_type
    if packed:
        response.headers["Content-Encoding"] = "gzip"
    response.headers.update(ALONE)
    response.headers["Content-Security-Policy"] = WORKER_POLICY
    response.headers["Cache-Control"] = FOR_GOOD
    response.vary.add("Accept-Encoding")
    response.set_etag(f"{version}-gzip" if packed else version)
    return conditional(response)


def _ort() -> OnnxRuntimeWeb | None:
    found: OnnxRuntimeWeb | None = current_app.extensions["sortednet.onnxruntime-web"]
    return found
