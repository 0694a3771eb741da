"""Two engines of `deploy/ray_serve.py` under load, of which one is killed (SIGKILL) again and again.

    python -m benchmarks.ship.ray_load BUNDLE SECONDS > FIGURES

In an environment that has `ray[serve]` and this project. Clients ask `POST /v1/predict` with a deadline over connections that
are kept, and do not ask again.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.askers import Askers

DEPLOYED = Path(__file__).parents[2] / "deploy" / "ray_serve.py"
CLIENTS = 4
DEADLINE_MS = 2000.0
AFTER_S = 0.25
"""By the client's clock, beyond the deadline: the answer's way back, and a machine that is busy with the load itself."""
KILL_EVERY_S = 6.0


class Load(Askers):
    """What clients saw, until `stop`."""

    def __init__(self, port: int, body: bytes) -> None:
        self.answered: list[tuple[float, float]] = []  # of each: seconds by the client, and what the service says of it
        self.refused = self.failed = 0
        self.errors: list[str] = []
        self._port, self._body = port, body
        self._lock = threading.Lock()
        super().__init__([threading.Thread(target=self._ask) for _ in range(CLIENTS)])

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                connection.request("POST", "/v1/predict", self._body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                status, content = response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                status, content = 0, repr(error).encode()
                connection.close()
            took = time.monotonic() - begun
            with self._lock:
                if status == 200:
                    said = json.loads(content)
                    self.answered.append((took, (said["queued_ms"] + said["latency_ms"]) / 1e3))
                elif status == 503:
                    self.refused += 1
                else:
                    self.failed += 1
                    self.errors.append(f"{status} {content[:300]!r}")


def engines() -> list[psutil.Process]:
    """The replicas' processes, of those that this one has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "Engine" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def deployed(bundle: Path) -> Iterator[int]:
    """The port under which the application answers, once both engines are there."""
    os.environ |= {"SORTEDNET_BUNDLE": str(bundle), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    import ray
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(_application(), route_prefix="/")
        yield port
    finally:
        serve.shutdown()
        ray.shutdown()


def _application() -> Any:
    spec = importlib.util.spec_from_file_location("ray_serve", DEPLOYED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)  # the engines' processes do not know the folder
    return module.application


def measure(bundle: Path, seconds: float) -> dict[str, Any]:
    """Counts, and the errors in words."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    (spec,) = manifest["inputs"]
    shape = [size if isinstance(size, int) else 1 for size in spec["shape"]]
    inputs = np.random.default_rng(0).random(shape, dtype=np.float32)
    body = json.dumps({"budget": {"latency_ms": DEADLINE_MS}, "inputs": {spec["name"]: inputs.tolist()}}).encode()
    with deployed(bundle) as port:
        load, kills, begun = Load(port, body), 0, time.monotonic()
        load.start()
        try:
            while time.monotonic() - begun < seconds:
                time.sleep(KILL_EVERY_S)
                if len(found := engines()) == 2:  # the one that was killed is back
                    os.kill(found[0].pid, signal.SIGKILL)
                    kills += 1
            time.sleep(KILL_EVERY_S)
        finally:
            load.stop()
    limit = DEADLINE_MS / 1e3
    return {
        "kills": kills,
        "asked": len(load.answered) + load.refused + load.failed,
        "answered": len(load.answered),
        "refused": load.refused,
        "failed": load.failed,
        "late": sum(said > limit for _, said in load.answered),
        "late_by_client": sum(took > limit + AFTER_S for took, _ in load.answered),
        "slowest_s": max((took for took, _ in load.answered), default=0.0),
        "longest_wait_s": max((said for _, said in load.answered), default=0.0),
        "errors": load.errors[:10],
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]).absolute(), float(sys.argv[2]))))
