"""What the base install takes, and how long a command and an import do, in a fresh environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.device.bundles import made
from benchmarks.device.sessions import Figures
from device_profiles import write_profile
from selector import profile_bundle

ROOT = Path(__file__).parents[2]


def measure(rounds: int = 11) -> Figures:
    with installed() as python:
        folder = python.parents[2]
        size = megabytes(python)
        bundle = made("resnet")
        names = [n for n in bundle.submodels if not n.endswith("-int8")]
        write_profile(
            profile_bundle(bundle, device="install", submodels=names, repeats=3, show_progress=False),
            folder / "install.json",
        )
        trained = made("trained")
        select = [python.with_name("sortednet"), "select", trained.path.resolve(), "--device", folder / "install.json"]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

        def seconds(command: list[object]) -> float:
            taken = []
            for _ in range(rounds):
                begun = time.perf_counter()
                subprocess.run([str(c) for c in command], check=True, cwd=folder, env=environment, capture_output=True)
                taken.append(time.perf_counter() - begun)
            return float(np.median(taken[1:]))  # the first fills the file system's cache

        nothing = seconds([python, "-c", "pass"])
        imported = seconds([python, "-c", "import selector"])
        selected = seconds([*select, "--latency-ms", "0.2"])
    return {"install_mb": size, "import_s": imported - nothing, "cli_select_s": selected}


@contextmanager
def installed(extra: str = "") -> Iterator[Path]:
    """Within: the Python of a fresh environment, env/bin/python, with the base install and what an extra adds to it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        python = folder / "env" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True)
        for file in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / file).is_file():
                (folder / "source" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, folder / "source" / file)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, f"{folder / 'source'}[{extra}]" if extra else str(folder / "source")], check=True, cwd=folder)
        yield python


def megabytes(python: Path) -> float:
    """Of its environment's packages."""
    packages = next((python.parents[1] / "lib").glob("python*")) / "site-packages"
    return sum(path.stat().st_size for path in packages.rglob("*") if path.is_file() and not path.is_symlink()) / 2**20
