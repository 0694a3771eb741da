"""`/openapi.json` and the API pages `/docs`: Swagger UI, with all that it needs from the flask-swagger-ui package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flask_swagger_ui
from flask import Blueprint, Response, current_app, send_from_directory

from selector.service.web import openapi
from selector.service.web.bodies import compressed, json_answer
from selector.service.web.openapi import describe, not_in_the_api

blueprint = Blueprint("docs", __name__)

ASSETS = Path(flask_swagger_ui.__file__).parent / "dist"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>sortednet: API</title>
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = 'SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });\n'
POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
"""Swagger UI sets styles on elements and has its icons in data URLs. Scripts in the page are not allowed."""


@blueprint.get("/openapi.json")
@describe("This document", tag="service", answers={200: dict[str, Any]})
def openapi_json() -> Response:
    made: dict[str, Any] | None = current_app.extensions.get("openapi")
    if made is None:
        made = current_app.extensions["openapi"] = openapi.document(current_app)
    return compressed(json_answer(made))


@blueprint.get("/docs")
@not_in_the_api
def docs() -> Response:
    return Response(PAGE, mimetype="text/html", headers={"Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'"})


@blueprint.get("/docs/start.js")
@not_in_the_api
def start() -> Response:
    return Response(START, mimetype="text/javascript")


@blueprint.get("/docs/<file>")
@not_in_the_api
def asset(file: str) -> Response:
    return send_from_directory(ASSETS, file, max_age=86400)
