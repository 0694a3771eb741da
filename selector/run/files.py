"""Reads inputs from .npy and .npz files and pictures, and writes outputs, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from exporter.bundle import Bundle
from exporter.bundle.preprocessing import SUFFIXES, ImageError, ImagePreprocessing, read_image
from selector.run.inputs import InputError

PICTURES = (b"\xff\xd8\xff", b"\x89PNG")
"""What JPEG and PNG files begin with."""


def read_inputs(path: Path, bundle: Bundle | None = None) -> dict[str, NDArray[Any]] | NDArray[Any]:
    """One array (.npy) or arrays by name (.npz), or a picture as the bundle's input.

    Raises InputError when the file is none of them, or when it is a picture and the bundle does not say how to read one;
    ModuleNotFoundError for a picture where Pillow is not installed.
    """
    if bundle is not None and _is_picture(path):
        return _picture(path, bundle)
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except Exception as error:  # a damaged file raises whatever numpy, zipfile and zlib each have, MemoryError included
        why = " ".join(str(error).split()) or type(error).__name__
        nor = ", and is no JPEG or PNG" if bundle is not None and bundle.manifest.preprocessing else ""
        raise InputError(f"input {str(path)!r}: cannot be read as .npy or .npz{nor}: {why}") from None


def _is_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.suffix.lower() in SUFFIXES or file.read(4).startswith(PICTURES)
    except OSError:
        return False


def _picture(path: Path, bundle: Bundle) -> dict[str, NDArray[Any]]:
    described = {name: spec for name, spec in bundle.manifest.preprocessing.items() if spec.get("kind") == "image"}
    names = [spec.name for spec in bundle.manifest.inputs]
    if len(described) != 1 or len(names) != 1:
        whose = "input" if len(names) == 1 else "inputs"
        raise InputError(
            f"input {str(path)!r}: this bundle does not say how a picture becomes its {whose} {', '.join(map(repr, names))}; "
            "allowed are .npy and .npz"
        )
    ((name, values),) = described.items()
    try:
        return {name: read_image(path, ImagePreprocessing.model_validate(values))}
    except ImageError as error:
        raise InputError(f"input {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"input {name!r}: the bundle's preprocessing is not known here: {place}: {first['msg']}") from None


def write_outputs(path: Path, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Raises InputError when the file cannot be written."""
    try:
        with path.open("wb") as file:
            np.savez(file, **outputs)  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"output {str(path)!r}: cannot be written: {error.strerror}") from None
