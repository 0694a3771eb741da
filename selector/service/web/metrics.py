"""What Prometheus reads at `GET /metrics`.

Counters begin at 0 when a process does. With several workers their values lie in files of a shared folder, and whichever worker
is asked answers for all (prometheus_client's multiprocess mode); gauges then hold what each worker last said of itself, and are
added up, except for the slow-down, of which the worst counts.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask, Response, current_app, g, request

from selector.service.web.openapi import Answer, describe
from selector.service.web.receipt import receipt

if TYPE_CHECKING:
    from selector.choose.budget import Selection

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SUBMODELS = 100
"""At most so many sub-models of a bundle get a label of their own, in the order in which they are first chosen."""
_HTTP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_RUN_SECONDS = (0.0001, 0.00025, 0.0005, *_HTTP_SECONDS)
_VALUES = re.compile(r"(?:counter|histogram|summary|gauge_[a-z]+)_([0-9]{1,18})\.db")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

blueprint = Blueprint("metrics", __name__)


class MetricsError(ValueError):
    """A folder for shared values that is none, or holds something else."""

    exit_code = 2


def check_folder() -> None:
    """Of `PROMETHEUS_MULTIPROC_DIR`, where it is set: it must be there, be writable, and hold nothing but values that processes
    which have ended left behind: those are removed. To be called before an application is made. Raises MetricsError."""
    if FOLDER_VARIABLE not in os.environ:
        return
    folder = Path(os.environ[FOLDER_VARIABLE])
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise MetricsError(f"{FOLDER_VARIABLE} = {str(folder)!r}: allowed is a folder that is there and can be written")
    for path in folder.iterdir():
        left = _VALUES.fullmatch(path.name)
        if left is None:
            raise MetricsError(f"{FOLDER_VARIABLE} = {str(folder)!r}: holds {path.name!r}; allowed is an empty folder")
        if _lives(int(left[1])):
            raise MetricsError(f"{FOLDER_VARIABLE} = {str(folder)!r}: is used by process {left[1]}; allowed is one of its own")
        path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    if process == os.getpid():
        return False  # it has only begun: an earlier one had its number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


class Metrics:
    """Made before the server forks. `workers` above 1: the values are shared, in `PROMETHEUS_MULTIPROC_DIR` or a new folder."""

    def __init__(self, workers: int = 1) -> None:
        self.shared = workers > 1 or FOLDER_VARIABLE in os.environ  # by which prometheus_client goes
        self.folder: str | None = None  # made here, to be removed by whoever made the application
        if self.shared and FOLDER_VARIABLE not in os.environ:  # read when prometheus_client is imported
            self.folder = os.environ[FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="sortednet-metrics-")
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        if not self.shared:
            ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sortednet_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str, mode: Any = "livesum") -> Gauge:
            return Gauge(f"sortednet_{name}", text, labels, registry=self.registry, multiprocess_mode=mode)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _HTTP_SECONDS) -> Histogram:
            return Histogram(f"sortednet_{name}", text, labels, registry=self.registry, buckets=buckets)

        self._http = counter("http_requests", "Answers by path template and status.", "method", "route", "status")
        self._http_seconds = histogram(
            "http_request_seconds", "From the application's begin with a request to its answer.", "method", "route"
        )
        self._http_wait = histogram(
            "http_wait_seconds", "From a request's arrival to a free thread of the server.", buckets=_RUN_SECONDS
        )
        self._selects = counter("select_requests", "Budget queries answered; feasible: something fitted.", "bundle", "feasible")
        self._chosen = counter(
            "chosen_submodels",
            "Choices by sub-model, of select, predict and generate; late ones as other.",
            "bundle",
            "submodel",
            "path",
        )
        self._predicts = counter("predict_requests", "Requests with inputs that were run.", "bundle")
        self._examples = counter("predict_examples", "Examples that were run.", "bundle")
        self._deadlines = counter(
            "predict_deadlines",
            "Requests with a deadline that were run: met, or missed, as the server sees it (waiting and run).",
            "bundle",
            "outcome",
        )
        self._refused = counter("predict_refused", "Requests refused early with 503, by reason.", "bundle", "reason")
        self._run_seconds = histogram("predict_run_seconds", "Of runs, each a whole batch.", "bundle", buckets=_RUN_SECONDS)
        self._queue_seconds = histogram(
            "predict_queue_seconds", "From a request's arrival to the begin of its run.", "bundle", buckets=_RUN_SECONDS
        )
        self._queued = gauge("predict_queue_length", "Requests that wait for cores.")
        self._running = gauge("predict_running", "Requests that are being run.")
        self._sessions = gauge("sessions_open", "Open sessions of sub-models.", "bundle")
        self._pool = gauge("session_pool_bytes", "Memory of the open sessions, as the profile says, not measured.", "bundle")
        self._slow_down = gauge(
            "slow_down_ratio", "How many times longer runs take than the profile says.", "bundle", "device", mode="livemax"
        )
        self._battery = gauge(
            "battery_ratio",
            "Charge of this host's battery, where it has one, as the bundle's runtime reads it.",
            "bundle",
            mode="livemostrecent",
        )
        self._texts = counter("generate_requests", "Texts by why they ended; gone: the client was.", "bundle", "finish")
        self._tokens = counter("generated_tokens", "Tokens of texts that were generated.", "bundle")
        self._guessed = counter(
            "guessed_tokens", "Tokens of texts that were guessed and computed: those that came, and others.", "bundle", "came"
        )
        self._text_refused = counter("generate_refused", "Requests for texts refused early with 503.", "bundle", "reason")
        self._first_token = histogram(
            "generate_first_token_seconds", "From a request's arrival to its first token.", "bundle", buckets=_RUN_SECONDS
        )
        self._text_queue = histogram(
            "generate_queue_seconds", "From a request's arrival to its turn.", "bundle", buckets=_RUN_SECONDS
        )
        self._per_second = gauge(
            "generate_tokens_per_second", "Of the latest text, after its first token.", "bundle", mode="livemostrecent"
        )
        self._texts_queued = gauge("generate_queue_length", "Requests for texts that wait for cores.")
        self._texts_running = gauge("generate_running", "Texts that are being generated.")
        self._labelled: dict[str, set[str]] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        method = method if method in _METHODS else "other"
        self._http.labels(method, route, str(status)).inc()
        self._http_seconds.labels(method, route).observe(seconds)

    def waited(self, seconds: float) -> None:
        self._http_wait.observe(seconds)

    def selected(self, bundle: str, selection: Selection) -> None:
        self._selects.labels(bundle, "yes" if selection.feasible else "no").inc()
        self._chosen.labels(bundle, self._label(bundle, selection.submodel), "select").inc()

    def ran(self, bundle: str, submodel: str, examples: int, queued_s: float, run_s: float, met: bool | None) -> None:
        """`met`: the deadline; None where there was none."""
        self._predicts.labels(bundle).inc()
        self._examples.labels(bundle).inc(examples)
        self._chosen.labels(bundle, self._label(bundle, submodel), "predict").inc()
        self._queue_seconds.labels(bundle).observe(queued_s)
        self._run_seconds.labels(bundle).observe(run_s)
        if met is not None:
            self._deadlines.labels(bundle, "met" if met else "missed").inc()

    def refused(self, bundle: str, reason: str) -> None:
        self._refused.labels(bundle, reason).inc()

    def generated(
        self,
        bundle: str,
        submodel: str,
        tokens: int,
        finish: str,
        queued_s: float,
        first_s: float | None,
        per_second: float | None,
    ) -> None:
        """A text of so many tokens has ended. `per_second`: of its tokens after the first, None where there were none."""
        self._texts.labels(bundle, finish).inc()
        self._tokens.labels(bundle).inc(tokens)
        self._chosen.labels(bundle, self._label(bundle, submodel), "generate").inc()
        self._text_queue.labels(bundle).observe(queued_s)
        if first_s is not None:
            self._first_token.labels(bundle).observe(first_s)
        if per_second is not None:
            self._per_second.labels(bundle).set(per_second)

    def guessed(self, bundle: str, drafted: int, accepted: int) -> None:
        """Tokens of a text that has ended."""
        self._guessed.labels(bundle, "yes").inc(accepted)
        self._guessed.labels(bundle, "no").inc(drafted - accepted)

    def text_refused(self, bundle: str, reason: str) -> None:
        self._text_refused.labels(bundle, reason).inc()

    def texts(self, running: int, queued: int) -> None:
        self._texts_running.set(running)
        self._texts_queued.set(queued)

    def load(self, running: int, queued: int) -> None:
        self._running.set(running)
        self._queued.set(queued)

    def sessions(self, bundle: str, count: int, memory_bytes: float) -> None:
        self._sessions.labels(bundle).set(count)
        self._pool.labels(bundle).set(memory_bytes)

    def slow_down(self, bundle: str, device: str, ratio: float) -> None:
        self._slow_down.labels(bundle, device).set(ratio)

    def battery(self, bundle: str, percent: float) -> None:
        self._battery.labels(bundle).set(percent / 100)

    def text(self) -> tuple[bytes, str]:
        """The metrics, of all workers, and their content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self.registry
        if self.shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _label(self, bundle: str, submodel: str) -> str:
        known = self._labelled.setdefault(bundle, set())
        if submodel not in known:
            if len(known) >= SUBMODELS:
                return "other"
            known.add(submodel)
        return submodel


def metrics() -> Metrics:
    """Of the application that answers the present request."""
    found: Metrics = current_app.extensions["sortednet.metrics"]
    return found


def process_ended(pid: int) -> None:
    """A worker has ended: its gauges count no more."""
    if FOLDER_VARIABLE in os.environ:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def register(app: Flask, found: Metrics) -> None:
    """Counts every request. To be registered before whatever else looks at requests, which may refuse them."""
    app.extensions["sortednet.metrics"] = found

    @app.before_request
    def begun() -> None:
        g.begun = time.monotonic()
        waited, g.received = receipt()
        found.waited(waited)

    @app.after_request
    def ended(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else "unmatched"
        begun_at = g.get("begun")
        if begun_at is not None:
            found.answered(request.method, route, response.status_code, time.monotonic() - begun_at)
        return response


@blueprint.get("/metrics")
@describe("For Prometheus", tag="service", answers={200: Answer("All metrics, of all workers", {"text/plain": None})})
def read() -> Response:
    predictor = current_app.extensions.get("sortednet.predictor")
    if predictor is not None:
        predictor.update_gauges()
    generating = current_app.extensions.get("sortednet.generating")
    if generating is not None:
        generating.show_load()
    text, kind = metrics().text()
    return Response(text, content_type=kind)
