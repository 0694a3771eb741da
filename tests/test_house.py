"""The house: arrows between its rooms run one way, files are short, no folder of the selector is crowded."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 350
"""Lines of a file."""
FULLEST = 14
"""Files of a folder of `selector/`."""


def tracked(*patterns: str) -> list[str]:
    """Those that git knows or would add, as they lie here."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns], cwd=ROOT, check=True, capture_output=True
    )
    return sorted(name for name in listed.stdout.decode().splitlines() if (ROOT / name).is_file())


def test_arrows_run_one_way() -> None:
    """By the contracts in pyproject.toml; in a process of its own: import-linter switches the loggers of this one off."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_files_are_short() -> None:
    long = [
        name
        for name in tracked("*.py", "*.js", "*.css", "*.html", "*.sh")
        if len((ROOT / name).read_text(encoding="utf-8").splitlines()) > LONGEST
    ]
    assert long == []


def test_no_folder_of_the_selector_is_crowded() -> None:
    found = Counter(str(Path(name).parent) for name in tracked("selector/*"))
    assert len(found) > 10
    assert {folder: count for folder, count in found.items() if count > FULLEST} == {}


def test_what_tests_share_lies_in_their_helpers() -> None:
    """A test that another file imports from would be collected, or broken, with it."""
    imports = re.compile(r"^\s*(?:from|import) tests\.(?:\w+\.)*test_\w+", re.MULTILINE)
    found = [name for name in tracked("tests/*.py") if imports.search((ROOT / name).read_text(encoding="utf-8"))]
    assert found == []
