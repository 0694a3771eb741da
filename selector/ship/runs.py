"""The runs of a trial, by all processes that run the bundle: a file to which each appends a line, and which each reads on."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from device_profiles.schema import NotNegative
from selector.ship.state import folder_of

RUNS_FILE = "trial.jsonl"

log = logging.getLogger("sortednet.canary")


class Run(BaseModel):
    """A run while a version is on trial."""

    model_config = ConfigDict(frozen=True)

    new: bool  # on the new version
    submodel: str = ""
    latency_ms: NotNegative = 0.0  # per example of its batch
    missed: bool | None = None  # its deadline; None where it had none
    first: bool = False  # of its process on that version: compared with other first ones
    compared: bool = True


class Runs:
    """Those of the bundle at `target`. Where the file cannot be written, this process counts its own."""

    def __init__(self, target: Path) -> None:
        self.count = 0
        """Of all that were read."""
        self._path, self._place = folder_of(target) / RUNS_FILE, 0

    def add(self, run: Run) -> list[Run]:
        """Keeps it, and returns what came since the last look, this one included."""
        line = run.model_dump_json(exclude_defaults=True) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)  # one write of a short line: others' come before or after it
        except OSError as error:
            log.warning("%s: cannot be written: %s", self._path, error)
            return [*self.look(), *self._counted([run])]
        return self.look()

    def look(self) -> list[Run]:
        """What came since the last look. A line that is cut off is left out."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                content = file.read()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._place += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                found.append(Run.model_validate_json(line))
            except ValidationError:
                continue
        return self._counted(found)

    def _counted(self, found: list[Run]) -> list[Run]:
        self.count += len(found)
        return found


def forget_runs(target: Path) -> None:
    """Another trial begins. Raises OSError."""
    (folder_of(target) / RUNS_FILE).unlink(missing_ok=True)
