"""The command line where something usual is missing: a home, threads, a stdout that takes anything, an alphabet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from exporter.bundle import Bundle
from exporter.bundle.session import SessionError, SessionOptions, open_session
from tests.conftest import DEVICE
from tests.helpers.commands import refused

NO_HOME = "import os, pwd; os.environ.pop('HOME', None); pwd.getpwuid = lambda uid: {}[uid]; "
"""As for a user without an entry in passwd, whom containers often run with."""
NO_THREADS = """
import threading
def start(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
"""


def process(*arguments: str | Path, code: str = "", stdout: int | None = subprocess.PIPE, **variables: str):
    """The command line in a process of its own, after `code`."""
    environment = {name: value for name, value in os.environ.items() if name not in ("SORTEDNET_CACHE", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", f"{code}\nimport sortednet; sortednet.main()", *map(os.fsencode, arguments)]
    environment |= variables
    return subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, timeout=120)


@pytest.mark.parametrize("code", [NO_HOME, NO_THREADS], ids=["no home", "no threads"])
def test_a_run_needs_neither_a_home_nor_threads(bundle_path: Path, images: Path, code: str) -> None:
    ran = process("run", bundle_path, "--device", DEVICE, "--input", images, "--json", code=code)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["submodel"] in Bundle(bundle_path).submodels


def test_a_command_that_needs_threads_says_that_there_are_no_more(bundle_path: Path) -> None:
    ran = process("verify", bundle_path, code=NO_THREADS)
    assert (ran.returncode, ran.stderr.decode().strip()) == (1, "error: can't start new thread")


def test_a_session_that_cannot_have_its_threads_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before ONNX Runtime is asked, which would wait for ever."""

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    graph = bundle.graph_path("w0.50-d1")
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(SessionError, match="threads = 4: the system does not let this process start so many"):
        open_session(graph, SessionOptions(threads=4))
    open_session(graph, SessionOptions(threads=1))


def test_more_threads_than_anybody_has_are_refused(bundle_path: Path) -> None:
    line = refused("profile", bundle_path, "--threads", "100000")
    assert "threads = 100000: allowed are whole numbers from 0 to " in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"], ["select", "--device", DEVICE], ["--help"]])
def test_a_stdout_that_is_full_is_told_in_one_line(bundle_path: Path, arguments: list[str]) -> None:
    given = arguments if arguments == ["--help"] else [arguments[0], bundle_path, *arguments[1:]]
    with open("/dev/full", "w") as full:
        ran = process(*given, stdout=full.fileno())
    assert ran.returncode == 1
    assert ran.stderr.decode() == "error: stdout: cannot be written: No space left on device\n"


def test_a_stderr_that_is_full_stops_nothing(bundle_path: Path) -> None:
    command = [sys.executable, "-m", "sortednet", "verify", bundle_path]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=full.fileno()).returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_label_is_kept_whatever_the_locale_knows(copied: Path, encoding: str) -> None:
    ascii_alone = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    one = ["--submodels", "w0.50-d1", "--repeats", "1", "--threads", "1", "--device", "mine", "--json"]
    ran = process("profile", copied, "--label", "Gerät", *one, **(ascii_alone if encoding == "ascii" else {"PYTHONUTF8": "1"}))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["device"]["label"] == Bundle(copied).profile("mine").device.label == "Gerät"


def test_names_are_written_as_they_can_be(copied: Path, images: Path, tmp_path: Path) -> None:
    """A class that the locale cannot write, and a folder whose name is no text."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/b\xff")
    try:
        copied.rename(folder)
    except OSError:
        pytest.skip("this file system has texts for names alone")
    np.save(tmp_path / "one.npy", np.load(images)[:1])
    for arguments in (
        ["inspect", folder],
        ["profile", folder, "--repeats", "1", "--threads", "1", "--submodels", "w0.50-d1", "--device", "mine"],
        ["run", folder, "--device", DEVICE, "--input", tmp_path / "one.npy"],
        ["report", folder, "--out", tmp_path / "page.html"],
    ):
        ran = process(*arguments, PYTHONIOENCODING="ascii")
        assert ran.returncode == 0, (arguments, ran.stderr)
