"""Disks that take nothing: the tests run as root, too, whom no permission stops."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def read_only(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Whatever this process opens to write under the folder is refused as on a disk that is mounted read-only."""
    opened = os.open

    def refusing(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and Path(os.fsdecode(path)).is_relative_to(folder.resolve()):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refusing)
