"""What the graphs of a bundle read of its weights files, and with it the document that `sortednet sign` signs
(`selector.ship.signed` says what is in it). Needs onnx."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import onnx
from onnx import TensorProto
from onnx.external_data_helper import _get_all_tensors

from exporter.bundle import CASCADES_FILE, MANIFEST_FILE, Bundle, BundleError
from exporter.weights import ALIGNMENT

Interval = tuple[int, int]
"""From the first byte to before the last."""


@dataclass(frozen=True)
class Ranges:
    """Of one weights file: the ranges that graphs read, ascending, and by graph which of them it reads."""

    bounds: tuple[Interval, ...]
    needs: Mapping[str, tuple[int, ...]]


def described(bundle: Bundle, version: int) -> dict[str, Any]:
    """The document that is to be signed. Raises BundleError for a graph that reads what is not there."""
    text = (bundle.path / MANIFEST_FILE).read_bytes()
    readers = read_by(bundle)
    ranges: dict[str, list[dict[str, Any]]] = {}
    needs: dict[str, dict[str, tuple[int, ...]]] = {path: {} for entry in bundle.manifest.submodels for path in entry.graphs}
    for name in bundle.manifest.weights_files:
        found = ranges_of(readers.get(name, {}))
        size = bundle.manifest.files[name].bytes
        if found.bounds and found.bounds[-1][1] > size:
            raise BundleError(f"{name}: {size} bytes; a graph reads up to {found.bounds[-1][1]}")
        with (bundle.path / name).open("rb") as file:
            ranges[name] = []
            for begin, end in found.bounds:
                file.seek(begin)
                digest = hashlib.sha256(file.read(end - begin)).hexdigest()
                ranges[name].append({"begin": begin, "end": end, "sha256": digest})
        for graph, places in found.needs.items():
            needs[graph][name] = places
    cascades = bundle.path / CASCADES_FILE
    document = json.loads(cascades.read_bytes()) if cascades.is_file() else None
    return {
        "format_version": 1,
        "version": version,
        "manifest_sha256": hashlib.sha256(text).hexdigest(),
        "manifest": json.loads(text),
        "ranges": ranges,
        "needs": needs,
        "cascades": document if document is None or isinstance(document, dict) else {"cascades": document},
    }


def read_by(bundle: Bundle) -> dict[str, dict[str, list[Interval]]]:
    """By weights file and graph: what the graph's external tensors take. Raises BundleError for a file that is none of the
    bundle's weights, and for a graph that is none."""
    found: dict[str, dict[str, list[Interval]]] = defaultdict(lambda: defaultdict(list))
    for path in dict.fromkeys(path for entry in bundle.manifest.submodels for path in entry.graphs):
        try:
            model = onnx.load(bundle.path / path, load_external_data=False)
        except Exception as error:  # protobuf's own
            raise BundleError(f"{path}: is no graph ({error})") from None
        for tensor in _get_all_tensors(model):
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            name = str(PurePosixPath(path).parent / place["location"])
            if name not in bundle.manifest.weights_files:
                raise BundleError(f"{path}: reads {name!r}, which is no weights file of this bundle")
            begin = int(place.get("offset", 0))
            length = int(place["length"]) if "length" in place else bundle.manifest.files[name].bytes - begin
            if length > 0:
                found[name][path].append((begin, begin + length))
    return found


def ranges_of(readers: Mapping[str, Iterable[Interval]]) -> Ranges:
    """Cuts a file where any graph begins or ends to read, and puts together what the same graphs read, the padding between
    parameters included."""
    events: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for graph, intervals in readers.items():
        for begin, end in intervals:
            events[begin].append((graph, 1))
            events[end].append((graph, -1))
    open_now: dict[str, int] = {}
    bounds: list[Interval] = []
    by: list[frozenset[str]] = []
    for begin, end in pairwise(sorted(events)):
        for graph, step in events[begin]:
            open_now[graph] = open_now.get(graph, 0) + step
        now = frozenset(graph for graph, count in open_now.items() if count)
        if not now:
            continue
        if by and by[-1] == now and begin - bounds[-1][1] < ALIGNMENT:
            bounds[-1] = (bounds[-1][0], end)
        else:
            bounds.append((begin, end))
            by.append(now)
    needs = {graph: tuple(place for place, of in enumerate(by) if graph in of) for graph in readers}
    return Ranges(tuple(bounds), needs)
