"""Folders with one folder of files per class, in one piece or as `train/`, `validation/` and `test/`.

Shapes: N files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.splits import SPLIT_SEED, Array, split_by_class, stratified
from trainer.submodel import TrainerError

PARTS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
"""By part of the split: the names that its folder may have."""

HASHED_BYTES = 256 * 2**20
"""Of larger data sets the record holds a hash of the files' names and sizes instead of their contents."""


@dataclass(frozen=True)
class ClassFiles:
    """Files, each of one class, in three parts."""

    root: Path
    paths: Sequence[Path]
    labels: Array  # (N,) int64, a place in `classes`
    classes: tuple[str, ...]  # names of the folders, in the order of the alphabet
    parts: Mapping[str, Array]  # "train", "validation", "test": the indices of their files
    split: Mapping[str, str]  # in words: where each part comes from

    def record(self, name: str) -> dict[str, Any]:
        """What a run keeps of them, under the name that was given to `--data`."""
        total = sum(path.stat().st_size for path in self.paths)
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.fsencode(f"{path.relative_to(self.root).as_posix()}\0{path.stat().st_size}\0"))
            if total <= HASHED_BYTES:
                digest.update(path.read_bytes())
        indices = b"".join(part.astype("<i8").tobytes() for part in self.parts.values())
        return {
            "name": name,
            "split_seed": SPLIT_SEED,
            "split": dict(self.split),
            "sizes": {part: len(chosen) for part, chosen in self.parts.items()},
            "split_sha256": hashlib.sha256(indices).hexdigest(),
            "content_sha256" if total <= HASHED_BYTES else "names_and_sizes_sha256": digest.hexdigest(),
            "class_names": list(self.classes),
        }


def class_files(root: Path, *, what: str, suffixes: Sequence[str]) -> ClassFiles:
    """The files of a folder with one folder per class, or with such a folder for each part of the split.

    Files whose names begin with a dot are left out. Where a part is missing it is split off the training files, by class and
    the same every time. `what` the files are is said in errors ("sound"); with no `suffixes` any file is one. Raises
    TrainerError naming a file that is none, a link to nothing, a class without files, a class that the training files lack and
    what else is wrong.
    """
    if not root.is_dir():
        raise TrainerError(f"{what} folder {str(root)!r} does not exist; expected is one folder per class with {what} files")
    _refuse_broken_links(what, root.iterdir())
    train = root / PARTS["train"][0]
    given = _parts_of(root, what) if train.is_dir() and _folders(train) else {}  # else the folders are classes
    training = _read(root, given.get("train", root), what, suffixes)
    paths, labels, parts = list(training.paths), [training.labels], {"train": np.arange(len(training.paths))}
    for part in [part for part in given if part != "train"]:
        found = _read(root, given[part], what, suffixes)
        for name in found.classes:
            if name not in training.classes:
                raise TrainerError(f"{what} folder {str(given[part] / name)!r}: {name!r} is no class of the training files")
        parts[part] = np.arange(len(found.paths)) + len(paths)
        paths += found.paths
        labels.append(np.array([training.classes.index(found.classes[i]) for i in found.labels], dtype=np.int64))
    both = np.concatenate(labels)
    words = {part: f"{folder.name}/" for part, folder in given.items()}
    parts, split = completed(parts, both, words, training.classes)
    return replace(training, paths=paths, labels=both, parts=parts, split=split)


def completed(
    parts: Mapping[str, Array], labels: Array, split: Mapping[str, str], names: Sequence[str] = ()
) -> tuple[dict[str, Array], dict[str, str]]:
    """The parts, with those that are missing split off the training part by class; and in words where each comes from.

    A test part takes 20 %, a validation part 15 % of what there is for training. `names`: of the classes, for errors.
    """
    train, missing = parts["train"], [part for part in ("validation", "test") if part not in parts]
    if len(missing) == 2:
        places = split_by_class(labels[train], names)
        parts = {part: train[chosen] for part, chosen in zip(PARTS, places, strict=True)}
    elif missing:
        rest, taken = stratified(train, labels[train], 0.15 if missing == ["validation"] else 0.2, names)
        parts = {**parts, "train": rest, missing[0]: taken}
    words = {"train": "the rest", **dict.fromkeys(missing, "split off, by class"), **split}
    return {part: parts[part] for part in PARTS}, {part: words[part] for part in PARTS}


def documents_of(
    root: Path, is_one: Callable[[Path], bool]
) -> tuple[list[Path], dict[str, Array], dict[str, str], tuple[str, ...]]:
    """The files below a folder that are such ones, at any depth; the parts of the split as `class_files` has them, from folders
    `train`, `validation`, `test`, or split off at random; in words where each comes from; and what the user should know.

    What is hidden, or lies in a hidden folder, is left out. Raises TrainerError where there is none, for a link to nothing and
    for folders beside those of the parts.
    """
    if not root.is_dir():
        raise TrainerError(f"text folder {str(root)!r} does not exist; expected are text files, in folders or not")
    _refuse_broken_links("text", root.iterdir())
    names = {folder.name for folder in _folders(root)}
    given = _parts_of(root, "text") if names & set(PARTS["train"]) else {}
    paths: list[Path] = []
    parts: dict[str, Array] = {}
    for part, folder in (given or {"train": root}).items():
        below = sorted(p for p in folder.rglob("*") if not any(name.startswith(".") for name in p.relative_to(folder).parts))
        _refuse_broken_links("text", below)
        found = [p for p in below if p.is_file() and is_one(p)]
        if not found:
            raise TrainerError(f"text folder {str(folder)!r}: holds no text; allowed are .txt, .text and .md files in UTF-8")
        parts[part] = np.arange(len(found)) + len(paths)
        paths += found
    words = {part: f"{folder.name}/" for part, folder in given.items()}
    whole, words = completed(parts, np.zeros(len(paths), dtype=np.int64), words)
    loose = [path.name for path in _files(root) if is_one(path)] if given else []
    more = f" and {len(loose) - 1} more" if len(loose) > 1 else ""
    notes = (f"{loose[0]}{more} beside train/ are not read: texts are taken from the folders of the parts.",) if loose else ()
    return paths, whole, {part: said.replace("by class", "at random") for part, said in words.items()}, notes


def has_class_files(root: Path, is_one: Callable[[Path], bool]) -> bool:
    """Whether it has class folders, and the first file of each is such a one."""
    if not root.is_dir():
        return False
    train = root / PARTS["train"][0]
    root = train if train.is_dir() and _folders(train) else root
    first = [next(iter(_files(folder)), None) for folder in _folders(root)]
    return bool(first) and all(path is not None and is_one(path) for path in first)


def _parts_of(root: Path, what: str) -> dict[str, Path]:
    """The folders of the parts, "train" first. Raises TrainerError for two of one part, and for others beside them."""
    names = {folder.name: folder for folder in _folders(root)}
    given = {part: [names[n] for n in allowed if n in names] for part, allowed in PARTS.items()}
    for part, folders in given.items():
        if len(folders) > 1:
            raise TrainerError(
                f"{what} folder {str(root)!r}: has {folders[0].name}/ and {folders[1].name}/; allowed is one {part} part"
            )
    rest = [name for name in names if not any(name in allowed for allowed in PARTS.values())]
    if rest:
        raise TrainerError(f"{what} folder {str(root)!r}: has {rest[0]}/ beside train/; allowed are train, validation and test")
    return {part: folders[0] for part, folders in given.items() if folders}


def _read(root: Path, folder: Path, what: str, suffixes: Sequence[str]) -> ClassFiles:
    """The class folders in a folder, not yet split."""
    _refuse_broken_links(what, folder.iterdir())
    classes = _folders(folder)
    loose = [p for p in sorted(folder.iterdir()) if p.is_file() and suffixes and _suffix(p) in suffixes]
    if loose:
        raise TrainerError(f"{what} folder {str(folder)!r}: {loose[0].name} lies in no class folder; expected is one per class")
    if len(classes) < 2:
        raise TrainerError(f"{what} folder {str(folder)!r}: {len(classes)} class folders; allowed are two and more")
    paths: list[Path] = []
    labels: list[int] = []
    of_kind = f"{what} files" + (f" ({', '.join(suffixes)})" if suffixes else "")
    for label, one in enumerate(classes):
        _refuse_broken_links(what, one.iterdir())
        files = _files(one)
        if inner := _folders(one):  # read as one class, the parts of a split by other names would be taken for classes
            raise TrainerError(
                f"{what} folder {str(one)!r}: holds the folder {inner[0].name}/; allowed are files in it; the parts of a split "
                "are train/, validation/ and test/"
            )
        if not files:
            raise TrainerError(f"{what} folder {str(one)!r}: holds no file; allowed are class folders with {of_kind}")
        strangers = [path for path in files if suffixes and _suffix(path) not in suffixes]
        if strangers:
            raise TrainerError(f"{str(strangers[0])!r} ({len(strangers)} of {len(files)} files there): allowed are {of_kind}")
        paths += files
        labels += [label] * len(files)
    names = tuple(one.name for one in classes)
    return ClassFiles(root, paths, np.array(labels, dtype=np.int64), names, {}, {})


def _refuse_broken_links(what: str, paths: Iterable[Path]) -> None:
    """Those to files that were not fetched: to leave them out would be to train on the others."""
    links = sorted(path for path in paths if path.is_symlink() and not path.exists() and not path.name.startswith("."))
    if links:
        others = f" (and {len(links) - 1} others)" if len(links) > 1 else ""
        raise TrainerError(
            f"{what} {str(links[0])!r}{others}: is a link to {os.readlink(links[0])!r}, where nothing is; allowed are files "
            "that are there (git annex get, dvc pull)"
        )


def _folders(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_file() and not child.name.startswith("."))


def _suffix(path: Path) -> str:
    return path.suffix.lower()
