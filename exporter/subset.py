"""`subset`: a bundle that holds some of another's sub-models, over weights that are cut down to what these need.

Needs onnx, but neither torch nor ONNX Runtime. What a graph reads of a weights file is found in the graph itself (see
`exporter.graph` for how it is written): an external tensor is a range of rows, a `Slice` over it with constant bounds a cut
of later axes. External tensors whose bytes overlap are one parameter; of it the rows and, on every later axis, the positions
that any of the graphs reads are kept and packed side by side. A `Slice` that then takes everything is dropped.

The same request gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from device_profiles import ProfileError, read_profile, write_profile
from exporter.bundle import MANIFEST_FILE, PROFILES_FOLDER, Bundle, BundleError
from exporter.bundle.atomic import built_beside
from exporter.bundle.manifest import Manifest, sealed
from exporter.bundle.refit import refit
from exporter.weights import ALIGNMENT

Bounds = Mapping[int, tuple[int, int]]
"""Axis, from 1 → from where to where a graph reads."""


def subset(bundle: Bundle, submodels: Iterable[str], out: str | Path) -> Bundle:
    """Writes the bundle `out` with these sub-models of `bundle` alone, and returns it, opened.

    Their outputs are equal to the bit to those of `bundle`. Profiles come along, cut to what they say of these sub-models.
    Raises BundleError for an unknown sub-model, for none, for a weights file that does not hold what a graph reads, and
    when `out` cannot be written; nothing is left behind then.
    """
    wanted = {bundle.submodel(name).id for name in submodels}
    if not wanted:
        raise BundleError(f"sub-models: none; allowed are one or more of the {len(bundle.submodels)} in this bundle")
    if Path(out).absolute() == bundle.path.absolute():
        raise BundleError(f"out = {str(out)!r}: is the bundle itself; choose another place")
    with built_beside(Path(out)) as folder:
        manifest = _write(bundle, wanted, folder)
        for device in bundle.devices():
            try:
                profile = refit(read_profile(bundle.path / PROFILES_FOLDER / f"{device}.json"), bundle.manifest, manifest)
            except ProfileError:
                continue  # a damaged one is of no use there either
            if profile is not None:
                write_profile(profile, folder / PROFILES_FOLDER / f"{device}.json")
        Bundle(folder, verify=False)
    return Bundle(out)


def _write(bundle: Bundle, wanted: set[str], folder: Path) -> Manifest:
    old = bundle.manifest
    entries = [entry for entry in old.submodels if entry.id in wanted]
    paths = [path for entry in entries for path in entry.graphs]
    graphs = {path: onnx.load(bundle.path / path, load_external_data=False) for path in paths}
    weights = list(dict.fromkeys(old.weights_of(entry.precision) for entry in entries))
    if old.decoder is None:  # which has a file for each precision; others have the fp32 graphs' in any case
        weights = list(dict.fromkeys([old.weights, *weights]))
    for name in weights:
        readers = [_Graph(model) for path, model in graphs.items() if _reads(path, model, name)]
        _cut(bundle.path / name, readers, folder / name)
    for path, model in graphs.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(model.SerializeToString(deterministic=True))
    _cut_selftest(bundle, wanted, folder / old.selftest.file)
    own = {*old.weights_files, old.selftest.file, *(path for entry in old.submodels for path in entry.graphs)}
    others = [path for path in old.files if path not in own]  # a tokenizer, say
    for path in others:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / path, folder / path)
    files = sorted([*weights, *graphs, old.selftest.file, *others])
    document = _cut_document(old, wanted)
    document["int8_weights"] = old.int8_weights if old.int8_weights in weights else None
    if old.decoder is not None:
        document["weights"] = weights[0]
        document["precision_weights"] = {
            precision: path for precision, path in old.precision_weights.items() if path in weights
        }
        document["decoder"]["graph"] = {name: document["decoder"]["graph"][name] for name in sorted(wanted)}
    document["files"] = {path: _file_entry(folder / path) for path in files}
    text = json.dumps(sealed(json.loads(json.dumps(document))), indent=1) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return Manifest.model_validate_json(text)


def _cut_document(old: Manifest, wanted: set[str]) -> dict[str, Any]:
    """The manifest's document with these sub-models, and the layers that they have, alone; `files` are still the old ones."""
    document = old.model_dump(mode="json", exclude={"sha256"})
    document["submodels"] = [entry for entry in document["submodels"] if entry["id"] in wanted]
    used = sorted({index for entry in document["submodels"] for index, _ in entry["layers"]})
    places = {index: place for place, index in enumerate(used)}
    document["layers"] = [document["layers"][index] for index in used]
    for entry in document["submodels"]:
        entry["layers"] = [[places[index], count] for index, count in entry["layers"]]
    ids = {entry.id for entry in old.submodels}
    results = document["training"].get("results")
    if isinstance(results, dict):  # of the run's record what it says of each sub-model, which is most of it
        for name, value in results.items():
            if isinstance(value, dict) and value and set(value) <= ids:
                results[name] = {key: figure for key, figure in value.items() if key in wanted}
    return document


def _cut_selftest(bundle: Bundle, wanted: set[str], target: Path) -> None:
    inputs, outputs = bundle.selftest()
    arrays = {f"input/{name}": array for name, array in inputs.items()}
    for entry in bundle.manifest.submodels:
        if entry.id in wanted:
            for identifier in dict.fromkeys((entry.fp32_id, entry.id)):
                arrays |= {f"output/{identifier}/{name}": array for name, array in outputs.get(identifier, {}).items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, **arrays)  # type: ignore[arg-type]  # numpy gives every member the same date


def _file_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


@dataclass
class _Use:
    """An external tensor of a graph, and how the graph cuts it."""

    graph: _Graph
    tensor: TensorProto
    bounds: Bounds
    slice: NodeProto | None  # that has the bounds; None where all is read

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.dims)

    @property
    def item_bytes(self) -> int:
        return int(helper.tensor_dtype_to_np_dtype(self.tensor.data_type).itemsize)

    @property
    def row_bytes(self) -> int:
        return self.item_bytes * int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def begin(self) -> int:
        return int(_external(self.tensor)["offset"])

    @property
    def end(self) -> int:
        return self.begin + self.row_bytes * (self.shape[0] if self.shape else 1)


class _Graph:
    """A graph whose external tensors are found, and given another place."""

    def __init__(self, model: ModelProto) -> None:
        self.proto: GraphProto = model.graph
        self._constants: dict[str, NDArray[Any]] = {
            t.name: numpy_helper.to_array(t)
            for t in self.proto.initializer
            if t.data_location != TensorProto.EXTERNAL and t.data_type == TensorProto.INT64 and len(t.dims) == 1
        }
        self._outputs = {output.name for output in self.proto.output}

    def uses(self) -> list[_Use]:
        readers: dict[str, list[NodeProto]] = {}
        for node in self.proto.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        found = []
        for tensor in self.proto.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                by = readers.get(tensor.name, [])
                bounds = self._bounds(by[0], tensor) if len(by) == 1 else None
                found.append(_Use(self, tensor, bounds or {}, by[0] if bounds else None))
        return found

    def _bounds(self, node: NodeProto, tensor: TensorProto) -> Bounds | None:
        """Of a `Slice` of later axes with constant bounds; None for whatever else reads the tensor."""
        if node.op_type != "Slice" or len(node.input) != 4 or node.input[0] != tensor.name:
            return None
        if any(name not in self._constants for name in node.input[1:]) or node.output[0] in self._outputs:
            return None
        starts, ends, axes = (self._constants[name].tolist() for name in node.input[1:])
        bounds = {axis: (start, end) for axis, start, end in zip(axes, starts, ends, strict=True)}
        proper = all(0 < axis < len(tensor.dims) and 0 <= b < e <= tensor.dims[axis] for axis, (b, e) in bounds.items())
        return bounds if proper and len(bounds) == len(axes) else None

    def place(self, use: _Use, offset: int, shape: Sequence[int], bounds: Bounds) -> None:
        """Lets the tensor lie there in that shape; `bounds` are what is still to be cut of it."""
        tensor = use.tensor
        location = _external(tensor)["location"]
        length = use.item_bytes * int(np.prod(shape, dtype=np.int64))
        del tensor.dims[:], tensor.external_data[:]
        tensor.dims.extend(shape)
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        if use.slice is None:
            return
        if not bounds:
            tensor.name = use.slice.output[0]
            self.proto.node.remove(use.slice)
            return
        for place, values in enumerate(zip(*((b, e, axis) for axis, (b, e) in bounds.items()), strict=True), 1):
            use.slice.input[place] = self._constant(values)

    def _constant(self, values: Sequence[int]) -> str:
        for known, array in self._constants.items():
            if array.tolist() == list(values):
                return known
        number, taken = 0, self._names()
        while f"index.{number}" in taken:
            number += 1
        name = f"index.{number}"
        self._constants[name] = np.array(values, dtype=np.int64)
        self.proto.initializer.append(numpy_helper.from_array(self._constants[name], name))
        return name

    def _names(self) -> set[str]:
        values = [name for node in self.proto.node for name in (*node.input, *node.output)]
        return {*values, *(tensor.name for tensor in self.proto.initializer)}

    def drop_unused(self) -> None:
        """Takes away the bounds that no `Slice` has any more."""
        used = {name for node in self.proto.node for name in node.input} | self._outputs
        unused = [t for t in self.proto.initializer if t.name not in used and t.name in self._constants]
        for tensor in unused:
            self.proto.initializer.remove(tensor)


@dataclass
class _Parameter:
    """Rows of a weights file that uses overlap in: one parameter, or a block of one."""

    uses: list[_Use] = field(default_factory=list)
    begin: int = 0
    end: int = 0

    def write(self, source: NDArray[np.uint8], target: BinaryIO) -> None:
        """Packs what the uses read, and lets their graphs read it there."""
        kept = self._kept()
        offset = target.tell()
        first = self.uses[0]
        if not first.shape:
            target.write(source[self.begin : self.end].tobytes())
        else:
            rows = (self.end - self.begin) // first.row_bytes if first.row_bytes else 0
            items = source[self.begin : self.end].view(np.dtype((np.void, first.item_bytes)))
            block = items.reshape(rows, *first.shape[1:])
            target.write(block[np.ix_(np.arange(rows), *kept)].tobytes())
        row_bytes = first.item_bytes * int(np.prod([len(k) for k in kept], dtype=np.int64))
        for use in self.uses:
            before = (use.begin - self.begin) // first.row_bytes if first.row_bytes else 0
            bounds = {}
            for axis, (begin, end) in use.bounds.items():
                packed = kept[axis - 1]
                place = int(np.searchsorted(packed, begin))
                if (place, end - begin) != (0, len(packed)):
                    bounds[axis] = (place, place + end - begin)
            shape = (*use.shape[:1], *(len(k) for k in kept))
            use.graph.place(use, offset + before * row_bytes, shape, bounds)

    def _kept(self) -> list[NDArray[np.int64]]:
        """For each later axis the positions that some use reads, ascending."""
        first = self.uses[0]
        kept = []
        for axis in range(1, len(first.shape)):
            read = np.zeros(first.shape[axis], dtype=bool)
            for use in self.uses:
                begin, end = use.bounds.get(axis, (0, first.shape[axis]))
                read[begin:end] = True
            kept.append(np.flatnonzero(read))
        return kept


def _cut(source: Path, graphs: Sequence[_Graph], target: Path) -> None:
    """Writes what these graphs read of a weights file, in its order, and changes the graphs so that they read it there."""
    every = [use for graph in graphs for use in graph.uses()]
    uses = sorted((use for use in every if use.end > use.begin), key=lambda use: (use.begin, -use.end))
    content = np.memmap(source, dtype=np.uint8, mode="r") if source.stat().st_size else np.zeros(0, np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        for parameter in _parameters(uses):
            if parameter.end > len(content):
                name = parameter.uses[-1].tensor.name
                raise BundleError(f"{source.name}: {len(content)} bytes; tensor {name!r} of a graph ends at {parameter.end}")
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            parameter.write(content, file)
    for use in every:
        if use.end == use.begin:  # without elements: it reads nothing, wherever it lies
            use.graph.place(use, 0, use.shape, use.bounds)
    for graph in graphs:
        graph.drop_unused()


def _parameters(uses: Sequence[_Use]) -> list[_Parameter]:
    """The uses, which are sorted by where they begin, in groups whose bytes overlap."""
    found: list[_Parameter] = []
    for use in uses:
        if not found or use.begin >= found[-1].end:
            found.append(_Parameter(begin=use.begin, end=use.begin))
        parameter = found[-1]
        first = parameter.uses[0] if parameter.uses else use
        fits = use.shape[1:] == first.shape[1:] and use.tensor.data_type == first.tensor.data_type
        if not fits or (first.row_bytes and (use.begin - parameter.begin) % first.row_bytes):
            raise BundleError(f"tensors {first.tensor.name!r} and {use.tensor.name!r} read the same bytes in different shapes")
        parameter.uses.append(use)
        parameter.end = max(parameter.end, use.end)
    return found


def _external(tensor: TensorProto) -> dict[str, str]:
    return {"offset": "0", **{entry.key: entry.value for entry in tensor.external_data}}


def _reads(path: str, model: ModelProto, weights: str) -> bool:
    """Whether the graph's external tensors lie in that weights file. Raises BundleError when they lie in several files."""
    tensors = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    locations = {str(PurePosixPath(path).parent / _external(tensor)["location"]) for tensor in tensors}
    if len(locations) > 1:
        raise BundleError(f"{path}: reads {', '.join(sorted(locations))}; allowed is one weights file")
    return weights in locations
