"""What the service is compared with: flask with one path that answers a constant, under the same server."""

from __future__ import annotations

import argparse
from typing import Any

from flask import Flask

from selector.service import listening, serve

CONSTANT = {
    "submodel": "w0.75-d2",
    "feasible": True,
    "accuracy": 0.9694444444444444,
    "latency_ms": 0.1234,
    "energy_mj": None,
    "memory_mb": 1.25,
    "reason": "most accurate within latency 0.1234 of 5 ms",
    "device": "device",
}


def constant_app() -> Flask:
    app = Flask("constant")

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {}

    @app.post("/v1/select")
    def constant() -> dict[str, Any]:
        return CONSTANT

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    serve(constant_app(), listening("127.0.0.1", options.port), threads=options.threads)
