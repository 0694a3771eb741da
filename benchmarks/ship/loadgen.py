"""MLPerf's LoadGen drives what we have, and its own log says whether the run is valid.

SingleStream: one query after the other, by a `Runtime` in this process. Server: queries at random moments (Poisson) at a rate
that is wanted, of EXAMPLES each, by `POST /v1/predict` of a real server; valid where 99 % come within the deadline, by
LoadGen's clock. The deadline is a number of times what a session alone takes for a query: with arrivals at random a core that
is busy for 0.9 of the time makes some queries wait for ten others. The rate is a share of what direct ONNX Runtime sessions of
the same sub-model reach in this process, one on each core: the largest share that is valid is the figure. Runs are short
(SECONDS, SERVED), not the ten minutes of a submission.

`python -m benchmarks.ship.loadgen` measures this part alone. It needs `mlcommons-loadgen`.
"""

from __future__ import annotations

import http.client
import io
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from benchmarks.service.running import running
from benchmarks.ship.bundles import measured
from benchmarks.summary import run_parts
from exporter.bundle import Bundle
from exporter.bundle.session import SessionOptions, open_session
from selector.run import Runtime
from selector.service.predict.predictor import usable_cores

SECONDS = 10.0
QUERIES = 100  # at least: LoadGen's estimate of a percentile needs so many
SERVED = 700  # of a Server run, at least: fewer do not tell LoadGen that 99 % keep a deadline, where some are late
EXAMPLES = 256
DEADLINE = 20  # times what a session takes for a query
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
CLIENTS = 32
SAMPLES = 16
NOTES = {
    "loadgen_single_stream_valid": "1 where LoadGen's log calls a SingleStream run by Runtime valid",
    "loadgen_ratio": f"the largest of {SHARES} of the direct sessions' rate at which LoadGen's log calls a Server run by POST "
    f"/v1/predict valid: {EXAMPLES} examples a query, 99 % within {DEADLINE} times a session's time for one; 0 where none is",
    "loadgen_deadline_ms": "that deadline",
    "loadgen_direct_rps": f"queries of {EXAMPLES} examples per second by ONNX Runtime sessions, one on each core",
}
Answer = Callable[[int], None]


def measure() -> dict[str, float]:
    with TemporaryDirectory(prefix="sortednet-loadgen-") as name:
        folder = Path(name)
        measured(folder / "resnet")
        bundle = Bundle(folder / "resnet")
        (spec,) = bundle.manifest.inputs
        shape = tuple(size if isinstance(size, int) else EXAMPLES for size in spec.shape)
        inputs = {spec.name: np.random.default_rng(0).random(shape, dtype=np.float32)}
        with Runtime(bundle, threads=1) as runtime:
            one = {spec.name: inputs[spec.name][:1]}
            runtime.run(one)
            single = valid_single_stream(lambda sample: _ignore(runtime.run(one)), folder / "single", seconds=SECONDS)
            submodel = runtime.run(inputs).selection.submodel
        direct = _direct_rate(bundle, submodel, inputs)
        deadline_ms = DEADLINE * 1e3 * usable_cores() / direct
        with running("sortednet", "serve", bundle.path, "--max-batch", str(EXAMPLES), "--waiting", str(CLIENTS)) as service:
            answer = _predict(service.url, inputs[spec.name], deadline_ms)
            answer()
            found = 0.0
            for share in SHARES:
                if valid_server(answer, share * direct, deadline_ms, folder / f"server-{share}"):
                    found = share
                    break
    rates = {"loadgen_ratio": found, "loadgen_direct_rps": direct, "loadgen_deadline_ms": deadline_ms}
    return {"loadgen_single_stream_valid": float(single), **rates}


def valid_single_stream(run: Answer, logs: Path, *, seconds: float = 0.0) -> bool:
    """Whether LoadGen calls it valid: `run` is called with the number of a sample, until the time is over and there were
    `QUERIES` of them."""
    loadgen = _loadgen()
    settings = _settings(loadgen.TestScenario.SingleStream, seconds)
    settings.single_stream_expected_latency_ns = 1_000_000

    def issue(queries: Sequence[Any]) -> None:
        for one in queries:
            run(one.index)
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(one.id, 0, 0)])

    return _valid(issue, settings, logs)


def valid_server(ask: Callable[[], None], rate: float, deadline_ms: float, logs: Path) -> bool:
    """Whether LoadGen calls it valid at so many queries per second; what is asked goes to threads, as many as `CLIENTS`."""
    loadgen = _loadgen()
    settings = _settings(loadgen.TestScenario.Server, SECONDS)
    settings.min_query_count = SERVED
    settings.server_target_qps = rate
    settings.server_target_latency_ns = int(deadline_ms * 1e6)
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        while (one := waiting.get()) is not None:
            ask()
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(one.id, 0, 0)])

    def put(queries: Sequence[Any]) -> None:
        for one in queries:
            waiting.put(one)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        return _valid(put, settings, logs)
    finally:
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            thread.join()


def _valid(issue: Callable[[Sequence[Any]], Any], settings: Any, logs: Path) -> bool:
    """Runs the test; what LoadGen's summary says."""
    loadgen = _loadgen()
    logs.mkdir(parents=True)
    output, logging = loadgen.LogOutputSettings(), loadgen.LogSettings()
    output.outdir = str(logs)
    output.copy_summary_to_stdout = False
    logging.log_output = output
    logging.enable_trace = False
    system = loadgen.ConstructSUT(issue, lambda: None)
    samples = loadgen.ConstructQSL(SAMPLES, SAMPLES, lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(system, samples, settings, logging)
    finally:
        loadgen.DestroyQSL(samples)
        loadgen.DestroySUT(system)
    return "Result is : VALID" in (logs / "mlperf_log_summary.txt").read_text(encoding="utf-8")


def _settings(scenario: Any, seconds: float) -> Any:
    loadgen = _loadgen()
    settings = loadgen.TestSettings()
    settings.scenario = scenario
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(seconds * 1e3)
    settings.min_query_count = QUERIES
    return settings


def _loadgen() -> Any:
    try:
        import mlperf_loadgen
    except ModuleNotFoundError:
        raise SystemExit("LoadGen is needed: pip install mlcommons-loadgen") from None
    return mlperf_loadgen


def _direct_rate(bundle: Bundle, submodel: str, inputs: dict[str, np.ndarray]) -> float:
    """Runs per second of sessions of one thread each, as many as this process has cores."""
    cores = usable_cores()
    done: list[None] = []
    sessions = [open_session(bundle.graph_path(submodel), SessionOptions(threads=1)) for _ in range(cores)]
    until = time.monotonic() + SECONDS

    def work(session: Any) -> None:
        while time.monotonic() < until:
            session.run(None, inputs)
            done.append(None)

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done) / SECONDS


def _predict(url: str, array: np.ndarray, deadline_ms: float) -> Callable[[], None]:
    """Asks over a connection of the thread that calls it, which is made anew where it broke."""
    path = f"/v1/predict?budget={quote(json.dumps({'latency_ms': deadline_ms}))}"
    buffer, own = io.BytesIO(), threading.local()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()

    def ask() -> None:
        for _ in range(2):
            if getattr(own, "connection", None) is None:
                own.connection = http.client.HTTPConnection(urlsplit(url).netloc)
            try:
                own.connection.request("POST", path, content, {"Content-Type": "application/x-npy"})
                response = own.connection.getresponse()
                response.read()
                if response.status != 200:  # what is refused counts as late
                    time.sleep(2 * deadline_ms / 1e3)
                return
            except (OSError, http.client.HTTPException):  # the server closes what is idle
                own.connection = None
        time.sleep(2 * deadline_ms / 1e3)

    return ask


def _ignore(_: object) -> None:
    """LoadGen takes no answer where it measures speed."""


if __name__ == "__main__":
    run_parts(Path(__file__).parent / "results", "python -m benchmarks.ship", {"loadgen": measure}, NOTES, sys.argv[1:])
