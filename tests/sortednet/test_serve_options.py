"""What is said to `serve` of predictions reaches the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selector import service
from tests.helpers.commands import call


class _SeenError(Exception):
    """Enough was seen."""


def test_limits_of_predictions(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def create_app(*_: Any, **options: Any) -> None:
        seen.update(options)
        raise _SeenError

    monkeypatch.setattr(service, "create_app", create_app)
    for given, expected in ((["--waiting", "3", "--max-batch", "5"], (3, 5)), ([], (None, 64))):
        with pytest.raises(_SeenError):
            call("serve", bundle_path, "--port", "0", *given)
        assert (seen["predict"].waiting, seen["predict"].examples) == expected
