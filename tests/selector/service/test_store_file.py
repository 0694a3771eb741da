"""The file that a store in SQLite is: its locks, and where it lies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from selector.service.fleet import database
from selector.service.fleet.database import StoreError
from selector.service.fleet.store import Store


def test_a_store_that_is_opened_again_takes_no_lock_from_the_one_before(tmp_path: Path) -> None:
    """POSIX drops a process's locks on a file with any handle that it closes: another process could then take the write-ahead
    log away from under the first, and did."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    taken = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode = DELETE'))"
    with Store(url) as first:
        first.tokens.create("fleet")
        Store(url).close()
        other = subprocess.run([sys.executable, "-c", taken, tmp_path / "store.db"], capture_output=True, text=True, timeout=60)
        assert "database is locked" in other.stderr, other.stdout
        assert [token.name for token in first.tokens.all()] == ["fleet"]


def test_a_user_without_a_home_is_told_how_to_name_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: no HOME, and a number that no entry belongs to."""
    monkeypatch.setattr(database, "user_data_path", lambda *_, **__: Path("~/.local/share/sortednet"))
    with pytest.raises(StoreError, match="--store sqlite:///FILE"):
        Store()
