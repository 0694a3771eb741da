"""The README is true: its Python and its commands run, as they stand, in an empty folder."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)( \w+)?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(script: str, folder: Path, *interpreter: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([*interpreter, script], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_runs_in_order(tmp_path: Path) -> None:
    ran = 0
    for language, kind, text in BLOCKS:
        if language == "python" and text.startswith("# file: "):
            (tmp_path / text.splitlines()[0].removeprefix("# file: ")).write_text(text)
        elif language == "python":
            assert "accurate" in run(text, tmp_path, sys.executable, "-c")
            ran += 1
        elif language == "sh" and not kind:
            run(text, tmp_path, "bash", "-euc")
            ran += 1
        elif kind.strip() == "rest":
            served(text, tmp_path)
            ran += 1
    assert ran >= 4
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert (tmp_path / "pulled" / "manifest.json").exists()


def served(text: str, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sortednet", "serve", "bundle", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_until_ready(port)
            run(text.replace("localhost:8080", f"127.0.0.1:{port}").replace("curl -s ", "curl -sf "), folder, "bash", "-euc")
        finally:
            server.terminate()


def _wait_until_ready(port: int) -> None:
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not become ready")
