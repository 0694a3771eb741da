"""What the command line's NAME=VALUE options and the JSON files of a checkpoint mean."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.submodel import TrainerError, parse_value


def parse_grid(items: Sequence[str]) -> dict[str, list[Any]]:
    """AXIS=V,V,… each. Raises TrainerError naming the item; also where an axis is given twice."""
    grid: dict[str, list[Any]] = {}
    for item in items:
        axis, equals, values = item.partition("=")
        if not equals or not values:
            raise TrainerError(f"grid = {item!r}: write AXIS=V,V,… for example width=0.25,0.5,1")
        if axis in grid:
            raise TrainerError(f"grid = {item!r}: {axis} is given twice; write {axis}=V,V,… once, with all its values")
        grid[axis] = [parse_value(axis, value) for value in values.split(",")]
    return grid


_WORD = re.compile(r"(?:[A-Za-z]|(?:\.{0,2}|~)/)[A-Za-z0-9_.:/+-]*")
"""A word, or a path."""


def parse_settings(items: Sequence[str], field: str = "set", example: str = "channels=[32,64,128]") -> dict[str, Any]:
    """NAME=JSON each; a word or path needs no quotes. Raises TrainerError naming the item; also where a name is given twice."""
    settings: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        twice = name in settings
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
            if not _WORD.fullmatch(value):
                equals = ""
        if not equals or not name:
            raise TrainerError(f"{field} = {item!r}: write NAME=JSON, for example {example}")
        if twice:
            raise TrainerError(f"{field} = {item!r}: {name} is given twice; allowed is once")
    return settings


def json_object(path: Path) -> dict[str, Any]:
    """What a JSON file of a checkpoint says; empty where it is not there, or is no object. Raises TrainerError for a damaged
    one."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainerError(f"{path} is damaged: {error}") from None
    return found if isinstance(found, dict) else {}
