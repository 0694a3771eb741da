"""`--data`: the registry of sources. A source is a file in this folder and one call of `register_source`.

NAME            a data set that we know, see `trainer.data.known`
PREFIX:REST     whatever the source of that prefix makes of the rest: a path, a name, module:function
PATH            a folder or file: the first source that recognises it reads it
module:function a function of the user's, see `trainer.data.modules`
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.data.dataset import DataSet
from trainer.submodel import TrainerError
from trainer.task import where


@dataclass(frozen=True)
class Source:
    """One way to say where data come from."""

    name: str
    """The prefix, or the whole name of a data set."""

    load: Callable[..., DataSet]
    """`load(name, rest, **options)`: `name` is what was given to `--data`, `rest` what follows the prefix; its keyword-only
    arguments are the options (`--data-option`). Raises TrainerError."""

    rest: str = ""
    """What follows the prefix, in words: PATH, FILE.npz. Empty for a data set with a name of its own."""

    recognises: Callable[[Path], bool] | None = None
    """Whether a bare path is of this format, told without reading all of it."""

    paths: tuple[str, ...] = ()
    """Options that are paths: relative ones are looked for where the data are."""


_SOURCES: dict[str, Source] = {}


def register_source(source: Source) -> None:
    """Makes `--data` know it. Raises TrainerError when another one has the name."""
    if _SOURCES.get(source.name, source) != source:
        raise TrainerError(f"data source {source.name!r} is taken")
    _SOURCES[source.name] = source


def registered_sources() -> dict[str, Source]:
    """By name or prefix."""
    return dict(_SOURCES)


def load_data(name: str, options: Mapping[str, Any] | None = None, folder: Path | None = None) -> DataSet:
    """A data set by name, prefix or path (CONTRACT: `--data`), with options of its source (`--data-option`), which its record
    keeps too: `load_data(record["name"], record.get("options"))` is the same data set again. `folder`: where a relative path is
    looked for before it is in the working directory.

    Raises TrainerError naming what is known, what was found at a path, or where to get what is missing.
    """
    source, rest = _found(name, folder or Path())
    given = dict(options or {})
    parameters = inspect.signature(source.load).parameters
    allowed = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in given:
        if option not in allowed and not takes_any:
            raise TrainerError(f"data {name!r}: has no option {option!r}; allowed are {', '.join(allowed) or 'none'}")
    try:
        placed = {n: _place(v, folder) if n in source.paths and isinstance(v, str) and folder else v for n, v in given.items()}
        loaded = source.load(name, rest, **placed)
        _check_labels(name, loaded.labels)
        record = {**loaded.record, **({"options": given} if given else {})}
        if folder and isinstance(split := record.get("split"), Mapping):  # which names files: as they were given at first
            said = {str(Path(there)): str(Path(given[n])) for n, there in placed.items() if there != given[n]}
            said[str(Path(rest))] = str(Path(name.partition(":")[2]))
            record["split"] = {part: said.get(words, words) for part, words in split.items()}
        return replace(loaded, record=record)
    except TrainerError:
        raise
    except TypeError as error:
        raise TrainerError(f"data {name!r}: {where(error)}") from error


def _check_labels(name: str, labels: Sequence[str]) -> None:
    """Names of folders may be any bytes, those in a run and a bundle not."""
    for label in labels:
        try:
            label.encode()
        except UnicodeEncodeError:
            raise TrainerError(f"data {name!r}: class {label!r}: allowed are names in UTF-8") from None


def options_of(name: str) -> list[str]:
    """The names of the options that `load_data(name)` takes. Raises TrainerError for a source that is not known."""
    parameters = inspect.signature(_found(name, Path())[0].load).parameters
    return [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]


def _found(name: str, folder: Path) -> tuple[Source, str]:
    if not name:
        raise TrainerError(f"data = '': allowed are {_known()}, or a path")
    if name in _SOURCES and not _SOURCES[name].rest:
        return _SOURCES[name], ""
    prefix, colon, rest = name.partition(":")
    if colon and prefix and prefix in _SOURCES and _SOURCES[prefix].rest:
        if not rest:
            raise TrainerError(f"data = {name!r}: nothing follows the prefix; write {prefix}:{_SOURCES[prefix].rest}")
        return _SOURCES[prefix], _place(rest, folder)
    path = Path(_place(name, folder))
    if path.exists():
        for source in _SOURCES.values():
            if source.recognises is not None and source.recognises(path):
                return source, _place(name, folder)
        raise TrainerError(f"data {name!r}: {_contents(path)}, which is none of the formats known: {_known()}")
    own = _SOURCES.get("")
    if rest and own is not None and all(part.isidentifier() for part in prefix.split(".")):
        return own, name
    raise TrainerError(f"unknown data set {name!r}; known are {_known()}, or the path of a folder in one of their formats")


def _place(path: str, folder: Path) -> str:
    """The path in the folder if there is such a thing; else, an absolute one too, as it is."""
    return str(folder / path) if folder != Path() and (folder / path).exists() else path


def _known() -> str:
    return ", ".join(
        f"{s.name}:{s.rest}" if s.rest and s.name else s.rest or s.name
        for s in sorted(_SOURCES.values(), key=lambda s: bool(s.rest))
    )


_LOOKED_AT = 1000


def _contents(path: Path) -> str:
    """What lies there, in words: of a folder its children and the kinds of files in it and below."""
    if path.is_file():
        return f"is a file {path.suffix or 'without a suffix'}"
    names = sorted(child.name + ("/" if child.is_dir() else "") for child in path.iterdir() if not child.name.startswith("."))
    files = islice((p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")), _LOOKED_AT)
    kinds = Counter(p.suffix.lower() or "without a suffix" for p in files)
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))[:5])
    listed = f"holds {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
    return f"{listed} ({f'files: {counted}' if kinds else 'no files'})" if names else "is empty"
