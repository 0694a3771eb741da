"""Rows of named columns from a file of CSV or of JSON lines, with the line that each is from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.submodel import TrainerError

LARGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Rows:
    """What a file holds, and where each row is from."""

    columns: tuple[str, ...]  # of all rows; one of JSON may lack some
    rows: Sequence[Mapping[str, Any]]
    lines: Sequence[int]
    file: str

    def place(self, row: int) -> str:
        return f"{self.file}, line {self.lines[row]}"


def read_csv(path: Path, delimiter: str | None) -> Rows:
    """Quoted as RFC 4180 says, in UTF-8; the first row has the names of the columns."""
    content = _content(path)
    separator = delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    limit = csv.field_size_limit(LARGEST_FIELD)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    try:
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
        header = next(reader, [])
        begun = reader.line_num + 1
        for values in reader:
            line, begun = begun, reader.line_num + 1
            if not values:
                continue
            if len(values) != len(header):
                raise TrainerError(
                    f"{path}, line {line}: {len(values)} values; allowed is one for each of {len(header)} columns"
                )
            rows.append(dict(zip(header, values, strict=True)))
            lines.append(line)
    except csv.Error as error:
        raise TrainerError(f"{path}, line {reader.line_num}: is no CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)
    if len(set(header)) < len(header):
        raise TrainerError(f"{path}: columns {', '.join(map(repr, header))}; allowed are names of their own in the first row")
    return _some(Rows(tuple(header), rows, lines, str(path)))


def read_jsonl(path: Path) -> Rows:
    """An object in each line."""
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(_content(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TrainerError(f"{path}, line {number}: is no JSON: {error}; allowed is an object in each line") from None
        if not isinstance(row, dict):
            raise TrainerError(f"{path}, line {number}: is a {type(row).__name__}; allowed is an object with named columns")
        rows.append(row)
        lines.append(number)
    return _some(Rows(tuple(dict.fromkeys(name for row in rows for name in row)), rows, lines, str(path)))


def _content(path: Path) -> str:
    """Bytes that are no UTF-8 become replacement characters, as in a folder of texts."""
    if not path.is_file():
        raise TrainerError(f"{path}: there is no such file; expected is one example in each row")
    content = path.read_bytes()
    if b"\0" in content:
        raise TrainerError(f"{path}: is no text; allowed are files in UTF-8")
    return content.decode("utf-8-sig", errors="replace")


def _some(rows: Rows) -> Rows:
    if not rows.rows:
        raise TrainerError(f"{rows.file}: holds no row; allowed are 2 and more")
    return rows
