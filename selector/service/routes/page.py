"""`/`: the dashboard. The page's own files and the charting library are served from here; no outside address is used.

All addresses in it are relative to the page's own, so that it works below any prefix of a proxy (`/models/`).

Which sub-model a budget gets is asked from `POST /v1/select`, and a frontier is what `Selector.afforded_by` says: the page
computes neither.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from flask import Blueprint, Response, current_app, request
from markupsafe import Markup

from device_profiles import PERCENTILES
from device_profiles.schema import MAX_LENGTH
from exporter.bundle import Bundle
from selector.choose.budget import Budget
from selector.choose.lengths import as_cut
from selector.choose.metrics import metric_name
from selector.service.generate.generating import Generating
from selector.service.routes.predict import predictor
from selector.service.state import state
from selector.service.web.arguments import boolean_argument, checked_name, integer_argument
from selector.service.web.bodies import compressed, conditional, json_answer
from selector.service.web.openapi import not_in_the_api
from selector.service.web.problems import Problem

blueprint = Blueprint("page", __name__)

PAGES = Path(__file__).parent.parent / "pages"
TEMPLATE = "index.html"
CHARTS = "plotly.min.js"  # ships with the Python package plotly, which the report needs too
NOT_FOR_BROWSERS = ("node.js",)  # of the client
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css"}
COSTS = (*(f"latency_ms.p{p}" for p in PERCENTILES), "energy_mj", "memory_mb")
RUNS = 300  # that the live view shows
FOR_GOOD = "public, max-age=31536000, immutable"

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Plotly sets style attributes on its SVG
        "img-src 'self' data:",  # the favicon
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


class _Asset(NamedTuple):
    content: bytes
    packed: bytes  # with gzip, once
    media_type: str


@blueprint.get("/")
@not_in_the_api
def page() -> Response:
    """The HTML; the browser asks again each time, and gets 304 while it is the same."""
    bundles = list(state().bundles.values())
    rules = {rule.rule for rule in current_app.url_map.iter_rules()}
    html = template(TEMPLATE).render(
        bundles=bundles,
        assets=assets_address(),
        api_pages="/docs" in rules,
        config={
            "charts": charts_address(),
            "bundles": {
                bundle.name: {"device": _default_device(bundle), "metric": metric_name(bundle.metric)} for bundle in bundles
            },
            "runtime": "/v1/predict" in rules,
        },
    )
    response = Response(html, mimetype="text/html")
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    return conditional(compressed(response))


@blueprint.get("/assets/<version>/<path:name>")
@not_in_the_api
def asset(version: str, name: str) -> Response:
    """One of the page's files by the hash of all of them, so that it may be cached for good. Raises Problem 404."""
    if (version, name) == (_charts_version(), CHARTS):
        found = _charts()
    elif version == _version() and name in _files():
        found = _files()[name]
    else:
        raise Problem(404, f"asset {name!r} of version {version!r} is not served; load the page again")
    packed = request.accept_encodings["gzip"] > 0
    response = Response(found.packed if packed else found.content, mimetype=found.media_type)
    if packed:
        response.headers["Content-Encoding"] = "gzip"
    response.headers["Cache-Control"] = FOR_GOOD
    response.vary.add("Accept-Encoding")
    response.set_etag(f"{version}-gzip" if packed else version)
    return conditional(response)


@blueprint.get("/dashboard/frontiers/<bundle>/<device>")
@not_in_the_api
def frontiers(bundle: str, device: str) -> Response:
    """By cost: from which budget on, which sub-model is the best that fits; `[[cost, sub-model], …]`, ascending.

    The bundle's cascades are among the sub-models. `cascades` says of each what it costs on this device, as a profile does.
    `problem` says in words why there are none: the profile is of another bundle, or no quality is known. `lengths` are those of
    the input that were measured; for the `length` of the query string, and with `sustained=true` in steady work where that was
    measured, `submodels` says what each costs there.
    """
    opened = state().bundle(bundle)
    checked_name("device", device)
    length = integer_argument("length", least=1, most=MAX_LENGTH)
    sustained = boolean_argument("sustained")
    try:
        cascades = state().cascades(opened)
        selector = state().selector(opened, device, cascades)
    except Problem as problem:
        return json_answer({"frontiers": {}, "cascades": {}, "lengths": [], "submodels": {}, "problem": problem.detail})
    lengths = selector.offered.lengths
    selector = selector.at(Budget(length=as_cut(opened, length), sustained=sustained))
    offered = {offer.submodel: offer.costs.model_dump(exclude={"lengths"}) for offer in selector.offered}
    costs = {offer.submodel: offered.pop(offer.submodel) for offer in selector.offered if offer.stages}
    known = {
        one.id: {**one.model_dump(), "quality": one.quality(opened.qualities), "split": one.split, "costs": costs[one.id]}
        for one in cascades
        if one.id in costs
    }
    found = {}
    for cost in COSTS:
        name, _, percentile = cost.partition(".p")
        limits, candidates = selector.afforded_by(name, int(percentile or 50))
        found[cost] = [(limit, candidate.submodel) for limit, candidate in zip(limits, candidates, strict=True)]
    submodels = offered if sustained or (length is not None and lengths) else {}
    document = {"frontiers": found, "cascades": known, "lengths": lengths, "submodels": submodels, "problem": None}
    return compressed(json_answer(document))


@blueprint.get("/dashboard/runtime")
@not_in_the_api
def runtimes() -> Response:
    """Of every bundle that this process has run: the latest runs of all its runtimes, or the latest texts that it generated,
    each by one of its tokens; and the sensors in words."""
    found: dict[str, Any] = {}
    generating: Generating | None = current_app.extensions.get("sortednet.generating")
    for bundle in state().bundles.values() if generating is not None else ():
        assert generating is not None
        texts = list(generating.history.get(bundle.name, ()))[-RUNS:]
        if texts:
            opened = generating.opened(bundle)
            sensors = opened[0].generator.runtime.sensors.shown() if opened else {}  # none where it made room for others
            found[bundle.name] = {"history": texts, "sensors": sensors}
    for bundle in state().bundles.values() if "sortednet.predictor" in current_app.extensions else ():
        runtimes = [kept.runtime for kept in predictor().opened(bundle)]
        if runtimes:
            runs = sorted((run for runtime in runtimes for run in list(runtime.history)[-RUNS:]), key=lambda run: run.at)
            found[bundle.name] = {
                "history": [_run(run) for run in runs[-RUNS:]],
                "sensors": runtimes[0].sensors.shown(),
            }
    return json_answer({"bundles": found})


def _run(run: Any) -> dict[str, Any]:
    """As the live view shows it, without the reason, which is longer than all else. `run`: a RunRecord of the runtime."""
    shown: dict[str, Any] = run._asdict()
    del shown["reason"]
    return {**shown, "met": None if run.limit_ms is None else run.met}


def _default_device(bundle: Bundle) -> str | None:
    """The one that `POST /v1/select` takes where a query names none, else the first, else none."""
    try:
        return state().selector(bundle, None).select(Budget()).device
    except Problem:
        return next(iter(bundle.devices()), None)


def assets_address() -> str:
    """Of the folder of the pages' files, relative to a page; their hash is in it."""
    return f"assets/{_version()}"


def charts_address() -> str:
    """Of the charting library, likewise."""
    return f"assets/{_charts_version()}/{CHARTS}"


@cache
def template(name: str) -> jinja2.Template:
    """A page of `pages/`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["bytes"] = _bytes
    environment.filters["data"] = _data
    return environment.get_template(name)


@cache
def _files() -> dict[str, _Asset]:
    """By their paths below `pages/`; the JavaScript client is in one of its folders."""
    return {
        str(path.relative_to(PAGES)): _asset(path.read_bytes(), MEDIA_TYPES[path.suffix])
        for folder in (PAGES, PAGES / "browser", PAGES / "client")
        for path in sorted(folder.iterdir())
        if path.suffix in MEDIA_TYPES and path.name not in NOT_FOR_BROWSERS
    }


@cache
def _version() -> str:
    digest = hashlib.sha256()
    for name, found in _files().items():
        digest.update(f"{name}\0{len(found.content)}\0".encode() + found.content)
    return digest.hexdigest()[:16]


@cache
def _charts() -> _Asset:
    from plotly.offline import get_plotlyjs

    return _asset(get_plotlyjs().encode(), MEDIA_TYPES[".js"])


def _charts_version() -> str:
    return f"plotly-{version('plotly')}"


def _asset(content: bytes, media_type: str) -> _Asset:
    return _Asset(content, gzip.compress(content, 6, mtime=0), f"{media_type}; charset=utf-8")


def _data(document: Any) -> Markup:
    """JSON for a script element of type application/json: no `<` in it can end the element."""
    return Markup(json.dumps(document).replace("<", "\\u003c"))


def _bytes(count: int) -> str:
    """Three figures, such as 1.2 MB."""
    rounded = float(f"{count:.3g}")
    size, unit = next(((size, unit) for size, unit in ((1e9, "GB"), (1e6, "MB")) if rounded >= size), (1e3, "kB"))
    return f"{rounded / size:g} {unit}"
