"""The WSGI application: its groups of paths, and its errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flask import Flask
from flask_cors import CORS

from exporter.bundle import Bundle
from selector.service.files.onnxruntime_web import OnnxRuntimeWeb
from selector.service.fleet.rings import RULES, RingRules
from selector.service.fleet.store import Store
from selector.service.generate.generating import GenerateOptions, Generating
from selector.service.predict.predictor import PredictOptions, Predictor
from selector.service.routes import browser, bundle, docs, file, health, oip, openai, page, profile, rings, select
from selector.service.routes import generate as generate_routes
from selector.service.routes import predict as predict_routes
from selector.service.served import Opening
from selector.service.state import State
from selector.service.web import hosts, metrics, problems
from selector.service.web.access import Access

_origin = re.compile(r"https?://[a-z0-9.-]+(:[0-9]+)?").fullmatch
_PREDICT, _GENERATE = PredictOptions(), GenerateOptions()

MAX_BODY_BYTES = 64 * 1024
"""Of a request's body, where a path allows no more."""


EXPOSED = ["Content-Location", "Content-Range", "ETag", "Profile-Version", "Retry-After", "X-Request-Id"]
EXPOSED += ["Inference-Header-Content-Length", "Sortednet-Latency-Ms", "Sortednet-Queued-Ms", "Sortednet-Selection"]
EXPOSED += ["Sortednet-Energy-Mj", "Sortednet-Energy-Source"]
"""Headers that pages of other origins may read."""


class OriginError(ValueError):
    """No origin of a page."""

    exit_code = 2


def create_app(
    bundles: Sequence[Bundle],
    store: Store | None = None,
    *,
    predict: PredictOptions | None = _PREDICT,
    generate: GenerateOptions | None = _GENERATE,
    workers: int = 1,
    cors_origins: Sequence[str] = (),
    allowed_hosts: Sequence[str] | None = None,
    onnxruntime_web: Path | None = None,
    opening: Opening = Bundle,
    ring_rules: RingRules = RULES,
) -> Flask:
    """The WSGI application for opened bundles, to be run by so many processes. Without a store it keeps no profiles of the
    fleet; `predict` None: no `POST /v1/predict` and no `/v2`; `generate` None: no `POST /v1/generate` and no paths for OpenAI's
    clients. Pages of `cors_origins` may read its answers, others only through a server.
    `allowed_hosts`: names and addresses that it is asked under beside those of loopback (see `Hosts`); None: any.
    `onnxruntime_web`: the folder of that package's files, with which browsers run graphs; None: `/browser` says how to get it.
    A bundle named NAME@canary is a new version of NAME, which devices get by `ring_rules`. `opening`: how a bundle is opened
    that is replaced while this runs.

    Raises BundleError when two bundles have the same name, OriginError for an origin that is none, HostError for a host,
    OnnxRuntimeWebError for a folder without these files.
    """
    for origin in cors_origins:
        if not _origin(origin):
            raise OriginError(f"cors_origin = {origin!r}: allowed is https://HOST or https://HOST:PORT, or http")
    app = Flask("sortednet", static_folder=None)
    app.url_map.merge_slashes = False  # would answer `//` with a redirect
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = bool(cors_origins)
    app.extensions["sortednet"] = State(bundles, store, opening, ring_rules)
    app.extensions["sortednet.onnxruntime-web"] = None if onnxruntime_web is None else OnnxRuntimeWeb(onnxruntime_web)
    measured = metrics.Metrics(workers)
    metrics.register(app, measured)  # first: it notes when the request was received
    problems.register(app)
    if allowed_hosts is not None:
        hosts.register(app, hosts.Hosts(allowed_hosts))
    for routes in (health, docs, bundle, file, profile, rings, select, page, browser, metrics):
        app.register_blueprint(routes.blueprint)
    if predict is not None:
        app.extensions["sortednet.predictor"] = Predictor(predict, measured, workers)
        app.register_blueprint(predict_routes.blueprint)
        app.register_blueprint(oip.blueprint)
    if generate is not None:
        app.extensions["sortednet.generating"] = Generating(generate, measured, workers)
        app.register_blueprint(generate_routes.blueprint)
        app.register_blueprint(openai.blueprint)
    if cors_origins:
        CORS(app, origins=list(cors_origins), expose_headers=EXPOSED, max_age=600)
    app.wsgi_app = Access(app.wsgi_app)  # type: ignore[method-assign]
    return app
