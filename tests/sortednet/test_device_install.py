"""A device's own environment: the base install, without torch, onnx, flask or anything else of the extras."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DEVICE
from tests.helpers.server import serving

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of a clean environment with the base install, built from a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("device")
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    scripts = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    install = [scripts / "python", "-m", "pip", "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, folder / "source"], check=True, cwd=folder)
    return scripts


@pytest.fixture
def copied(bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_path, tmp_path / "digits"))


def call(device: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `sortednet` there: outside of the checkout, so that nothing but what was installed can be imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [device / "sortednet", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("module", ["torch", "onnx", "flask", "plotly", "sklearn"])
def test_the_extras_are_not_there(device: Path, tmp_path: Path, module: str) -> None:
    run = subprocess.run([device / "python", "-Ic", f"import {module}"], cwd=tmp_path, capture_output=True, text=True)
    assert f"ModuleNotFoundError: No module named '{module}'" in run.stderr


def test_the_whole_path_of_a_device_works(device: Path, copied: Path, tmp_path: Path) -> None:
    shutil.rmtree(copied / "profiles")
    np.save(tmp_path / "images.npy", np.zeros((2, 1, 8, 8), np.float32))
    steps = (
        ["verify", "digits"],
        ["profile", "digits", "--device", "mine", "--repeats", "3"],
        ["select", "digits", "--latency-ms", "10000"],
        ["run", "digits", "--input", "images.npy", "--latency-ms", "10000", "--output", "out.npz"],
        ["inspect", "digits"],
    )
    for arguments in steps:
        ran = call(device, tmp_path, *arguments)
        assert ran.returncode == 0, ran.stderr
    assert json.loads((copied / "profiles" / "mine.json").read_text())["device"]["name"] == "mine"
    with np.load(tmp_path / "out.npz") as outputs:
        assert outputs["logits"].shape == (2, 10)


def test_a_device_pulls_what_it_needs(device: Path, bundle_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", bundle_path) as server:
        ran = call(device, tmp_path, "pull", server.url, "--out", "pulled", "--submodels", "w0.50-d1", "--device", DEVICE)
        assert ran.returncode == 0, ran.stderr
    for arguments in (["verify", "pulled"], ["select", "pulled", "--device", DEVICE]):
        ran = call(device, tmp_path, *arguments)
        assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["train", "--family", "resnet", "--data", "digits", "--out", "run"], "train"),
        (["train", "--family", "resnet", "--data", "digits", "--out", "run", "--grid", "width=0.5,1", "--set", "a=1"], "train"),
        (["export", "run", "--out", "exported"], "train"),
        (["serve", "digits"], "serve"),
        (["token", "list"], "serve"),
        (["report", "digits", "--out", "report.html"], "serve"),
    ],
)
def test_a_command_whose_extra_is_missing_says_which(
    device: Path, copied: Path, tmp_path: Path, arguments: list[str], extra: str
) -> None:
    ran = call(device, tmp_path, *arguments)
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert re.match(rf"error: {arguments[0]}( list)? needs ", line)
    assert f"pip install '.[{extra}]'" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == [copied.name]  # and leaves nothing behind
