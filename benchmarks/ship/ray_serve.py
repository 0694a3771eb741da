"""Ray Serve with `deploy/ray_serve.py`: two replicas under load, one killed again and again, deadlines kept by what remains.

`python -m benchmarks.ship ray` measures this part alone; Ray is installed in an environment of its own, `build/ship/ray`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.environments import environment
from benchmarks.ship.bundles import measured
from benchmarks.ship.ray_load import AFTER_S, CLIENTS, DEADLINE_MS, KILL_EVERY_S

WORK, PACKAGE = Path("build/ship"), "ray[serve]==2.60.0"
SECONDS = 40.0
NOTES = {
    "ray_failed": "requests through Ray Serve that got neither 200 nor 503 (refused, because it would be late), while one of "
    f"two replicas was killed (SIGKILL) every {KILL_EVERY_S:g} s; {CLIENTS} clients that do not ask again",
    "ray_refused": "of the requests, the share that was refused",
    "ray_late": f"of the answers, the share that came after the deadline of {DEADLINE_MS:g} ms by the service's own figures, "
    "which count from when Ray's door had the request, a replica that died included",
    "ray_late_by_client": f"the same by the client's clock, {AFTER_S * 1e3:g} ms later",
    "ray_kills": "how often a replica was killed",
    "ray_requests": "requests in all",
    "ray_slowest_s": "the slowest answer, by the client's clock",
}


def measure() -> dict[str, float]:
    """Raises SystemExit with a hint where Ray cannot be installed."""
    try:
        python = environment(WORK / "ray", [PACKAGE])
    except subprocess.CalledProcessError:
        raise SystemExit(f"{PACKAGE} cannot be installed into {WORK / 'ray'}") from None
    with TemporaryDirectory(prefix="sortednet-ray-") as folder:
        path = Path(folder) / "resnet"
        measured(path)
        command = [str(python), "-m", "benchmarks.ship.ray_load", str(path), str(SECONDS)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks.ship.ray_load: {done.stderr[-3000:]}")
    found = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))  # Ray prints too
    for error in found["errors"]:
        print(error, file=sys.stderr)
    return {
        "ray_failed": found["failed"],
        "ray_refused": found["refused"] / found["asked"],
        "ray_late": found["late"] / max(1, found["answered"]),
        "ray_late_by_client": found["late_by_client"] / max(1, found["answered"]),
        "ray_kills": found["kills"],
        "ray_requests": found["asked"],
        "ray_slowest_s": found["slowest_s"],
    }
