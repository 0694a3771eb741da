"""Pieces of a measurement that takes hours: those that are there are not computed again after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


class Pieces:
    """A file with a line of JSON for each piece. `about`: what they depend on; pieces of anything else are not taken."""

    def __init__(self, path: Path, about: str) -> None:
        self.path, self.about = path, about
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        known = [one for line in lines if (one := _piece(line)) is not None]
        self._known = {one["name"]: one["value"] for one in known if one["about"] == about}

    def of(self, name: str, compute: Callable[[], Any]) -> Any:
        """The piece of that name, as JSON has it."""
        if name not in self._known:
            value = json.loads(json.dumps(compute()))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"about": self.about, "name": name, "value": value}) + "\n")
            self._known[name] = value
        return self._known[name]


def _piece(line: str) -> dict[str, Any] | None:
    """None for a line that a kill has cut off."""
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return found


def hash_of(*parts: str | ModuleType) -> str:
    """Of these texts, and of the code of these packages."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode() + b"\0")
        else:
            for place in part.__path__:
                for file in sorted(Path(place).glob("*.py")):
                    digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()
