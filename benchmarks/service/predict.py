"""`POST /v1/predict` under overload: how many answers are in time, and how early a refusal comes.

The capacity is what the service answers in time to as many clients as it has cores, each asking again when it is answered. Then
twice that rate comes whatever happens (Poisson arrivals), from a process of its own. Times are the client's: from the moment at
which a request is sent until its answer has been read. Beside it the same load meets a plain endpoint under the same server:
one session of the most accurate sub-model that keeps the deadline alone, no queue of its own and no refusals.

`python -m benchmarks.service.predict BUNDLE` prints the figures; without a bundle that of `benchmarks/adapt` is taken.
"""

from __future__ import annotations

import http.client
import io
import json
import queue
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from benchmarks.service.running import running

BUNDLE = Path("build/adapt/bundle")
DEVICE = "bench"
EXAMPLES = 64
DEADLINE_MS = 100.0
CLIENTS = 64  # connections of the generator
GIVEN_UP_SECONDS = 1.0  # a request that found no free connection for so long is not sent any more
IDLE_SECONDS = 1.0  # after which one is made anew: the server closes it after two
NOTES = {
    "predict_capacity_rps": f"requests of {EXAMPLES} examples answered within {DEADLINE_MS:g} ms by the client's clock, per "
    "second; as many clients as cores, each asking again when it is answered",
    "predict_overload_rps": "requests sent per second, twice the capacity, Poisson arrivals",
    "predict_in_time_share": "of the answered requests under overload, how many came within the deadline by the client's clock",
    "predict_in_time_share_server": "the same by the server's clock: waiting and run, without reading and writing",
    "predict_answered_share": "of all requests under overload, how many were answered (200); the others were refused (503)",
    "predict_goodput_ratio": "answers in time per second under overload, over the capacity",
    "predict_refusal_ms_p50": "from sending to the refusal, client's clock",
    "predict_refusal_over_deadline_p50": "the same as a share of the deadline",
    "predict_refused_before_deadline_share": "of the refusals, how many came before the deadline had passed",
    "predict_accuracy_alone": "mean expected accuracy of the answers while the capacity was measured",
    "predict_accuracy_overload": "mean expected accuracy of the answers under overload",
    "predict_errors": "answers with another status than 200 and 503, broken connections, and requests that found no connection",
    "predict_generator_lag_ms_p99": "how much later than planned the generator sent a request",
    "plain_in_time_share": "plain endpoint, same rate: of all requests, which it all answers, how many within the deadline",
    "plain_goodput_ratio": "plain endpoint: answers in time per second, over predict_capacity_rps",
}


class Sent(NamedTuple):
    """One request, times in seconds; `selection` and the server's times where it was answered."""

    status: int  # 0: the connection broke
    seconds: float
    lag: float
    accuracy: float
    server_ms: float


class Client:
    """A kept connection."""

    def __init__(self, port: int, body: bytes) -> None:
        self.port, self.body = port, body
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self.used = 0.0
        self.path = f"/v1/predict?budget={quote(json.dumps({'latency_ms': DEADLINE_MS, 'percentile': 99}))}"

    def send(self, lag: float = 0.0) -> Sent:
        begun = time.perf_counter()
        if begun - self.used > IDLE_SECONDS:
            self.connection.close()
        try:
            self.connection.request("POST", self.path, self.body, {"Content-Type": "application/x-npy"})
            response = self.connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            return Sent(0, time.perf_counter() - begun, lag, nan, nan)
        self.used = time.perf_counter()
        seconds = self.used - begun
        chosen = json.loads(response.headers.get("Sortednet-Selection", "{}"))
        times = [float(response.headers.get(f"Sortednet-{name}-Ms", "nan")) for name in ("Queued", "Latency")]
        return Sent(response.status, seconds, lag, chosen.get("accuracy", nan), sum(times))


def closed_loop(port: int, body: bytes, clients: int, seconds: float) -> list[Sent]:
    """Each client asks again as soon as it is answered."""
    found: list[Sent] = []
    end = time.perf_counter() + seconds

    def ask() -> None:
        client = Client(port, body)
        while time.perf_counter() < end:
            found.append(client.send())

    _together([ask] * clients)
    return found


def open_loop(port: int, body: bytes, rate: float, seconds: float) -> list[Sent]:
    """Requests come at their time, whether or not the ones before were answered, as long as a connection is free."""
    order, found = random.Random(0), list[Sent]()
    due: queue.Queue[float | None] = queue.Queue()

    def ask() -> None:
        client = Client(port, body)
        while (planned := due.get()) is not None:
            lag = time.perf_counter() - planned
            found.append(client.send(lag) if lag < GIVEN_UP_SECONDS else Sent(0, lag, lag, nan, nan))

    def plan() -> None:
        at = time.perf_counter()
        end = at + seconds
        while at < end:
            at += order.expovariate(rate)
            time.sleep(max(0.0, at - time.perf_counter()))
            due.put(at)
        for _ in range(CLIENTS):
            due.put(None)

    _together([plan, *[ask] * CLIENTS])
    return found


def measure(bundle: Path = BUNDLE, seconds: float = 20.0) -> dict[str, float]:
    """Copies the bundle, profiles it where it has no profile, and measures. Raises FileNotFoundError where there is none."""
    if not (bundle / "manifest.json").exists():
        raise FileNotFoundError(f"{bundle}: no bundle; `python -m benchmarks.adapt` makes it, or name another")
    with TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(bundle, Path(folder) / "bundle"))
        shutil.rmtree(copy / "profiles", ignore_errors=True)
        command = [sys.executable, "-m", "sortednet", "profile", str(copy), "--device", DEVICE, "--threads", "1"]
        subprocess.run([*command, "--measure", "12"], check=True, capture_output=True)
        inputs = next(iter(np.load(copy / "selftest.npz").items()))[1]
        batch = np.resize(inputs, (EXAMPLES, *inputs.shape[1:]))
        buffer = io.BytesIO()
        np.save(buffer, batch)
        body = buffer.getvalue()
        with running("sortednet", "serve", copy) as service:
            with urllib.request.urlopen(f"{service.url}/v1/bundles/bundle/runtime") as response:
                cores = json.load(response)["slots"]
            _generated("closed", service.port, body, cores, 3.0)  # opens sessions
            alone = _generated("closed", service.port, body, cores, seconds / 2)
            capacity = _in_time(alone) / (seconds / 2)
            overload = _generated("open", service.port, body, 2 * capacity, seconds)
        with running("benchmarks.service.plain", copy, DEVICE, str(EXAMPLES), str(DEADLINE_MS)) as service:
            _generated("closed", service.port, body, cores, 3.0)
            plain = _generated("open", service.port, body, 2 * capacity, seconds)
    answered = [sent for sent in overload if sent.status == 200]
    refusals = np.array([sent.seconds * 1e3 for sent in overload if sent.status == 503] or [np.nan])
    return {
        "predict_capacity_rps": capacity,
        "predict_overload_rps": len(overload) / seconds,
        "predict_in_time_share": _in_time(overload) / len(answered),
        "predict_in_time_share_server": float(np.mean([sent.server_ms <= DEADLINE_MS for sent in answered])),
        "predict_answered_share": len(answered) / len(overload),
        "predict_goodput_ratio": _in_time(overload) / seconds / capacity,
        "predict_refusal_ms_p50": float(np.median(refusals)),
        "predict_refusal_ms_p99": float(np.percentile(refusals, 99)),
        "predict_refusal_over_deadline_p50": float(np.median(refusals)) / DEADLINE_MS,
        "predict_refused_before_deadline_share": float(np.mean(refusals <= DEADLINE_MS)),
        "predict_accuracy_alone": float(np.mean([sent.accuracy for sent in alone if sent.status == 200])),
        "predict_accuracy_overload": float(np.mean([sent.accuracy for sent in answered])),
        "predict_errors": float(sum(sent.status not in (200, 503) for sent in [*alone, *overload])),
        "predict_generator_lag_ms_p99": float(np.percentile([sent.lag * 1e3 for sent in overload], 99)),
        "plain_in_time_share": _in_time(plain) / len(plain),
        "plain_goodput_ratio": _in_time(plain) / seconds / capacity,
    }


def _in_time(sent: Sequence[Sent]) -> int:
    return sum(one.status == 200 and one.seconds * 1e3 <= DEADLINE_MS for one in sent)


def _together(parts: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=part) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _generated(kind: str, port: int, body: bytes, how: float, seconds: float) -> list[Sent]:
    """In a process of its own, whose work does not hold up the one that measures."""
    command = [sys.executable, "-m", "benchmarks.service.predict", "--generate", kind, str(port), str(how), str(seconds)]
    result = subprocess.run(command, input=body, capture_output=True, check=True)
    return [Sent(*row) for row in json.loads(result.stdout)]


def main() -> None:
    if sys.argv[1:2] == ["--generate"]:
        kind, port, how, seconds = sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
        body = sys.stdin.buffer.read()
        sent = open_loop(port, body, how, seconds) if kind == "open" else closed_loop(port, body, int(how), seconds)
        print(json.dumps(sent))
        return
    for name, figure in measure(Path(sys.argv[1]) if sys.argv[1:] else BUNDLE).items():
        print(f"{name:45} {figure:.4g}", flush=True)


if __name__ == "__main__":
    main()
