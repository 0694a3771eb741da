"""What one would write without the service: one session, run for whoever asks, under the same server with as many threads.

`python -m benchmarks.service.plain BUNDLE DEVICE EXAMPLES DEADLINE_MS --port PORT`
"""

from __future__ import annotations

import io
import sys
import threading
from typing import Any

import numpy as np
from flask import Flask, Response, request

from exporter.bundle import Bundle
from selector import Budget, selector_for
from selector.service import create_app, listening, serve


def main() -> None:
    path, device, examples, deadline_ms, _, port = sys.argv[1:]
    bundle = Bundle(path)
    alone = selector_for(bundle, device).select(Budget(latency_ms=float(deadline_ms) / float(examples)))
    served = create_app([bundle])
    app = Flask("plain")
    app.extensions.update(served.extensions)  # what `serve` takes the number of threads from
    opening = threading.Lock()
    sessions: list[Any] = []

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {}

    @app.post("/v1/predict")
    def predict() -> Response:
        from exporter.bundle.session import SessionOptions, open_session  # ONNX Runtime, after the fork

        with opening:
            if not sessions:
                sessions.append(open_session(bundle.graph_path(alone.submodel), SessionOptions(threads=1)))
        inputs = np.load(io.BytesIO(request.get_data()), allow_pickle=False)
        (outputs,) = sessions[0].run(None, {bundle.manifest.inputs[0].name: inputs})
        buffer = io.BytesIO()
        np.save(buffer, outputs)
        return Response(buffer.getvalue(), mimetype="application/x-npy")

    serve(app, listening("127.0.0.1", int(port)))


if __name__ == "__main__":
    main()
