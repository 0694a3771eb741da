"""`csv:FILE` and `jsonl:FILE`: texts in named columns, one example a row. Needs no library of tables.

text, text_pair   a text, and a second one where they are pairs
label             a class (text or whole number), a number, or in JSON a list of numbers; without it nothing is known of a text
tokens, tags      instead of these: words, and a tag for each; lists in JSON, in CSV also parted by spaces

A part of the split is a file of its own (`validation=FILE`, `test=FILE`), or split off.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.chat import as_messages, checked_messages
from trainer.data.columns import LABELS, MOST_CLASSES
from trainer.data.dataset import DataSet
from trainer.data.encoded import Texts
from trainer.data.folders import completed
from trainer.data.language import instruction_set, packed_set
from trainer.data.rows import Rows, read_csv, read_jsonl
from trainer.data.sources import Source, register_source
from trainer.data.splits import Array
from trainer.data.tags import tagged_texts
from trainer.data.texts import text_set
from trainer.data.tokens import VOCABULARY, TokenOptions
from trainer.submodel import TrainerError

PATHS = ("validation", "test", "tokenizer")
WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
REAL = re.compile(r"[+-]?(0|[1-9][0-9]*|[0-9]*\.[0-9]*|nan|inf(inity)?)(e[+-]?[0-9]+)?", re.IGNORECASE)
"""What is a number where all values are written: Python takes 007, 1_1 and other alphabets' digits for one too."""


def _csv(
    name: str,
    file: str,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    tokens: str | None = None,
    tags: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    delimiter: str | None = None,
    max_tokens: int | None = None,
    vocabulary: int = VOCABULARY,
    lowercase: bool = True,
    tokenizer: str | None = None,
    next_token: bool = False,
) -> DataSet:
    """`delimiter`: a comma, or a tab in a file `.tsv`. The others are those of `jsonl:`."""
    if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1):
        raise TrainerError(f"delimiter = {delimiter!r}: allowed is one character")
    columns = _Columns(text, text_pair, label, tokens, tags)
    options = TokenOptions(max_tokens, vocabulary, lowercase, tokenizer, next_token)
    return _table(name, (file, validation, test), columns, options, lambda path: read_csv(path, delimiter), written=True)


def _jsonl(
    name: str,
    file: str,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    tokens: str | None = None,
    tags: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    max_tokens: int | None = None,
    vocabulary: int = VOCABULARY,
    lowercase: bool = True,
    tokenizer: str | None = None,
    next_token: bool = False,
    prompt: str | None = None,
    answer: str | None = None,
    messages: str | None = None,
) -> DataSet:
    """`text`, `text_pair`, `label`, `tokens`, `tags`: names of columns. `validation`, `test`: files. `prompt` with `answer`, or
    `messages`: those of what a language model is to answer, instead of `text`. Others: `TokenOptions`."""
    columns = _Columns(text, text_pair, label, tokens, tags, prompt, answer, messages)
    return _table(
        name,
        (file, validation, test),
        columns,
        TokenOptions(max_tokens, vocabulary, lowercase, tokenizer, next_token),
        read_jsonl,
        written=False,
    )


@dataclass(frozen=True)
class _Columns:
    """Names of columns as they were asked for; then as they are."""

    text: str | None
    text_pair: str | None
    label: str | None
    tokens: str | None
    tags: str | None
    prompt: str | None = None
    answer: str | None = None
    messages: str | None = None

    def asks(self) -> bool:
        """Whether the rows are conversations. Raises TrainerError where their columns are named in part, or with others."""
        given = [option for option, column in vars(self).items() if column is not None]
        if not {"prompt", "answer", "messages"} & set(given):
            return False
        if given not in (["prompt", "answer"], ["messages"]):
            raise TrainerError(f"columns: {' and '.join(given)} given; allowed are prompt with answer, or messages")
        return True

    def found(self, rows: Rows, labels: bool = True) -> _Columns:
        """With the usual names where none were given. Raises TrainerError for one that is not there, or missing."""
        for option, column in vars(self).items():
            if column is not None and column not in rows.columns:
                raise TrainerError(f"{option} = {column!r}: {rows.file} has columns {', '.join(map(repr, rows.columns))}")
        if self.asks():
            return self
        tagged = self.tokens is not None or self.tags is not None
        if not tagged and self.text is None and "text" not in rows.columns:
            tagged = {"tokens", "tags"} <= set(rows.columns)
        if tagged:
            if rest := [option for option in ("text", "text_pair", "label") if getattr(self, option) is not None]:
                raise TrainerError(f"{rest[0]} = {getattr(self, rest[0])!r}: allowed are texts, or tokens with tags, not both")
            both = {option: getattr(self, option) or option for option in ("tokens", "tags")}
            for option, column in both.items():
                if column not in rows.columns:
                    raise TrainerError(
                        f"{option}: which column? Say {option}=COLUMN; {rows.file} has {', '.join(map(repr, rows.columns))}"
                    )
            return _Columns(None, None, None, both["tokens"], both["tags"])
        if self.text is None and "text" not in rows.columns:
            raise TrainerError(f"text: which column? Say text=COLUMN; {rows.file} has {', '.join(map(repr, rows.columns))}")
        text = self.text or "text"
        usual = next((c for c in LABELS if c in rows.columns and c not in (text, self.text_pair)), None) if labels else None
        label = self.label or usual
        used = [column for column in (text, self.text_pair, label) if column is not None]
        if len(set(used)) < len(used):
            raise TrainerError(f"columns: {', '.join(map(repr, used))}; allowed is each for one thing")
        return _Columns(text, self.text_pair, label, None, None)


def _table(
    name: str,
    files: Sequence[str | None],
    asked: _Columns,
    options: TokenOptions,
    read: Callable[[Path], Rows],
    *,
    written: bool,
) -> DataSet:
    """`written`: values are text, of which numbers and lists are yet to be made."""
    tables = {part: read(Path(f)) for part, f in zip(("train", "validation", "test"), files, strict=True) if f is not None}
    columns = asked.found(tables["train"], labels=not options.next_token)
    places: list[str] = []
    parts: dict[str, Array] = {}
    rows: list[Mapping[str, Any]] = []
    for part, table in tables.items():
        parts[part] = np.arange(len(rows), len(rows) + len(table.rows))
        places += [table.place(row) for row in range(len(table.rows))]
        rows += table.rows

    def values(column: str) -> list[Any]:
        missing = next((row for row, one in enumerate(rows) if one.get(column) is None), None)
        if missing is not None:
            raise TrainerError(f"{places[missing]}: no {column!r}; allowed is a value for it in every row")
        return [one[column] for one in rows]

    place = places.__getitem__
    if options.next_token:
        return _followed(name, values, columns, place, parts, {p: t.file for p, t in tables.items()}, options)
    if columns.asks():
        raise TrainerError("prompt, answer, messages: allowed with --task language-modelling")
    split = {part: table.file for part, table in tables.items()} if len(tables) > 1 else {}
    record: dict[str, Any] = {"columns": {option: column for option, column in vars(columns).items() if column is not None}}
    if columns.tokens is not None and columns.tags is not None:
        lists = [
            _lists(values(column), column, place) if written else values(column) for column in (columns.tokens, columns.tags)
        ]
        given = _as_numbers(lists[1]) if written else lists[1]
        texts, names, count = tagged_texts(lists[0], given, parts["train"], place)
        targets, strata = None, np.zeros(len(rows), dtype=np.int64)
    else:
        assert columns.text is not None
        first, second = (
            None if column is None else _texts(values(column), column, place) for column in (columns.text, columns.text_pair)
        )
        assert first is not None
        texts = Texts.of(first, place, second)
        labels = None if columns.label is None else values(columns.label)
        targets, names, count = _targets(labels, columns.label or "", parts["train"], place, written=written)
        strata = targets if targets is not None and count and targets.ndim == 1 else np.zeros(len(rows), dtype=np.int64)
    whole, words = completed(parts, strata, split, names if strata is targets else ())
    if strata is not targets:
        words = {part: said.replace("by class", "at random") for part, said in words.items()}
    return text_set(name, texts, targets, names, whole, options, {**record, "split": words}, count=count)


def _followed(
    name: str,
    values: Callable[[str], list[Any]],
    columns: _Columns,
    place: Callable[[int], str],
    parts: Mapping[str, Array],
    files: Mapping[str, str],
    options: TokenOptions,
) -> DataSet:
    """Rows of a language model: documents, or conversations."""
    record: dict[str, Any] = {"columns": {option: column for option, column in vars(columns).items() if column is not None}}
    count = sum(map(len, parts.values()))
    given = files if len(files) > 1 else {}
    split, words = completed(parts, np.zeros(count, dtype=np.int64), given)
    record["split"] = {part: said.replace("by class", "at random") for part, said in words.items()}
    if columns.messages is not None:
        conversations = [checked_messages(one, place(row)) for row, one in enumerate(values(columns.messages))]
    elif columns.prompt is not None and columns.answer is not None:
        both = [_texts(values(column), column, place) for column in (columns.prompt, columns.answer)]
        conversations = [as_messages(prompt, answer) for prompt, answer in zip(*both, strict=True)]
    else:
        if columns.text is None or columns.text_pair is not None:
            raise TrainerError(
                f"data {name!r}: pairs and tags are nothing that follows; allowed are text, prompt with answer, messages"
            )
        return packed_set(name, Texts.of(_texts(values(columns.text), columns.text, place), place), split, options, record)
    return instruction_set(name, conversations, place, split, options, record)


def _texts(values: Sequence[Any], column: str, place: Callable[[int], str]) -> list[str]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise TrainerError(f"{place(row)}: {column!r} holds a {type(value).__name__}; allowed are texts")
    return list(values)


def _lists(values: Sequence[str], column: str, place: Callable[[int], str]) -> list[list[Any]]:
    """Of CSV: a list as JSON has it, or words parted by spaces."""
    found = []
    for row, value in enumerate(values):
        if not value.lstrip().startswith("["):
            found.append(value.split())
            continue
        try:
            found.append(json.loads(value))
        except ValueError:
            raise TrainerError(
                f'{place(row)}: {column!r} begins with [ and is no JSON list; allowed are ["a", "b"] or words parted by spaces'
            ) from None
    return found


def _as_numbers(tags: list[list[Any]]) -> list[list[Any]]:
    """Tags that are whole numbers in every row, as such."""
    if not all(type(tag) is int or (isinstance(tag, str) and WHOLE.fullmatch(tag.strip())) for row in tags for tag in row):
        return tags
    return [[int(tag) for tag in row] for row in tags]


def _targets(
    labels: Sequence[Any] | None, column: str, train: Array, place: Callable[[int], str], *, written: bool
) -> tuple[Array | None, tuple[str, ...], int]:
    """Targets (N, …), names of the classes, and how many there are; None, () and 0 where nothing is known."""
    if labels is None:
        return None, (), 0
    given = _parsed(labels, place, column) if written else list(labels)
    kinds = {type(value) for value in given}
    if kinds <= {float, int} and float in kinds:
        return _finite(_array(given, "float32", column, place), column, place), (), 0
    if kinds == {list}:
        return _vectors(given, column, place), (), 0
    if kinds not in ({str}, {int}, {bool}):
        row = next(row for row, value in enumerate(given) if type(value) is not type(given[0]) or type(value) is dict)
        raise TrainerError(
            f"{place(row)}: {column!r} holds a {type(given[row]).__name__}, {place(0)} a {type(given[0]).__name__}; "
            "allowed are names, numbers or lists of numbers, in all rows the same"
        )
    known = sorted({given[int(row)] for row in train})
    if len(known) > MOST_CLASSES:
        raise TrainerError(f"column {column!r} has {len(known)} different values; allowed are {MOST_CLASSES} classes")
    places = {value: number for number, value in enumerate(known)}
    for row, value in enumerate(given):
        if value not in places:
            raise TrainerError(f"{place(row)}: {column!r} is {value!r}, which no training row has")
    names = () if kinds == {int} and known == list(range(len(known))) else tuple(str(value) for value in known)
    return np.array([places[value] for value in given], dtype=np.int64), names, len(known)


def _parsed(labels: Sequence[str], place: Callable[[int], str], column: str) -> list[Any]:
    """Of CSV: numbers where all are, whole ones where all are that."""
    for row, label in enumerate(labels):
        if not label.strip():
            raise TrainerError(f"{place(row)}: no {column!r}; allowed is a value for it in every row")
    for written, kind in ((WHOLE, int), (REAL, float)):
        if all(written.fullmatch(label.strip()) for label in labels):
            try:
                return [kind(label) for label in labels]
            except ValueError:  # a point alone; more digits than Python makes a whole number of
                continue
    return list(labels)


def _vectors(values: Sequence[Any], column: str, place: Callable[[int], str]) -> Array:
    """Lists of numbers as (N, K) float32, int64 where all are whole."""
    for row, value in enumerate(values):
        if len(value) != len(values[0]) or not value or not all(type(number) in (int, float) for number in value):
            raise TrainerError(
                f"{place(row)}: {column!r} is {str(value)[:60]}; allowed are {len(values[0])} numbers in every row"
            )
    whole = all(type(number) is int for value in values for number in value)
    return _finite(_array(values, "int64" if whole else "float32", column, place), column, place)


def _array(values: Sequence[Any], dtype: str, column: str, place: Callable[[int], str]) -> Array:
    try:
        return np.array(values, dtype=dtype)
    except OverflowError:
        for row, value in enumerate(values):
            try:
                np.array(value, dtype=dtype)
            except OverflowError:
                raise TrainerError(f"{place(row)}: {column!r} is {str(value)[:60]}; allowed are numbers in {dtype}") from None
        raise


def _finite(values: Array, column: str, place: Callable[[int], str]) -> Array:
    for row, value in enumerate(values):
        if not all(map(math.isfinite, np.atleast_1d(value))):
            raise TrainerError(f"{place(row)}: {column!r} is {value}; allowed are finite numbers")
    return values


register_source(Source("csv", _csv, "FILE", paths=PATHS))
register_source(Source("jsonl", _jsonl, "FILE", paths=PATHS))
