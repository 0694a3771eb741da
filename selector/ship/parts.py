"""A part of a signed bundle: some of its sub-models, their graphs as they are, and of the weights files the ranges that these
read, each where it is in the whole file, with holes between. What the part's own manifest must be follows from what was signed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from device_profiles.seal import sealed as with_seal
from exporter.bundle import CASCADES_FILE, MANIFEST_FILE, Bundle, BundleError
from exporter.bundle.manifest import FileEntry, Manifest, checked, sealed
from selector.ship.signed import Range, SignatureError, Signed, Trust, files_of, verified

_CHUNK = 2**20


@dataclass(frozen=True)
class Part:
    """Of a signed bundle, the sub-models with these ids. `files`: those that come as they are. `ranges`: by weights file, those
    that the graphs need."""

    signed: Signed
    submodels: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return len(self.submodels) == len(self.signed.content.submodels)

    @property
    def graphs(self) -> list[str]:
        wanted = set(self.submodels)
        return [path for entry in self.signed.content.submodels if entry.id in wanted for path in entry.graphs]

    @property
    def weights(self) -> list[str]:
        """The weights files that the part has: of a bundle that generates no text always that of the fp32 graphs."""
        content, wanted = self.signed.content, set(self.submodels)
        if self.whole:
            return content.weights_files
        used = [content.weights_of(entry.precision) for entry in content.submodels if entry.id in wanted]
        return list(dict.fromkeys(used if content.decoder is not None else [content.weights, *used]))

    @property
    def files(self) -> dict[str, FileEntry]:
        content = self.signed.content
        graphs = {path for entry in content.submodels for path in entry.graphs} - set(self.graphs)
        left = {*graphs, *content.weights_files}
        return {path: entry for path, entry in content.files.items() if path not in left}

    @property
    def ranges(self) -> dict[str, list[Range]]:
        found: dict[str, list[Range]] = {}
        for name in self.weights:
            places = {place for graph in self.graphs for place in self.signed.needs[graph].get(name, ())}
            found[name] = [self.signed.ranges[name][place] for place in sorted(places)]
        return found

    def manifest_text(self, weights: Mapping[str, str]) -> str:
        """Of the part's `manifest.json`, given the SHA-256 of each weights file as it is here."""
        return json.dumps(self.document(weights), indent=1) + "\n"

    def document(self, weights: Mapping[str, str]) -> dict[str, Any]:
        """The same as JSON values; that which was signed, where nothing is left out."""
        content, document = self.signed.content, self.signed.manifest
        if self.whole and all(content.files[name].sha256 == weights[name] for name in self.weights):
            return document
        wanted = set(self.submodels)
        kept = {path: document["files"][path] for path in self.files}
        kept |= {name: {**document["files"][name], "sha256": weights[name]} for name in self.weights}
        part = {**document, "submodels": [one for one in document["submodels"] if one["id"] in wanted]}
        part["files"] = {path: kept[path] for path in document["files"] if path in kept}
        if content.int8_weights is not None and content.int8_weights not in self.weights:
            part["int8_weights"] = None
        if content.decoder is not None:
            part["weights"] = self.weights[0]
            if "precision_weights" in part:
                named = {kind: path for kind, path in content.precision_weights.items() if path in self.weights}
                part["precision_weights"] = named
            graph = {name: one for name, one in document["decoder"]["graph"].items() if name in wanted}
            part["decoder"] = {**document["decoder"], "graph": graph}
        return sealed(part)

    def manifest(self) -> Manifest:
        """The part's, as if its weights files were whole: for everything but their hashes."""
        return checked(self.document({name: self.signed.content.files[name].sha256 for name in self.weights}))

    @property
    def cascades(self) -> dict[str, Any] | None:
        """The signed cascades whose sub-models are here, as a document; None where there is none."""
        document = self.signed.cascades
        if document is None:
            return None
        listed = document.get("cascades")
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise SignatureError(f"{CASCADES_FILE}: what was signed is no list of cascades")
        kept = [one for one in listed if {one.get("first"), one.get("then")} <= set(self.submodels)]
        return with_seal({"cascades": kept}) if kept else None


def part_of(signed: Signed, submodels: Collection[str] | None) -> Part:
    """With these sub-models, or all. Raises BundleError for one that is not in the bundle, and for none."""
    known = [entry.id for entry in signed.content.submodels]
    wanted = set(known if submodels is None else submodels)
    if unknown := wanted - set(known):
        raise BundleError(f"sub-model {min(unknown)!r} is not in this bundle; it holds {', '.join(known[:8])}")
    if not wanted:
        raise BundleError(f"sub-models: none; allowed are one or more of the {len(known)} in this bundle")
    return Part(signed, tuple(name for name in known if name in wanted))


def open_signed(path: str | Path, trust: Trust, *, name: str | None = None) -> Bundle:
    """The bundle, all of which is as it was signed, or a part of it that is; its profiles are not looked at. No graph is
    opened. `name`: as of `Bundle`. Raises SignatureError saying what is not, BundleError as `Bundle` does."""
    folder = Path(path)
    text, signature = files_of(folder)
    signed = verified(text, signature, trust)
    bundle = Bundle(folder, name=name)
    check_content(bundle, signed)
    return bundle


def check_content(bundle: Bundle, signed: Signed) -> None:
    """Raises SignatureError where a bundle, whose files are as its own manifest says, is not what was signed."""
    try:
        part = part_of(signed, list(bundle.submodels))
    except BundleError as error:
        raise SignatureError(f"{MANIFEST_FILE}: is not what was signed: {error}") from None
    found = json.loads((bundle.path / MANIFEST_FILE).read_bytes())
    hashes = {name: bundle.manifest.files[name].sha256 for name in part.weights if name in bundle.manifest.files}
    if set(hashes) != set(part.weights) or found != part.document(hashes):
        raise SignatureError(f"{MANIFEST_FILE}: is not what was signed, nor a part of it")
    for name, ranges in part.ranges.items():
        if bundle.manifest.files[name].sha256 == signed.content.files[name].sha256:
            continue
        with (bundle.path / name).open("rb") as file:
            for one, good in checked_ranges(file, ranges):
                if not good:
                    raise SignatureError(f"{name}: bytes {one.begin} to {one.end} are not what was signed")
            _check_holes(name, file, ranges, bundle.manifest.files[name].bytes)
    cascades = bundle.path / CASCADES_FILE
    here = json.loads(cascades.read_bytes()) if cascades.is_file() else None
    if isinstance(here, list):
        here = {"cascades": here}
    allowed = signed.cascades if part.whole else part.cascades
    if here is not None and here not in (allowed, part.cascades):
        raise SignatureError(f"{CASCADES_FILE}: is not what was signed")
    if here is None and part.cascades is not None:
        raise SignatureError(f"{CASCADES_FILE}: is missing; it was signed")


def checked_ranges(file: BinaryIO, ranges: Iterable[Range]) -> Iterable[tuple[Range, bool]]:
    """Each range, and whether the file has its content there."""
    for one in ranges:
        file.seek(one.begin)
        hasher, left = hashlib.sha256(), one.end - one.begin
        while left and (chunk := file.read(min(_CHUNK, left))):
            hasher.update(chunk)
            left -= len(chunk)
        yield one, not left and hasher.hexdigest() == one.sha256


def _check_holes(name: str, file: BinaryIO, ranges: Iterable[Range], size: int) -> None:
    """Nothing but zeros where nothing was signed: what is there and read by no graph must not be smuggled in."""
    end = 0
    for begin, after in [*((one.begin, one.end) for one in ranges), (size, size)]:
        while end < begin:
            file.seek(end)
            end = min(begin, _next_data(file, end))
            file.seek(end)
            chunk = file.read(min(_CHUNK, begin - end))
            if chunk.strip(b"\0"):
                raise SignatureError(f"{name}: holds bytes, from {end} on, that were not signed for these sub-models")
            end += len(chunk) or begin - end
        end = after


def _next_data(file: BinaryIO, place: int) -> int:
    """Where the file goes on after a hole, where the system tells."""
    try:
        return os.lseek(file.fileno(), place, os.SEEK_DATA)
    except (OSError, AttributeError) as error:
        return place if isinstance(error, AttributeError) or error.errno != 6 else 2**63  # ENXIO: nothing but a hole follows
