"""docs/extending.md is true: its files and its commands run, as they stand, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_file_is_complete_and_the_commands_run(tmp_path: Path) -> None:
    files = {text.splitlines()[0].removeprefix("# file: "): text for language, text in BLOCKS if language == "python"}
    assert len(files) == 5
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (commands,) = (text for language, text in BLOCKS if language == "sh")
    run(["bash", "-euc", commands], tmp_path)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["task"]["metric"] == "closeness"
    assert manifest["task"]["config"] == {"sharpness": 2}
    assert all(0 < entry["quality"] <= 1 for entry in manifest["submodels"])
    assert "first 10 %: 116 examples" in run([sys.executable, "shuffled.py"], tmp_path)
    assert "w0.50" in run([sys.executable, "ladder.py"], tmp_path)
