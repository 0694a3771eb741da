"""Reads inputs from .npy and .npz files, pictures and sounds, and writes outputs, without pickle."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from device_profiles.atomic import check_writable, replacing
from exporter.bundle import Bundle
from exporter.bundle.preprocessing import SUFFIXES, AudioPreprocessing, ImageError, ImagePreprocessing, read_image
from selector.run.inputs import InputError

_BEGINNINGS = {b"\xff\xd8\xff": "image", b"\x89PNG": "image", b"RIFF": "audio", b"fLaC": "audio"}
"""What JPEG, PNG, WAV and FLAC files begin with, and the kind of preprocessing that makes an input of them."""
_ARRAYS = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")
"""What .npy and .npz files begin with; the last is a .npz of no arrays."""
_WORDS = {"image": "picture", "audio": "sound"}


def read_inputs(path: Path, bundle: Bundle | None = None) -> dict[str, NDArray[Any]] | NDArray[Any]:
    """One array (.npy) or arrays by name (.npz), or a picture or a sound as the bundle's input.

    Raises InputError when the file is none of them, or when the bundle does not say how to read one; ModuleNotFoundError for a
    picture or a sound where the library that reads it is not installed.
    """
    kind = _kind(path) if bundle is not None else None
    if bundle is not None and kind is not None:
        return _preprocessed(path, bundle, kind)
    try:
        with path.open("rb") as file:
            beginning = file.read(6)
            if not beginning.startswith(_ARRAYS):  # numpy would speak of pickles
                raise ValueError(_instead(beginning))
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise InputError(f"input {str(path)!r}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged file raises whatever numpy, zipfile and zlib each have, MemoryError included
        why = " ".join(str(error).split()) or type(error).__name__
        takes = [] if bundle is None else [spec.get("kind") for spec in bundle.manifest.preprocessing.values()]
        hint = "; texts are given as --text TEXT" if "text" in takes else ""
        raise InputError(f"input {str(path)!r}: cannot be read as .npy or .npz{_nor(bundle)}: {why}{hint}") from None


def _instead(beginning: bytes) -> str:
    """What a file that is no arrays is, as far as its first bytes say."""
    kind = next((kind for start, kind in _BEGINNINGS.items() if beginning.startswith(start)), None)
    if kind is not None:
        return f"it is a {_WORDS[kind]}"
    return "it does not begin as one does" if beginning else "it is empty"


def _nor(bundle: Bundle | None) -> str:
    """Which other files the bundle takes, and this one is not."""
    kinds = {spec.get("kind") for spec in bundle.manifest.preprocessing.values()} if bundle is not None else set()
    files = [names for kind, names in (("image", "JPEG or PNG"), ("audio", "WAV or FLAC")) if kind in kinds]
    return f", and is no {' or '.join(files)}" if files else ""


def _kind(path: Path) -> str | None:
    """Of preprocessing, by how the file begins or is called; None for another file, and for one that cannot be opened."""
    by_name = {**dict.fromkeys(SUFFIXES, "image"), ".wav": "audio", ".flac": "audio"}
    try:
        with path.open("rb") as file:
            beginning = file.read(4)
    except OSError:
        return None
    found = next((kind for start, kind in _BEGINNINGS.items() if beginning.startswith(start)), None)
    return found or by_name.get(path.suffix.lower())


def _preprocessed(path: Path, bundle: Bundle, kind: str) -> dict[str, NDArray[Any]]:
    described = {name: spec for name, spec in bundle.manifest.preprocessing.items() if spec.get("kind") == kind}
    names = [spec.name for spec in bundle.manifest.inputs]
    if len(described) != 1 or len(names) != 1:
        whose = "input" if len(names) == 1 else "inputs"
        raise InputError(
            f"input {str(path)!r}: this bundle does not say how a {_WORDS[kind]} becomes its {whose} "
            f"{', '.join(map(repr, names))}; allowed are .npy and .npz"
        )
    ((name, values),) = described.items()
    try:
        if kind == "image":
            return {name: read_image(path, ImagePreprocessing.model_validate(values))}
        return {name: _sound(path, AudioPreprocessing.model_validate(values))}
    except ImageError as error:
        raise InputError(f"input {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"input {name!r}: the bundle's preprocessing is not known here: {place}: {first['msg']}") from None


def _sound(path: Path, spec: AudioPreprocessing) -> NDArray[Any]:
    from exporter.bundle.sounds import SoundError, read_sound

    try:
        return read_sound(path, spec.model_dump())
    except SoundError as error:
        raise InputError(f"input {error}") from None


def check_output(path: Path, input: Path | None, bundle: Bundle, *, overwrite: bool = False) -> None:
    """Looks, before the run, whether its outputs may be written there. Raises InputError for a name that is not .npz, a folder
    that is not there or takes nothing, and without `overwrite` for the input itself and for a file that no run of this bundle
    has written. `input`: None where it is no file."""
    what = f"output {str(path)!r}"
    if path.suffix.lower() != ".npz":
        raise InputError(f"{what}: allowed is FILE.npz, which is what is written")
    try:
        if not path.parent.is_dir():
            raise NotADirectoryError(errno.ENOENT, os.strerror(errno.ENOENT))
        check_writable(path.parent)
    except OSError as error:
        raise InputError(f"{what}: cannot be written: {error.strerror}") from None
    if path.exists() and not overwrite:
        if input is not None and path.resolve() == input.resolve():
            raise InputError(f"{what}: is the input; choose another file, or replace it with --overwrite")
        if not _written_by(path, bundle):
            raise InputError(f"{what}: was not written by a run of this bundle; choose another, or replace it with --overwrite")


def _mark(bundle: Bundle) -> bytes:
    """The comment of a .npz file, which is a zip archive, that a run of this bundle has written."""
    return f"outputs of sortednet run {bundle.name}".encode()


def _written_by(path: Path, bundle: Bundle) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == _mark(bundle)
    except (OSError, zipfile.BadZipFile):
        return False


def write_outputs(path: Path, outputs: Mapping[str, NDArray[Any]], bundle: Bundle) -> None:
    """Raises InputError when the file cannot be written; one that stood there is unchanged then."""
    try:
        with replacing(path) as partial:
            with partial.open("wb") as file:
                np.savez(file, **outputs)  # type: ignore[arg-type]
            with zipfile.ZipFile(partial, "a") as archive:
                archive.comment = _mark(bundle)
    except OSError as error:
        raise InputError(f"output {str(path)!r}: cannot be written: {error.strerror}") from None
