"""The house: arrows between its rooms run one way, files are short, no folder of the selector is crowded."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
LONGEST = 350
"""Lines of a file."""
FULLEST = 14
"""Files of a folder of `selector/`."""

TOO_LONG = {
    "tests/exporter/test_export.py",
    "tests/selector/adapt/test_plan.py",
    "tests/selector/fetch/test_pull.py",
    "tests/selector/run/test_cascade.py",
    "tests/selector/run/test_runtime.py",
    "tests/selector/service/test_files.py",
    "tests/selector/service/test_page.py",
    "tests/sortednet/test_cli.py",
    "tests/trainer/test_nested.py",
}
"""Files that are still to be split. The list gets shorter, never longer."""


def tracked(*patterns: str) -> list[str]:
    """Those that git knows or would add, as they lie here."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns], cwd=ROOT, check=True, capture_output=True
    )
    return sorted(name for name in listed.stdout.decode().splitlines() if (ROOT / name).is_file())


def test_arrows_run_one_way(capsys: pytest.CaptureFixture[str]) -> None:
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert code == 0, capsys.readouterr().out


def test_files_are_short() -> None:
    long = {
        name
        for name in tracked("*.py", "*.js", "*.css", "*.html", "*.sh")
        if len((ROOT / name).read_text(encoding="utf-8").splitlines()) > LONGEST
    }
    assert long == TOO_LONG


def test_no_folder_of_the_selector_is_crowded() -> None:
    found = Counter(str(Path(name).parent) for name in tracked("selector/*"))
    assert len(found) > 10
    assert {folder: count for folder, count in found.items() if count > FULLEST} == {}
