"""Which columns of a Hugging Face data set are inputs, and which is the target: by their features, or as asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trainer.data.splits import Array
from trainer.submodel import TrainerError

if TYPE_CHECKING:
    from datasets import Dataset, Features

Kind = Literal["image", "text", "numbers"]
LABELS = ("label", "labels", "target", "targets")
"""Names that a column of targets has where none is of classes."""

MOST_CLASSES = 10_000
TEXTS = ("string", "large_string")


@dataclass(frozen=True)
class Columns:
    """What is read of every row."""

    kind: Kind
    inputs: tuple[str, ...]  # one column of pictures, one of texts or two of pairs, or one and more of numbers
    label: str


@dataclass(frozen=True)
class Wanted:
    """The targets of all rows."""

    targets: Array  # (N,) int64, a place among the classes; or real numbers (N,) or (N, K) float32
    classes: int  # 0 where they are none
    names: tuple[str, ...]  # of the classes; none where they are only numbers


def columns_of(
    name: str,
    features: Mapping[str, Any],
    image: str | None,
    text: str | None,
    numbers: str | Sequence[str] | None,
    label: str | None,
) -> Columns:
    """The columns that were asked for, or that there is one choice for: pictures before texts before numbers.

    Raises TrainerError naming the columns where there are several, and what a column holds where it is of another kind.
    """
    kinds = {column: _kind(feature) for column, feature in features.items()}
    target = label if label is not None else _only_label(name, features, kinds)
    if target not in kinds:
        raise TrainerError(f"data {name!r}: label = {target!r}: allowed are its columns {', '.join(kinds)}")
    asked = {"image": image, "text": text, "input": numbers}
    given = {option: value for option, value in asked.items() if value is not None}
    if len(given) > 1:
        raise TrainerError(f"data {name!r}: {' and '.join(given)} given; allowed is one of image, text and input")
    if given:
        ((option, value),) = given.items()
        asked_kind = next(kind for kind, own in _OPTIONS.items() if own == option)
        chosen = (value,) if isinstance(value, str) else tuple(value)
        for column in chosen:
            _check_asked(f"data {name!r}: {option} = {value!r}", column, asked_kind, features, target)
        if not chosen or (len(chosen) > 1 and asked_kind != "numbers"):
            raise TrainerError(f"data {name!r}: {option} = {value!r}: allowed is one column")
        return Columns(asked_kind, chosen, target)
    rest = {column: kind for column, kind in kinds.items() if column != target}
    of_kind = {kind: [column for column, own in rest.items() if own == kind] for kind in _OPTIONS}
    kind = next((kind for kind in _OPTIONS if of_kind[kind]), None)
    if kind is None:
        told = ", ".join(f"{column} ({_named(features[column])})" for column in rest)
        raise TrainerError(f"data {name!r}: no column of pictures, texts or numbers beside {target!r}: {told or 'none'}")
    real = [column for column in of_kind["numbers"] if (_leaf(features[column]) or "").startswith(("float", "double"))]
    if kind == "text" and real:
        raise TrainerError(
            f"data {name!r}: texts in {', '.join(of_kind[kind])}, numbers in {', '.join(real)}; say {_say(of_kind)}"
        )
    if kind != "numbers" and len(of_kind[kind]) > 1:
        both = of_kind[kind][:2] if kind == "text" else []
        pair = f", or for pairs text={both[0]} and text_pair={both[1]}" if both else ""
        raise TrainerError(f"data {name!r}: {_WORDS[kind]} in {', '.join(of_kind[kind])}; say which: {_say(of_kind)}{pair}")
    return Columns(kind, tuple(of_kind[kind]), target)


def with_pair(name: str, features: Features, pair: str | None, asked: Callable[[Mapping[str, Any]], Columns]) -> Columns:
    """The columns that `asked` chooses among all but the one of second texts, and that one after them."""
    if pair is None:
        return asked(features)
    if pair not in features or _kind(features[pair]) != "text":
        texts = [column for column, feature in features.items() if _kind(feature) == "text"]
        raise TrainerError(f"data {name!r}: text_pair = {pair!r}: allowed are columns of texts: {', '.join(texts) or 'none'}")
    columns = asked({column: feature for column, feature in features.items() if column != pair})
    if columns.kind != "text":
        raise TrainerError(
            f"data {name!r}: text_pair = {pair!r}: the inputs are {', '.join(columns.inputs)}; allowed are texts"
        )
    return Columns(columns.kind, (*columns.inputs, pair), columns.label)


def tagged_columns(name: str, features: Features, tokens: str | None, tags: str | None) -> Columns:
    """The columns of words and of their tags, lists of one length in every row."""
    for option, column in (("tokens", tokens), ("tags", tags)):
        if column is None:
            raise TrainerError(f"data {name!r}: {option} is missing; allowed are tokens and tags together")
        if column not in features:
            raise TrainerError(f"data {name!r}: {option} = {column!r}: allowed are its columns {', '.join(features)}")
    assert tokens is not None
    assert tags is not None
    if _leaf(features[tokens]) not in TEXTS or _kind(features[tokens]) != "other":
        raise TrainerError(f"data {name!r}: tokens = {tokens!r}: holds {_named(features[tokens])}; allowed are lists of words")
    return Columns("text", (tokens,), tags)


def tag_names(features: Features, tags: str) -> tuple[str, ...]:
    """Names of the tags by number where the column has them."""
    return tuple(getattr(getattr(features[tags], "feature", None), "names", None) or ())


def wanted_of(name: str, table: Dataset, label: str, train: Array) -> Wanted:
    """The targets of a table's rows. Whole numbers and texts are classes, in ascending order; `train`: rows that have them all.

    Raises TrainerError naming a row that has none, or a class that no training row has.
    """
    import datasets

    feature = table.features[label]
    values = table.select_columns([label])[:][label]
    missing = [row for row, value in enumerate(values) if value is None]
    if isinstance(feature, datasets.ClassLabel):
        missing = missing or [row for row, value in enumerate(values) if value < 0]
    if missing:
        raise TrainerError(
            f"data {name!r}: column {label!r} has no label in row {missing[0]} ({len(missing)} of {len(values)} rows)"
        )
    if isinstance(feature, datasets.ClassLabel):
        return Wanted(np.array(values, dtype=np.int64), feature.num_classes, tuple(feature.names))
    dtype = _leaf(feature)
    if dtype is None or (dtype in TEXTS and not isinstance(feature, datasets.Value)):
        raise TrainerError(f"data {name!r}: label = {label!r} holds {_named(feature)}; allowed are classes, texts and numbers")
    if dtype.startswith(("float", "double")):
        return Wanted(numbers(name, table, label).astype(np.float32), 0, ())
    if not isinstance(feature, datasets.Value):
        targets = numbers(name, table, label).astype(np.int64)
        return Wanted(targets, max(0, int(targets.max()) + 1), ())
    known = sorted({values[int(row)] for row in train})
    if len(known) > MOST_CLASSES:
        raise TrainerError(
            f"data {name!r}: column {label!r} has {len(known)} different values; allowed are {MOST_CLASSES} classes"
        )
    places = {value: place for place, value in enumerate(known)}
    for row, value in enumerate(values):
        if value not in places:
            raise TrainerError(f"data {name!r}: column {label!r} has {value!r} in row {row}, which no training row has")
    names = () if known == list(range(len(known))) else tuple(str(value) for value in known)
    return Wanted(np.array([places[value] for value in values], dtype=np.int64), len(known), names)


def has_labels(table: Dataset, label: str) -> bool:
    """Whether any row has one. The test split of a competition has none: a column of -1, of nulls, or no column."""
    import datasets

    if label not in table.features:
        return False
    values = table.select_columns([label])[:][label]
    is_class = isinstance(table.features[label], datasets.ClassLabel)
    return any(value is not None and not (is_class and value < 0) for value in values)


def numbers(name: str, table: Dataset, column: str) -> Array:
    """A column as one array (N, …): float32, int64, bool, or uint8 where it holds that.

    Raises TrainerError naming a row that has another shape than the first, or a gap.
    """
    array = table.select_columns([column]).with_format("numpy")[:][column]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        shapes = [np.shape(row) for row in array]
        odd = next((row for row, shape in enumerate(shapes) if shape != shapes[0]), 0)
        raise TrainerError(
            f"data {name!r}: column {column!r} has shape {shapes[odd]} in row {odd}, {shapes[0]} in row 0; allowed is one shape"
        )
    if 0 in array.shape[1:]:
        raise TrainerError(
            f"data {name!r}: column {column!r} has shape {array.shape[1:]} in row 0; allowed are numbers in every row"
        )
    if array.dtype.kind == "f" and np.isnan(array).any():
        row = int(np.isnan(array).reshape(len(array), -1).any(axis=1).argmax())
        raise TrainerError(f"data {name!r}: column {column!r} has no number in row {row}; allowed are numbers without gaps")
    return array.astype(np.uint8) if _leaf(table.features[column]) == "uint8" else array


def _only_label(name: str, features: Mapping[str, Any], kinds: Mapping[str, str]) -> str:
    classes = [column for column, kind in kinds.items() if kind == "class"]
    usual = [column for column in LABELS if column in kinds]
    if len(classes) == 1:
        return classes[0]
    if not usual:
        told = ", ".join(f"{column} ({_named(feature)})" for column, feature in features.items())
        raise TrainerError(f"data {name!r}: which column is the label? Say label=COLUMN; it has {told}")
    return usual[0]


def _check_asked(what: str, column: str, kind: Kind, features: Mapping[str, Any], target: str) -> None:
    if column not in features:
        raise TrainerError(f"{what}: {column!r} is none of its columns {', '.join(features)}")
    if column == target:
        raise TrainerError(f"{what}: {column!r} is the label; allowed are other columns")
    if _kind(features[column]) not in (kind, "class" if kind == "numbers" else kind):
        raise TrainerError(f"{what}: {column!r} holds {_named(features[column])}; allowed are {_WORDS[kind]}")


def _say(of_kind: Mapping[Kind, Sequence[str]]) -> str:
    """The options that would decide."""
    said = []
    for kind, columns in of_kind.items():
        if columns:
            said.append(f"{_OPTIONS[kind]}={columns[0] if kind != 'numbers' else json.dumps(columns)}")
    return " or ".join(said)


_OPTIONS: dict[Kind, str] = {"image": "image", "text": "text", "numbers": "input"}
"""By kind, those that come first before others: the option that asks for its columns."""

_WORDS: dict[Kind, str] = {"image": "pictures", "text": "texts", "numbers": "numbers"}


def _kind(feature: Any) -> str:
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, datasets.Value) and feature.dtype in TEXTS:
        return "text"
    return "numbers" if _leaf(feature) not in (None, *TEXTS) else "other"


def _leaf(feature: Any) -> str | None:
    """The type of a number or text, be it in lists or arrays; None for something else."""
    import datasets

    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature = feature.feature
    dtype = str(getattr(feature, "dtype", ""))
    if isinstance(feature, (datasets.Image, datasets.Audio)):
        return None
    number = dtype.startswith(("int", "uint", "float", "double", "bool"))
    return dtype if number or dtype in TEXTS else None


def _named(feature: Any) -> str:
    """For people: what a column holds."""
    dtype = _leaf(feature)
    kind = type(feature).__name__
    return kind if dtype is None else dtype if kind in ("Value", "ClassLabel") else f"{kind} of {dtype}"
