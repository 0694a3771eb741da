"""The WSGI application: its groups of paths, and its errors."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flask import Flask
from flask_cors import CORS

from exporter.bundle import Bundle
from selector.service import bundle_routes, docs_routes, health_routes, problems, profile_routes, select_routes
from selector.service.access import Access
from selector.service.state import MAX_BODY_BYTES, State
from selector.service.store import Store

_origin = re.compile(r"https?://[a-z0-9.-]+(:[0-9]+)?").fullmatch


class OriginError(ValueError):
    """No origin of a page."""

    exit_code = 2


def create_app(bundles: Sequence[Bundle], store: Store | None = None, *, cors_origins: Sequence[str] = ()) -> Flask:
    """The WSGI application for opened bundles; pages of those origins may read its answers, others only through a server.
    Without a store it keeps no profiles of the fleet.

    Raises BundleError when two bundles have the same name, OriginError for an origin that is none.
    """
    for origin in cors_origins:
        if not _origin(origin):
            raise OriginError(f"cors_origin = {origin!r}: allowed is https://HOST or https://HOST:PORT, or http")
    app = Flask("sortednet", static_folder=None)
    app.url_map.merge_slashes = False  # would answer `//` with a redirect
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = bool(cors_origins)
    app.extensions["sortednet"] = State(bundles, store)
    problems.register(app)
    for routes in (health_routes, docs_routes, bundle_routes, profile_routes, select_routes):
        app.register_blueprint(routes.blueprint)
    if cors_origins:
        CORS(
            app,
            origins=list(cors_origins),
            expose_headers=["ETag", "X-Request-Id"],
            max_age=600,
        )
    app.wsgi_app = Access(app.wsgi_app)  # type: ignore[method-assign]
    return app
