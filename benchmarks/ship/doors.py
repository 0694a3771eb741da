"""The Open Inference Protocol's door beside our own: how much longer Triton's client takes for the same inputs and answers.

One server, one bundle, one example at a time, the same deadline; the two take turns, so that whatever else runs slows both.
`/v1/predict` is asked with .npy over a connection of Python's own `http.client` that is kept. Triton's client sends and gets
raw tensors. Times are the clients', from the array that goes in to the array that comes out.

`python -m benchmarks.ship.doors [BUNDLE]` measures this part alone, by default on a small network of random weights. It needs
`tritonclient[http]`.
"""

from __future__ import annotations

import http.client
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from benchmarks.service.running import running
from benchmarks.ship.bundles import measured
from benchmarks.summary import run_parts
from exporter.bundle import Bundle

ROUNDS, WARM = 600, 50
DEADLINE_MS = 1000.0
NOTES = {
    "oip_ratio": "median time of tritonclient's infer (POST /v2/models/NAME/infer, raw tensors) over that of POST /v1/predict "
    f"(.npy, http.client, the connection kept), one example, {ROUNDS} turns each, alternating",
    "oip_ms_p50": "median time of tritonclient's infer, by the client's clock",
    "predict_ms_p50": "the same of POST /v1/predict",
    "oip_differing": "answers of which the two differ by more than 1e-5 of the largest output; the budget names one sub-model",
}


def measure() -> dict[str, float]:
    """On a ResNet of six sub-models and random weights, for pictures of 28 x 28."""
    with TemporaryDirectory(prefix="sortednet-doors-") as folder:
        path = Path(folder) / "resnet"
        measured(path)
        return doors(path)


def doors(path: Path) -> dict[str, float]:
    """The figures of a bundle whose input is one array of 32-bit floats."""
    bundle = Bundle(path)
    spec, output = bundle.manifest.inputs[0], bundle.manifest.outputs[0].name
    example = bundle.selftest_inputs[spec.name][:1]
    qualities = [quality for quality in bundle.qualities.values() if quality is not None]
    budget = {"min_quality": max(qualities)} if qualities else {}  # so that both get the same sub-model
    with running("sortednet", "serve", path) as service:
        ours = _predict(service.url, example, budget)
        theirs = _infer(service.url, bundle.name, (spec.name, output), example, budget)
        for _ in range(WARM):
            ours(), theirs()
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        differing = 0
        for turn in range(ROUNDS):
            answers: dict[str, NDArray[Any]] = {}
            for name, ask in (("ours", ours), ("theirs", theirs))[:: 1 if turn % 2 else -1]:
                begun = time.perf_counter()
                answers[name] = ask()
                times[name].append((time.perf_counter() - begun) * 1e3)
            differing += not np.allclose(
                answers["ours"], answers["theirs"], rtol=0, atol=1e-5 * float(np.abs(answers["ours"]).max())
            )
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "oip_ratio": medians["theirs"] / medians["ours"],
        "oip_ms_p50": medians["theirs"],
        "predict_ms_p50": medians["ours"],
        "oip_differing": differing,
    }


def _predict(url: str, example: np.ndarray, budget: Mapping[str, float]) -> Callable[[], np.ndarray]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    path = f"/v1/predict?budget={quote(json.dumps({'latency_ms': DEADLINE_MS, **budget}))}"

    def ask() -> np.ndarray:
        buffer = io.BytesIO()
        np.save(buffer, example, allow_pickle=False)
        connection.request("POST", path, buffer.getvalue(), {"Content-Type": "application/x-npy"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise SystemExit(f"/v1/predict: {response.status} {content[:300]!r}")
        found: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        return found

    return ask


def _infer(
    url: str, bundle: str, names: tuple[str, str], example: np.ndarray, budget: Mapping[str, float]
) -> Callable[[], np.ndarray]:
    try:
        import tritonclient.http as triton
    except ModuleNotFoundError:
        raise SystemExit("tritonclient is needed: pip install 'tritonclient[http]'") from None
    client: Any = triton.InferenceServerClient(urlsplit(url).netloc)

    def ask() -> np.ndarray:
        given = triton.InferInput(names[0], list(example.shape), "FP32")
        given.set_data_from_numpy(example)
        found: np.ndarray = client.infer(bundle, [given], timeout=int(DEADLINE_MS * 1e3), parameters=dict(budget)).as_numpy(
            names[1]
        )
        return found

    return ask


if __name__ == "__main__":
    parts = {"doors": measure if len(sys.argv) < 2 else partial(doors, Path(sys.argv[1]))}
    run_parts(Path(__file__).parent / "results", "python -m benchmarks.ship", parts, NOTES, [])
