"""The schema of a bundle's `manifest.json`."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from device_profiles.schema import Share

FORMAT_VERSION = 2

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
AxisValue = int | float | tuple[int, ...]
INT8_SUFFIX = "-int8"
Precision = Literal["fp32", "int8", "int8-rows", "int4"]
"""float32; 8-bit integers, of a decoder in blocks of 32; its 7-bit weights with a factor for each row; its 4 bits in blocks."""
Int8Range = Literal["reduced", "full"]
"""The range of int8 weights: 7 bits, or 8, which some processors' kernels cannot multiply (`exporter.bundle.saturation`)."""


def inside(path: str) -> str:
    """The path, when it stays below the folder that it is relative to. Raises ValueError otherwise."""
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    if not path or posix.is_absolute() or windows.drive or windows.root or "\\" in path or ".." in posix.parts or "\0" in path:
        raise ValueError(f"path {path!r} leaves the bundle; allowed are relative paths without '..'")
    return path


RelativePath = Annotated[str, AfterValidator(inside)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TensorSpec(_Model):
    """An input or output of every graph; a free axis carries a name instead of a size."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int | str, ...]


class TaskEntry(_Model):
    """What the networks answer, and what their quality is."""

    kind: str  # "classification", "segmentation", …
    metric: str  # what `quality` is: "accuracy", "mean_iou", …
    labels: tuple[str, ...] = ()  # names of the classes, in order; none where they are only numbers
    name: str = ""  # by which the trainer finds the class again
    config: dict[str, Any] = {}


CLASSIFICATION = {"kind": "classification", "metric": "accuracy", "name": "classification"}
"""The task of every bundle of format 1."""


class LayerEntry(_Model):
    """What the cost of a convolution or matrix product depends on, for one example. Numbers of elements."""

    kind: str
    macs: Annotated[int, Field(ge=0)]
    weights: Annotated[int, Field(ge=0)]
    activations: Annotated[int, Field(ge=0)]  # read and written
    channels_in: Annotated[int, Field(ge=1)]
    channels_out: Annotated[int, Field(ge=1)]


def _nothing(value: Any) -> bool:
    return not value


class SegmentEntry(_Model):
    """A decoder's graph in two: the lower from token ids to the hidden state before a layer, the upper from there on."""

    layer: Annotated[int, Field(ge=1)]
    lower: RelativePath
    upper: RelativePath


class PartEntry(_Model):
    """Some layers of a decoder's graph; the first part takes token ids, the last gives logits."""

    first: Annotated[int, Field(ge=0)]
    last: Annotated[int, Field(ge=1)]  # exclusive
    graph: RelativePath


class SpeculationEntry(_Model):
    """Graphs of a decoder whose rows do not depend on how many are computed with them, so that several tokens that were guessed
    are verified in one call: the same arithmetic as one by one."""

    graph: RelativePath
    parts: Annotated[tuple[PartEntry, ...], Field(exclude_if=_nothing)] = ()  # the same in parts: between them are the exits
    head: Annotated[RelativePath | None, Field(exclude_if=_nothing)] = None  # of every exit: hidden state → logits
    head_tokens: Annotated[int, Field(ge=0, exclude_if=_nothing)] = 0  # the first of the vocabulary, which that knows
    problem: Annotated[str, Field(exclude_if=_nothing)] = ""  # why rows were not equal where it was exported; mostly they are

    @property
    def graphs(self) -> tuple[str, ...]:
        """All of them."""
        return (self.graph, *(part.graph for part in self.parts), *(() if self.head is None else (self.head,)))

    @model_validator(mode="after")
    def _follow_one_another(self) -> Self:
        if self.parts and (self.head is None or self.head_tokens < 1):
            raise ValueError("head: none; needed where there are parts")
        if any(a.last != b.first for a, b in pairwise(self.parts)) or (self.parts and self.parts[0].first != 0):
            raise ValueError("parts: do not follow one another from layer 0 on")
        return self


class DecoderGraphEntry(_Model):
    """What the cache of one sub-model holds."""

    layers: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]


class DecoderEntry(_Model):
    """Of a bundle whose sub-models generate text: what the loop around their graphs needs to know. The full model's sizes."""

    layers: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]  # heads of keys and values
    head_size: Annotated[int, Field(ge=1)]
    context: Annotated[int, Field(ge=1)]  # tokens of the longest text
    vocabulary: Annotated[int, Field(ge=1)]
    bos: int | None = None  # the token that a text begins with
    eos: tuple[int, ...] = ()  # the tokens that end one
    pad: int | None = None
    head_bits: int | None = None  # of the head and the embedding where weights are in blocks of 4 bits
    quality_tokens: Annotated[int, Field(ge=0)] = 0  # of the test split, that the qualities were measured on
    graph: dict[str, DecoderGraphEntry]  # by sub-model

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, value in (("bos", self.bos), ("pad", self.pad), *(("eos", token) for token in self.eos)):
            if value is not None and not 0 <= value < self.vocabulary:
                raise ValueError(f"{name} = {value}: allowed are token ids from 0 to {self.vocabulary - 1}")
        return self


class SubModelEntry(_Model):
    """One sub-model of the bundle."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    axes: dict[str, AxisValue]
    params: Annotated[int, Field(ge=0)]
    macs: Annotated[int, Field(ge=0)]  # multiply-accumulates of one example
    quality: Share | None  # on the test split, the higher the better: what it is chosen by
    metrics: dict[str, float] = {}  # on the test split, by the names of the field; the task's metric among them
    graph: RelativePath
    topology: Sha256  # of the operators that the graph has in common with other sizes
    precision: Precision
    layers: tuple[tuple[int, int], ...] = ()  # index into the manifest's layers, and how many of it
    int8_error: Annotated[float, Field(ge=0)] | None = None  # of its answers to the self-test, RMS relative to the fp32 graph's
    segments: Annotated[tuple[SegmentEntry, ...], Field(exclude_if=_nothing)] = ()  # of a decoder
    speculation: Annotated[SpeculationEntry | None, Field(exclude_if=_nothing)] = None  # of a decoder

    @property
    def fp32_id(self) -> str:
        """The sub-model of the same size in fp32, which may not be in the bundle; its own where that is it."""
        return self.id if self.precision == "fp32" else self.id.removesuffix(f"-{self.precision}")

    @property
    def graphs(self) -> tuple[str, ...]:
        """All its graphs."""
        halves = (path for segment in self.segments for path in (segment.lower, segment.upper))
        return (self.graph, *halves, *(self.speculation.graphs if self.speculation else ()))

    @property
    def accuracy(self) -> float | None:
        """The share of the test split that it gets right, where that is its metric."""
        return self.metrics.get("accuracy")


class FileEntry(_Model):
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class SelfTest(_Model):
    """A few inputs and what every sub-model must answer, and how far an answer may be off, relative to its largest."""

    file: RelativePath
    tolerance: Annotated[float, Field(gt=0, le=1)]
    int8_tolerance: Annotated[float, Field(gt=0, le=1)] = 0.1  # 0.01 since the range of weights is recorded

    def tolerance_of(self, precision: str) -> float:
        return self.tolerance if precision == "fp32" else self.int8_tolerance


class Manifest(_Model):
    """What a bundle holds. `sha256` is the hash of the document without that field, so that an edit is noticed."""

    format_version: int
    family: str
    axes: dict[str, tuple[AxisValue, ...]]
    task: TaskEntry
    quality_from: Literal["graph", "torch"] = "graph"  # measured with ONNX Runtime on the graphs, or in torch after training
    preprocessing: dict[str, dict[str, Any]] = {}  # by input: how a file becomes one
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    submodels: Annotated[tuple[SubModelEntry, ...], Field(min_length=1)]
    layers: tuple[LayerEntry, ...] = ()  # all that a sub-model has
    weights: RelativePath
    int8_weights: RelativePath | None = None  # beside the others, where there are int8 sub-models
    precision_weights: Annotated[dict[Precision, RelativePath], Field(exclude_if=_nothing)] = {}  # of a decoder: by precision
    int8_range: Int8Range | None = None  # of these weights; before it was recorded it was always "full"
    selftest: SelfTest
    decoder: Annotated[DecoderEntry | None, Field(exclude_if=_nothing)] = None  # of sub-models that generate text
    files: dict[RelativePath, FileEntry]
    training: dict[str, Any]  # the record of the run: data and split, options
    created_with: dict[str, str]  # versions of the libraries
    sha256: Sha256

    def weights_of(self, precision: str) -> str:
        """The weights file that graphs of this precision read."""
        if found := dict(self.precision_weights).get(precision):  # type: ignore[call-overload]
            return str(found)
        return self.int8_weights if precision == "int8" and self.int8_weights else self.weights

    @property
    def weights_files(self) -> list[str]:
        """All of them."""
        named = [self.weights, self.int8_weights, *self.precision_weights.values()]
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def fingerprint(self) -> str:
        """Hash of what latency depends on, sizes and operators: the same for a bundle of the same networks retrained."""
        shapes = [(s.id, s.params, s.macs, s.topology, s.precision) for s in self.submodels]
        inputs = [(i.name, i.dtype, i.shape) for i in self.inputs]
        return hashlib.sha256(json.dumps([self.family, inputs, sorted(shapes)]).encode()).hexdigest()


def checked(document: Any) -> Manifest:
    """The manifest that a JSON document is. Raises ValueError naming the first field that is wrong, also for a newer format
    and for a document whose own hash does not fit."""
    if not isinstance(document, dict):
        raise ValueError("is no JSON object")
    version = document.get("format_version")
    if type(version) is not int or version < 1:
        raise ValueError(f"format_version = {version!r}; allowed are 1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise ValueError(f"format_version = {version} is newer than {FORMAT_VERSION}: update sortednet")
    try:
        manifest = Manifest.model_validate(_upgraded(document) if version == 1 else document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}") from None
    if manifest.sha256 != seal_of(document):
        raise ValueError("was altered (its own sha256 does not fit)")
    return manifest


def _upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """A document of format 1, in which every sub-model had an accuracy, as one of format 2."""

    def entry(old: Any) -> Any:
        if not isinstance(old, dict):
            return old
        rest = {key: value for key, value in old.items() if key != "accuracy"}
        accuracy = old.get("accuracy")
        return {**rest, "quality": accuracy, "metrics": {} if accuracy is None else {"accuracy": accuracy}}

    submodels = document.get("submodels")
    entries = [entry(one) for one in submodels] if isinstance(submodels, list) else submodels
    return {**document, "format_version": FORMAT_VERSION, "task": CLASSIFICATION, "submodels": entries}


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The manifest document with its own hash in it."""
    return {**document, "sha256": seal_of(document)}


def seal_of(document: dict[str, Any]) -> str:
    """SHA-256 of the document, without its `sha256` field, as JSON with sorted keys."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
