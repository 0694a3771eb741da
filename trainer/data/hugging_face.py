"""`hf:NAME_OR_PATH`: a Hugging Face data set, with columns of pictures, texts or numbers.

Shapes: N rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from exporter.bundle.preprocessing import ImageError, OpenedImage
from trainer.data.arrays import array_set, as_tensor, refuse_channels_last
from trainer.data.columns import (
    TEXTS,
    Columns,
    Wanted,
    columns_of,
    has_labels,
    numbers,
    tag_names,
    tagged_columns,
    wanted_of,
    with_pair,
)
from trainer.data.dataset import INPUT, DataSet
from trainer.data.encoded import Texts
from trainer.data.folders import HASHED_BYTES, PARTS, completed
from trainer.data.hub import FILES, SAVED, opened, splits_of
from trainer.data.images import PictureOptions, check_options, picture_set
from trainer.data.language import packed_set
from trainer.data.sources import Source, register_source
from trainer.data.splits import SPLIT_SEED, Array
from trainer.data.tags import tagged_texts
from trainer.data.texts import text_set
from trainer.data.tokens import TokenOptions
from trainer.submodel import TrainerError

if TYPE_CHECKING:
    from datasets import Dataset

OPTIONS: Mapping[str, type[Any] | None] = {"image": PictureOptions, "text": TokenOptions, "numbers": None}
"""By kind of column: what says how it is read."""


def _hugging_face(
    name: str,
    place: str,
    *,
    config: str | None = None,
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    image: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    tokens: str | None = None,
    tags: str | None = None,
    tokenizer: str | None = None,
    input: str | Sequence[str] | None = None,
    label: str | None = None,
    next_token: bool = False,
    **reading: Any,
) -> DataSet:
    """`config`: of a data set on the hub. `train`, `validation`, `test`: names of its splits; a part that is not there is split
    off. `image`, `text`, `input`, `label`: names of columns, where they are not to be told from the features; `text_pair`: the
    one of second texts; `tokens` and `tags`: lists of words, and of a tag for each. `reading`, and `tokenizer`: the options of
    an image folder or of a text folder.
    """
    reading = reading if tokenizer is None else {**reading, "tokenizer": tokenizer}
    reading = {**reading, "next_token": True} if next_token else reading
    own = opened(name, place, None if config is None else str(config))
    asked = {"train": train, "validation": validation, "test": test}
    splits = splits_of(name, own, asked)
    features = own[splits["train"]].features
    if reading.get("next_token"):
        return _documents_set(name, own, splits, text, reading)
    tagged = tokens is not None or tags is not None
    if tagged:
        columns = tagged_columns(name, features, tokens, tags)
    else:
        columns = with_pair(name, features, text_pair, lambda f: columns_of(name, f, image, text, input, label))
    options = _options(name, columns.kind, reading)
    tables, words = {}, {}
    for part, split in splits.items():
        if part == "train" or asked[part] is not None or has_labels(own[split], columns.label):
            tables[part], words[part] = own[split], f"split {split}"
    table, parts = _together(name, tables, columns)
    if tagged:
        return _tagged_set(name, table, columns, parts, words, options)
    wanted = wanted_of(name, table, columns.label, parts["train"])
    strata = wanted.targets if wanted.classes and wanted.targets.ndim == 1 else np.zeros(len(table), dtype=np.int64)
    parts, words = completed(parts, strata, words, wanted.names if strata is wanted.targets else ())
    if strata is not wanted.targets:
        words = {part: said.replace("by class", "at random") for part, said in words.items()}
    record = {"split": words, "columns": {"inputs": list(columns.inputs), "label": columns.label}}
    if wanted.names:
        record["class_names"] = list(wanted.names)
    if columns.kind == "text":
        first, *seconds = [_documents(name, table, column) for column in columns.inputs]
        texts = Texts.of(first, lambda i: f"data {name!r}: row {i}", seconds[0] if seconds else None)
        return text_set(name, texts, wanted.targets, wanted.names, parts, options, record, count=wanted.classes)
    targets = as_tensor(f"data {name!r}: column {columns.label!r}", wanted.targets)
    if columns.kind == "image":
        pictures = PictureRows(table, columns.inputs[0], name)
        record = {**_described(name, parts), **_content(pictures, wanted, tables), **record}
        return picture_set(name, pictures, targets, wanted.names, parts, options, record, count=wanted.classes)
    return array_set(name, _arrays(name, table, columns), targets, parts, record, wanted.names, count=wanted.classes)


def _documents_set(
    name: str, own: Mapping[str, Dataset], splits: Mapping[str, str], text: str | None, reading: Mapping[str, Any]
) -> DataSet:
    """Texts of a language model, from one column."""
    features = own[splits["train"]].features
    texts = [column for column, feature in features.items() if getattr(feature, "dtype", "") in TEXTS]
    column = text or ("text" if "text" in texts else texts[0] if len(texts) == 1 else None)
    if column is None or column not in texts:
        raise TrainerError(f"data {name!r}: text = {column!r}: allowed are its columns of texts: {', '.join(texts) or 'none'}")
    documents: list[str] = []
    parts: dict[str, Array] = {}
    for part, split in splits.items():
        read = _documents(name, own[split], column)
        parts[part] = np.arange(len(read)) + len(documents)
        documents += read
    words = {part: f"split {split}" for part, split in splits.items()}
    whole, words = completed(parts, np.zeros(len(documents), dtype=np.int64), words)
    words = {part: said.replace("by class", "at random") for part, said in words.items()}
    found = Texts.of(documents, lambda i: f"data {name!r}: row {i}")
    return packed_set(name, found, whole, _options(name, "text", reading), {"split": words, "columns": {"inputs": [column]}})


def _tagged_set(
    name: str, table: Dataset, columns: Columns, parts: Mapping[str, Array], words: Mapping[str, str], options: TokenOptions
) -> DataSet:
    """Words with a tag each."""
    values = table.select_columns([*columns.inputs, columns.label])[:]
    texts, names, count = tagged_texts(
        values[columns.inputs[0]],
        values[columns.label],
        parts["train"],
        lambda row: f"data {name!r}: row {row}",
        tag_names(table.features, columns.label),
    )
    parts, words = completed(parts, np.zeros(len(table), dtype=np.int64), words)
    words = {part: said.replace("by class", "at random") for part, said in words.items()}
    record = {"split": words, "columns": {"inputs": list(columns.inputs), "label": columns.label}}
    return text_set(name, texts, None, names, parts, options, record, count=count)


class PictureRows:
    """Pictures in a column, decoded when they are asked for."""

    def __init__(self, table: Dataset, column: str, what: str) -> None:
        import datasets

        self.table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self.column, self.what = column, what

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        return f"data {self.what!r}: column {self.column!r}, row {index}"

    def opened(self, index: int) -> OpenedImage:
        """Raises ImageError naming the row."""
        place, content = self._stored(self.table[index][self.column])
        if content is not None:
            return OpenedImage(BytesIO(content), self.name(index))
        if place is None:
            raise ImageError(f"{self.name(index)}: is empty; allowed are pictures")
        return OpenedImage(place)

    def contents(self) -> Iterator[bytes | Path]:
        """Of every picture what is stored: its bytes, or where they lie."""
        for row in self.table:
            place, content = self._stored(row[self.column])
            yield content if content is not None else Path(place or "")

    def _stored(self, value: Any) -> tuple[str | None, bytes | None]:
        return (None, None) if value is None else (value["path"], value["bytes"])


def _options(name: str, kind: str, reading: Mapping[str, Any]) -> Any:
    """What says how columns of this kind are read. Raises TrainerError for an option that they do not have."""
    made = OPTIONS[kind]
    own = [field.name for field in fields(made)] if made is not None else []
    for option in reading:
        if option not in own:
            allowed = ["config", *PARTS, "image", "text", "text_pair", "tokens", "tags", "input", "label", *own]
            raise TrainerError(f"data {name!r}: has no option {option!r}; allowed are {', '.join(allowed)}")
    options = made(**reading) if made is not None else None
    if isinstance(options, PictureOptions):
        check_options(options)
    return options


def _together(name: str, tables: Mapping[str, Dataset], columns: Columns) -> tuple[Dataset, dict[str, Array]]:
    """The columns of all parts as one table, and the rows of each part in it."""
    import datasets

    used = [*columns.inputs, columns.label]
    for part, table in tables.items():
        for column in used:
            if column not in table.features:
                raise TrainerError(f"data {name!r}: {part} has no column {column!r}; allowed are the columns of train")
    chosen = [table.select_columns(used) for table in tables.values()]
    try:
        whole = datasets.concatenate_datasets(chosen) if len(chosen) > 1 else chosen[0]
    except Exception as error:  # columns of one name that hold something else
        raise TrainerError(f"data {name!r}: its splits differ: {' '.join(str(error).split())}") from None
    begins = np.cumsum([0, *(len(table) for table in chosen)])
    return whole, {part: np.arange(begins[i], begins[i + 1]) for i, part in enumerate(tables)}


def _documents(name: str, table: Dataset, column: str) -> list[str]:
    documents = list(table.select_columns([column])[:][column])
    missing = [row for row, document in enumerate(documents) if document is None]
    if missing:
        raise TrainerError(f"data {name!r}: column {column!r} has no text in row {missing[0]} ({len(missing)} rows)")
    return documents


def _arrays(name: str, table: Dataset, columns: Columns) -> dict[str, Tensor]:
    """Columns of single numbers side by side as one input (N, columns); others as an input each."""
    arrays = {column: numbers(name, table, column) for column in columns.inputs}
    single = [column for column, array in arrays.items() if array.ndim == 1]
    if len(single) == len(arrays):
        return {INPUT: torch.from_numpy(np.stack([array.astype(np.float32) for array in arrays.values()], axis=1))}
    if single:
        raise TrainerError(
            f"data {name!r}: column {single[0]!r} holds single numbers, others arrays; say which are inputs, for example "
            f"input={next(column for column in arrays if column not in single)}"
        )
    for column, array in arrays.items():
        refuse_channels_last(f"data {name!r}: column {column!r}", torch.from_numpy(array[:1]))
    named = {column: as_tensor(f"data {name!r}: column {column!r}", array) for column, array in arrays.items()}
    return {INPUT: next(iter(named.values()))} if len(named) == 1 else named


def _described(name: str, parts: Mapping[str, Array]) -> dict[str, Any]:
    indices = b"".join(part.astype("<i8").tobytes() for part in parts.values())
    return {
        "name": name,
        "split_seed": SPLIT_SEED,
        "sizes": {part: len(rows) for part, rows in parts.items()},
        "split_sha256": hashlib.sha256(indices).hexdigest(),
    }


def _content(pictures: PictureRows, wanted: Wanted, tables: Mapping[str, Dataset]) -> dict[str, Any]:
    """A hash of all pictures and targets; where they are large the fingerprints by which `datasets` knows its tables."""
    total = int(pictures.table.data.nbytes)
    if total <= HASHED_BYTES:
        digest = hashlib.sha256(wanted.targets.tobytes())
        for stored in pictures.contents():
            total += stored.stat().st_size if isinstance(stored, Path) and stored.is_file() else 0
            if total > HASHED_BYTES:
                break
            digest.update(stored if isinstance(stored, bytes) else stored.read_bytes() if stored.is_file() else b"")
        else:
            return {"content_sha256": digest.hexdigest()}
    return {"fingerprints": {part: table._fingerprint for part, table in tables.items()}}


def _is_saved(path: Path) -> bool:
    """What `save_to_disk` wrote, or a file in a format of tables."""
    if path.is_dir():
        return any((path / saved).is_file() for saved in SAVED)
    return path.suffix.lower() in FILES and path.suffix.lower() != ".json"


register_source(Source("hf", _hugging_face, "NAME_OR_PATH", _is_saved, paths=("tokenizer",)))
