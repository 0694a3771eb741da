"""The WSGI application: its groups of paths, and its errors."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Flask

from exporter.bundle import Bundle
from selector.service import bundle_routes, docs_routes, health_routes, problems, select_routes
from selector.service.state import State

MAX_BODY_BYTES = 64 * 1024


def create_app(bundles: Sequence[Bundle]) -> Flask:
    """The WSGI application for opened bundles. Raises BundleError when two of them have the same name."""
    app = Flask("sortednet", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES + 1  # a body sent in chunks is cut there: see `body`
    app.extensions["sortednet"] = State(bundles)
    problems.register(app)
    for routes in (health_routes, docs_routes, bundle_routes, select_routes):
        app.register_blueprint(routes.blueprint)
    return app
