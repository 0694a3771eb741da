"""The weights of a part of a signed bundle: which ranges are on this device already, fetching those that are not, and putting a
weights file together, each range where it is in the whole file and holes between."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from exporter.bundle.manifest import FileEntry
from selector.fetch.transfer import Client, sha256_of
from selector.ship.parts import Part, checked_ranges
from selector.ship.signed import Range

_NEAR = 64
"""Bytes of padding between two ranges that are asked for together."""
_CHUNK = 2**20


@dataclass(frozen=True)
class Run:
    """Ranges of a weights file that lie side by side, which are asked for at once."""

    path: str  # of the weights file in the bundle
    sha256: str  # of the whole file
    ranges: tuple[Range, ...]

    @property
    def begin(self) -> int:
        return self.ranges[0].begin

    @property
    def bytes(self) -> int:
        return self.ranges[-1].end - self.begin

    @property
    def name(self) -> str:
        """Under which it is kept when it has arrived."""
        return hashlib.sha256(f"{self.sha256} {self.begin} {self.ranges[-1].end}".encode()).hexdigest()

    def good(self, file: Path) -> bool:
        """Whether these are its bytes."""
        moved = [Range(begin=one.begin - self.begin, end=one.end - self.begin, sha256=one.sha256) for one in self.ranges]
        with file.open("rb") as opened:
            return all(good for _, good in checked_ranges(opened, moved))


@dataclass(frozen=True)
class Plan:
    """`here`: by weights file and range, the file on this device that has its bytes, at the same place.
    `runs`: what is to come."""

    here: dict[tuple[str, Range], Path]
    runs: tuple[Run, ...]

    @property
    def bytes(self) -> int:
        return sum(run.bytes for run in self.runs)


def planned(part: Part, folders: Sequence[Path]) -> Plan:
    """What of the part's weights the bundles in these folders have; the first that has a range gives it."""
    here: dict[tuple[str, Range], Path] = {}
    runs: list[Run] = []
    for path, ranges in part.ranges.items():
        missing = list(ranges)
        for file in (folder / path for folder in folders):
            if missing and file.is_file() and not file.is_symlink():
                with file.open("rb") as opened:
                    found = [one for one, good in checked_ranges(opened, missing) if good]
                here |= {(path, one): file for one in found}
                missing = [one for one in missing if (path, one) not in here]
        runs += _side_by_side(path, part.signed.content.files[path], missing)
    return Plan(here, tuple(runs))


def fetch_runs(client: Client, base: str, plan: Plan, store: Path, advance: Callable[[int], None]) -> int:
    """Into the store, what is not there yet; returns how many bytes were asked for. Raises PullError as `Client.file`."""
    asked = 0
    for run in plan.runs:
        target = store / run.name
        if target.is_file():
            if run.good(target):
                advance(run.bytes)
                continue
            target.unlink()
        client.file(f"{base}{quote(run.path)}", run.sha256, run.bytes, target, advance, begin=run.begin, good=run.good)
        asked += run.bytes
    return asked


def assemble(part: Part, plan: Plan, store: Path, folder: Path) -> dict[str, str]:
    """Writes the part's weights files into the folder of the bundle, and returns the SHA-256 of each."""
    runs = {(run.path, one): (store / run.name, run.begin) for run in plan.runs for one in run.ranges}
    for path, ranges in part.ranges.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.truncate(part.signed.content.files[path].bytes)
            for one in ranges:
                source, begin = runs[path, one] if (path, one) in runs else (plan.here[path, one], 0)
                with source.open("rb") as opened:
                    opened.seek(one.begin - begin)
                    file.seek(one.begin)
                    left = one.end - one.begin
                    while left and (chunk := opened.read(min(_CHUNK, left))):
                        file.write(chunk)
                        left -= len(chunk)
    return {path: sha256_of(folder / path) for path in part.ranges}


def _side_by_side(path: str, entry: FileEntry, ranges: Iterable[Range]) -> list[Run]:
    groups: list[list[Range]] = []
    for one in ranges:
        if groups and one.begin - groups[-1][-1].end < _NEAR:
            groups[-1].append(one)
        else:
            groups.append([one])
    return [Run(path, entry.sha256, tuple(group)) for group in groups]
